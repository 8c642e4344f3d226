// Three families: turns named in plain text (V2), turns opened by tokens (V2.5 and later, the
// distills), ChatML. What else differs is one row per format in kRules.
#include "text/chat_template.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/error.h"

namespace fathom {
namespace {

using Role = ChatMessage::Role;

constexpr std::string_view kBos = "<｜begin▁of▁sentence｜>";
constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
constexpr std::string_view kThinkBegin = "<think>";
constexpr std::string_view kThinkEnd = "</think>";

enum class Family { kPlainTurns, kTokenTurns, kChatMl };
enum class Thinking {
  kNone,
  kByModel,   // the model opens its thought itself (R1-0528)
  kForced,    // the prompt opens it, because the model sometimes skips it (R1)
  kSwitched,  // the prompt ends in <think> or </think> (V3.1)
};

struct Rules {
  ChatFormat format;
  std::string_view name;
  Family family;
  Thinking thinking = Thinking::kNone;
  std::string_view default_system = "";
};

constexpr std::array kRules = {
    Rules{ChatFormat::kDeepseekV2, "deepseek-v2", Family::kPlainTurns},
    Rules{ChatFormat::kDeepseekV25, "deepseek-v2.5", Family::kTokenTurns},
    Rules{ChatFormat::kDeepseekV3, "deepseek-v3", Family::kTokenTurns},
    Rules{ChatFormat::kDeepseekR1, "deepseek-r1", Family::kTokenTurns, Thinking::kForced},
    Rules{ChatFormat::kDeepseekR10528, "deepseek-r1-0528", Family::kTokenTurns, Thinking::kByModel},
    Rules{ChatFormat::kDeepseekV31, "deepseek-v3.1", Family::kTokenTurns, Thinking::kSwitched},
    Rules{ChatFormat::kR1DistillQwen, "r1-distill-qwen", Family::kTokenTurns, Thinking::kForced},
    Rules{ChatFormat::kR1DistillLlama, "r1-distill-llama", Family::kTokenTurns, Thinking::kForced},
    Rules{ChatFormat::kChatMl, "chatml", Family::kChatMl},
    Rules{ChatFormat::kSmolLm2, "smollm2", Family::kChatMl, Thinking::kNone,
          "You are a helpful AI assistant named SmolLM, trained by Hugging Face"},
    Rules{ChatFormat::kQwen2, "qwen2", Family::kChatMl, Thinking::kNone,
          "You are a helpful assistant."},
};

const Rules& rules_of(ChatFormat format) {
  const auto found = std::ranges::find(kRules, format, &Rules::format);
  FATHOM_CHECK(found != kRules.end(), static_cast<int>(format));
  return *found;
}

std::string format_names() {
  std::string names;
  for (const Rules& rules : kRules) names += (names.empty() ? "" : ", ") + std::string(rules.name);
  return names;
}

void check_messages(const Rules& rules, std::span<const ChatMessage> messages) {
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    const bool calls = !message.tool_calls.empty();
    if (calls && message.role != Role::kAssistant) {
      fail("message {}: tool calls in role '{}', expected in role 'assistant' only", i,
           role_name(message.role));
    }
    if (rules.family == Family::kTokenTurns) continue;
    if (message.role == Role::kTool) {
      fail(
          "message {}: role 'tool', expected system, user or assistant (format {} has no tool "
          "results)",
          i, rules.name);
    }
    if (calls) {
      fail("message {}: {} tool calls, expected none (format {} has none)", i,
           message.tool_calls.size(), rules.name);
    }
  }
}

class Prompt {
 public:
  void token(std::string_view literal) { pieces_.push_back({true, std::string(literal)}); }
  void text(std::string_view plain) {
    if (plain.empty()) return;
    if (pieces_.empty() || pieces_.back().special) pieces_.emplace_back();
    pieces_.back().text += plain;
  }
  std::vector<PromptPiece> take() { return std::move(pieces_); }

 private:
  std::vector<PromptPiece> pieces_;
};

void plain_turns(std::span<const ChatMessage> messages, const ChatOptions& options,
                 Prompt& prompt) {
  prompt.token(kBos);
  for (const ChatMessage& message : messages) {
    if (message.role == Role::kUser) prompt.text("User: ");
    if (message.role == Role::kAssistant) prompt.text("Assistant: ");
    prompt.text(message.content);
    if (message.role == Role::kAssistant)
      prompt.token(kEos);
    else
      prompt.text("\n\n");
  }
  if (options.add_generation_prompt) prompt.text("Assistant:");  // the model itself emits the space
}

// What the history keeps of an assistant turn. R1's own file cuts at the last end mark, V3.1's at
// the first.
std::string_view without_thought(const Rules& rules, std::string_view content) {
  if (rules.thinking == Thinking::kNone) return content;
  const size_t end =
      rules.thinking == Thinking::kSwitched ? content.find(kThinkEnd) : content.rfind(kThinkEnd);
  return end == std::string_view::npos ? content : content.substr(end + kThinkEnd.size());
}

void tool_calls(const std::vector<ToolCall>& calls, bool fenced, Prompt& prompt) {
  if (calls.empty()) return;
  prompt.token("<｜tool▁calls▁begin｜>");
  for (const ToolCall& call : calls) {
    if (fenced && &call != &calls.front()) prompt.text("\n");
    prompt.token("<｜tool▁call▁begin｜>");
    if (fenced) {
      prompt.text("function");
      prompt.token("<｜tool▁sep｜>");
      prompt.text(call.name + "\n```json\n" + call.arguments + "\n```");
    } else {
      prompt.text(call.name);
      prompt.token("<｜tool▁sep｜>");
      prompt.text(call.arguments);
    }
    prompt.token("<｜tool▁call▁end｜>");
  }
  prompt.token("<｜tool▁calls▁end｜>");
}

void token_turns(const Rules& rules, std::span<const ChatMessage> messages,
                 const ChatOptions& options, Prompt& prompt) {
  // V3.1: calls and results without wrapping, a </think> before every past answer.
  const bool v31 = rules.thinking == Thinking::kSwitched;
  prompt.token(kBos);
  bool first_system = true;
  for (const ChatMessage& message : messages) {
    if (message.role != Role::kSystem) continue;
    if (!first_system) prompt.text("\n\n");
    prompt.text(message.content);
    first_system = false;
  }
  // the assistant goes on right after tool results, without a mark of its own
  bool in_results = false;
  const auto close_results = [&] {
    if (in_results && !v31) prompt.token("<｜tool▁outputs▁end｜>");
  };
  for (const ChatMessage& message : messages) {
    if (message.role == Role::kSystem) continue;
    if (message.role == Role::kTool) {
      if (!v31 && in_results) prompt.text("\n");
      if (!v31 && !in_results) prompt.token("<｜tool▁outputs▁begin｜>");
      prompt.token("<｜tool▁output▁begin｜>");
      prompt.text(message.content);
      prompt.token("<｜tool▁output▁end｜>");
      in_results = true;
      continue;
    }
    close_results();
    if (message.role == Role::kUser) {
      prompt.token("<｜User｜>");
      prompt.text(message.content);
    } else {
      if (!in_results) prompt.token("<｜Assistant｜>");
      if (!in_results && v31) prompt.token(kThinkEnd);
      prompt.text(without_thought(rules, message.content));
      tool_calls(message.tool_calls, !v31, prompt);
      prompt.token(kEos);
    }
    in_results = false;
  }
  close_results();
  if (in_results || !options.add_generation_prompt) return;
  prompt.token("<｜Assistant｜>");
  if (v31) prompt.token(options.thinking ? kThinkBegin : kThinkEnd);
  if (rules.thinking == Thinking::kForced) {
    prompt.token(kThinkBegin);
    prompt.text("\n");
  }
}

void chat_ml(const Rules& rules, std::span<const ChatMessage> messages, const ChatOptions& options,
             Prompt& prompt) {
  const auto turn = [&](std::string_view role, std::string_view content) {
    prompt.token("<|im_start|>");
    prompt.text(role);
    prompt.text("\n");
    prompt.text(content);
    prompt.token("<|im_end|>");
    prompt.text("\n");
  };
  if (!rules.default_system.empty() && !messages.empty() && messages[0].role != Role::kSystem) {
    turn("system", rules.default_system);
  }
  for (const ChatMessage& message : messages) turn(role_name(message.role), message.content);
  if (!options.add_generation_prompt) return;
  prompt.token("<|im_start|>");
  prompt.text("assistant\n");
}

// The source without white space, real or written as \n, so that re-indented copies compare equal.
std::string squeezed(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\\' && i + 1 < source.size() && source[i + 1] == 'n')
      ++i;
    else if (std::string_view(" \t\r\n").find(source[i]) == std::string_view::npos)
      out += source[i];
  }
  return out;
}

std::optional<int32_t> deepseek_bos(const Tokenizer& tokenizer) { return tokenizer.find(kBos); }

}  // namespace

std::string_view role_name(ChatMessage::Role role) {
  switch (role) {
    case Role::kSystem:
      return "system";
    case Role::kUser:
      return "user";
    case Role::kAssistant:
      return "assistant";
    case Role::kTool:
      return "tool";
  }
  FATHOM_CHECK(false, static_cast<int>(role));
  return {};
}

ChatMessage read_message(const JsonObject& object) {
  ChatMessage message;
  const std::string role = object.string("role");
  const Role roles[] = {Role::kSystem, Role::kUser, Role::kAssistant};
  const auto* const found = std::find_if(std::begin(roles), std::end(roles),
                                         [&](Role known) { return role_name(known) == role; });
  if (found == std::end(roles))
    fail("{}: role: found {}, expected system, user or assistant", object.place(), quoted(role));
  message.role = *found;
  message.content = object.string("content");
  message.reasoning = object.optional_string("reasoning_content")
                          .value_or(object.optional_string("reasoning").value_or(""));
  if (object.has("tool_calls")) fail("{}: tool_calls: found, expected none", object.place());
  return message;
}

std::vector<PromptPiece> render_chat(ChatFormat format, std::span<const ChatMessage> messages,
                                     const ChatOptions& options) {
  const Rules& rules = rules_of(format);
  check_messages(rules, messages);
  Prompt prompt;
  switch (rules.family) {
    case Family::kPlainTurns:
      plain_turns(messages, options, prompt);
      break;
    case Family::kTokenTurns:
      token_turns(rules, messages, options, prompt);
      break;
    case Family::kChatMl:
      chat_ml(rules, messages, options, prompt);
      break;
  }
  return prompt.take();
}

std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, ChatFormat format,
                                 std::span<const ChatMessage> messages,
                                 const ChatOptions& options) {
  std::vector<int32_t> ids;
  for (const PromptPiece& piece : render_chat(format, messages, options)) {
    if (piece.special) {
      const std::optional<int32_t> id = tokenizer.find(piece.text);
      if (!id) {
        fail("chat format {}: token {}: not in the tokenizer (--template chooses another format)",
             chat_format_name(format), quoted(piece.text));
      }
      ids.push_back(*id);
    } else {
      const std::vector<int32_t> part = tokenizer.encode(piece.text, false);
      ids.insert(ids.end(), part.begin(), part.end());
    }
  }
  return ids;
}

int64_t opening_tokens(const Tokenizer& tokenizer, ChatFormat format,
                       std::span<const ChatMessage> messages, const ChatOptions& options) {
  const auto answer = std::ranges::find(messages, Role::kAssistant, &ChatMessage::role);
  if (answer == messages.end()) return -1;
  const auto before = messages.first(static_cast<size_t>(answer - messages.begin()));
  return std::ssize(encode_chat(tokenizer, format, before, {.thinking = options.thinking}));
}

std::optional<ThinkingMarks> thinking_marks(ChatFormat format, const ChatOptions& options,
                                            bool after_tool_result) {
  const Thinking thinking = rules_of(format).thinking;
  if (thinking == Thinking::kNone || (thinking == Thinking::kSwitched && !options.thinking)) {
    return std::nullopt;
  }
  const bool opens =
      thinking != Thinking::kByModel && options.add_generation_prompt && !after_tool_result;
  return ThinkingMarks{kThinkBegin, kThinkEnd, opens};
}

std::string_view chat_format_name(ChatFormat format) { return rules_of(format).name; }

ChatFormat chat_format_by_name(std::string_view name) {
  const auto found = std::ranges::find(kRules, name, &Rules::name);
  if (found == kRules.end())
    fail("chat format: {}, expected one of {}", quoted(name), format_names());
  return found->format;
}

std::optional<ChatFormat> detect_chat_format(std::string_view template_source,
                                             std::optional<int32_t> bos_id) {
  const std::string source = squeezed(template_source);
  const auto has = [&](std::string_view part) { return source.find(part) != std::string::npos; };
  if (has("｜DSML｜")) return std::nullopt;  // V3.2 and V4: another format
  if (has("<｜User｜>") && has("<｜Assistant｜>")) {
    if (has("<｜Assistant｜></think>")) return ChatFormat::kDeepseekV31;
    if (!has(kThinkEnd))
      return bos_id == 100000 ? ChatFormat::kDeepseekV25 : ChatFormat::kDeepseekV3;
    if (has("is_last_user")) return ChatFormat::kDeepseekR10528;
    if (bos_id == 151646) return ChatFormat::kR1DistillQwen;
    return bos_id == 128000 ? ChatFormat::kR1DistillLlama : ChatFormat::kDeepseekR1;
  }
  if (has("'User:'+message['content']+") && has("'Assistant:'+message['content']+eos_token")) {
    return ChatFormat::kDeepseekV2;
  }
  if (!has("'<|im_start|>'+message['role']+''+message['content']+'<|im_end|>'"))
    return std::nullopt;
  for (const Rules& rules : kRules) {
    if (rules.default_system.empty()) continue;
    if (has("<|im_start|>system" + squeezed(rules.default_system) + "<|im_end|>"))
      return rules.format;
  }
  // a default message, or a rule for it, that we do not know
  if (has("system")) return std::nullopt;
  return ChatFormat::kChatMl;
}

ChatFormat detect_chat_format(const Tokenizer& tokenizer) {
  const std::string& source = tokenizer.chat_template_source();
  const std::optional<ChatFormat> format = detect_chat_format(source, deepseek_bos(tokenizer));
  if (!format) {
    fail("chat template: {}, expected one of {} (choose with --template)",
         source.empty() ? "the model carries none" : "the model's own is none that we know",
         format_names());
  }
  return *format;
}

bool has_chat_format(const Tokenizer& tokenizer) {
  return detect_chat_format(tokenizer.chat_template_source(), deepseek_bos(tokenizer)).has_value();
}

}  // namespace fathom
