// Prompt encoders: messages to token ids, in code, for each published format. No
// template language is run.
//
// Special tokens come only from here; message contents are encoded with special tokens off. The
// format is chosen by the model's own files, or by name.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/json.h"
#include "text/tokenizer.h"

namespace fathom {

enum class ChatFormat {
  kDeepseekV2,
  kDeepseekV25,
  kDeepseekV3,
  kDeepseekR1,
  kDeepseekR10528,
  kDeepseekV31,
  kR1DistillQwen,
  kR1DistillLlama,
  kChatMl,
  kSmolLm2,
  kQwen2,  // differ in the system message inserted when there is none
};

struct ToolCall {
  std::string name;
  std::string arguments;  // JSON text
};

struct ChatMessage {
  enum class Role { kSystem, kUser, kAssistant, kTool };
  Role role = Role::kUser;
  std::string content;
  // assistant: the thought; no format here keeps it in the history
  std::string reasoning;
  std::vector<ToolCall> tool_calls;  // assistant
};
std::string_view role_name(ChatMessage::Role role);  // "system", "user", "assistant", "tool"

// {"role": "system" | "user" | "assistant", "content": "...", "reasoning_content"?: "..."}, as
// DeepSeek's API has it; the thought may also be called "reasoning". Throws naming place and field,
// for tool calls too: they would be lost.
ChatMessage read_message(const JsonObject& object);

struct ChatOptions {
  bool add_generation_prompt = true;
  bool thinking = true;  // V3.1 has the switch; formats without one ignore it
};

// A rendered prompt: literal special tokens and plain text, kept apart so that contents can never
// forge a token. Neighbouring plain pieces are already joined (one text, one tokenisation); no
// piece is empty.
struct PromptPiece {
  bool special = false;
  std::string text;
};

// Throws on messages the format cannot express ("message 2: role 'tool', expected ...").
std::vector<PromptPiece> render_chat(ChatFormat format, std::span<const ChatMessage> messages,
                                     const ChatOptions& options);
// The pieces' ids. Throws if the tokenizer lacks a special token.
std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, ChatFormat format,
                                 std::span<const ChatMessage> messages, const ChatOptions& options);

// Tokens of the prompt before what the first assistant message says: the prompt that asked for it.
// So the same for all turns of a conversation, as long as options are; -1 if there is no such
// message.
int64_t opening_tokens(const Tokenizer& tokenizer, ChatFormat format,
                       std::span<const ChatMessage> messages, const ChatOptions& options);

// Whether the format has a thinking phase, and the literal marks around it.
struct ThinkingMarks {
  std::string_view begin, end;
  // the generation prompt already contains `begin`; never so after a tool result
  bool prompt_opens;
};
std::optional<ThinkingMarks> thinking_marks(ChatFormat format, const ChatOptions& options,
                                            bool after_tool_result = false);

std::string_view chat_format_name(ChatFormat format);   // "deepseek-v3", ...
ChatFormat chat_format_by_name(std::string_view name);  // throws, naming the choices
// From the model's own template source and tokens; throws, naming the choices and --template, if it
// is none that we know.
ChatFormat detect_chat_format(const Tokenizer& tokenizer);
// The same on the source itself; `bos_id` is the id of the token <｜begin▁of▁sentence｜>, which tells
// apart formats that share one template. Absent if it is none that we know.
std::optional<ChatFormat> detect_chat_format(std::string_view template_source,
                                             std::optional<int32_t> bos_id);
// Whether detect_chat_format would succeed (base models have no template).
bool has_chat_format(const Tokenizer& tokenizer);

}  // namespace fathom
