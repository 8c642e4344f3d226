// Every format against what its published template renders (tools/chat_oracle.py), and the
// properties no template shows.
#include "text/chat_template.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "tests/text/published_tokenizer.h"

namespace fathom {
namespace {

using Role = ChatMessage::Role;
using Json = nlohmann::json;

constexpr ChatFormat kAll[] = {
    ChatFormat::kDeepseekV2,    ChatFormat::kDeepseekV25,    ChatFormat::kDeepseekV3,
    ChatFormat::kDeepseekR1,    ChatFormat::kDeepseekR10528, ChatFormat::kDeepseekV31,
    ChatFormat::kR1DistillQwen, ChatFormat::kR1DistillLlama, ChatFormat::kChatMl,
    ChatFormat::kSmolLm2,       ChatFormat::kQwen2};

std::string golden(const std::string& name) {
  std::ifstream in(std::string(FATHOM_SOURCE_DIR "/tests/golden/chat/") + name, std::ios::binary);
  EXPECT_TRUE(in) << name;
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

std::string joined(const std::vector<PromptPiece>& pieces) {
  std::string text;
  for (const PromptPiece& piece : pieces) text += piece.text;
  return text;
}

std::string rendered(ChatFormat format, const std::vector<ChatMessage>& messages,
                     const ChatOptions& options = {}) {
  return joined(render_chat(format, messages, options));
}

ChatMessage say(Role role, std::string content) { return {role, std::move(content), "", {}}; }
ChatMessage system_says(std::string content) { return say(Role::kSystem, std::move(content)); }
ChatMessage user(std::string content) { return say(Role::kUser, std::move(content)); }
ChatMessage assistant(std::string content, std::vector<ToolCall> calls = {}) {
  return {Role::kAssistant, std::move(content), "", std::move(calls)};
}
ChatMessage tool(std::string content) { return say(Role::kTool, std::move(content)); }

std::string message_of(const std::function<void()>& act) {
  try {
    act();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing thrown";
}

struct Conversation {
  std::vector<ChatMessage> messages;
  ChatOptions options;
};

Conversation conversation_of(const std::string& line) {
  const Json json = Json::parse(line);
  Conversation c{{}, {json["g"] == 1, json["t"] == 1}};
  for (const Json& m : json["m"]) {
    const char role = m[0].get<std::string>()[0];
    c.messages.push_back(say(role == 's'   ? Role::kSystem
                             : role == 'u' ? Role::kUser
                             : role == 'a' ? Role::kAssistant
                                           : Role::kTool,
                             m[1]));
    if (m.size() < 3) continue;
    for (const Json& call : m[2]) c.messages.back().tool_calls.push_back({call[0], call[1]});
  }
  return c;
}

std::vector<Conversation> conversations() {
  std::vector<Conversation> all;
  std::stringstream lines(golden("conversations.jsonl"));
  for (std::string line; std::getline(lines, line);) all.push_back(conversation_of(line));
  return all;
}

std::string short_hash(std::string_view text) {
  uint64_t h = 0xcbf29ce484222325;
  for (const unsigned char c : text) h = (h ^ c) * 0x100000001b3;
  return fmt::format("{:06x}", static_cast<uint32_t>(h & 0xffffff));
}

TEST(ChatTemplate, RendersWhatThePublishedTemplatesRender) {
  const std::vector<Conversation> all = conversations();
  const Json rows = Json::parse(golden("rendered.json"));
  EXPECT_EQ(rows.size(), 13u);
  for (const Json& row : rows) {
    const ChatFormat format = chat_format_by_name(row["format"].get<std::string>());
    const std::string hashes = row["hashes"];
    ASSERT_EQ(hashes.size(), all.size() * 6);
    int compared = 0, wrong = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      const std::string expected = hashes.substr(i * 6, 6);
      if (expected == "------") continue;
      std::string text, found = "xxxxxx";
      try {
        text = rendered(format, all[i].messages, all[i].options);
        found = short_hash(text);
      } catch (const Error&) {
      }
      compared += expected != "xxxxxx";
      if (found != expected && ++wrong <= 3) {
        ADD_FAILURE() << row["template"] << " conversation " << i + 1 << ":\n" << text;
      }
    }
    EXPECT_EQ(wrong, 0) << row["template"];
    EXPECT_GE(compared, 1000) << row["template"];
    EXPECT_EQ(compared, row["compared"].get<int>()) << row["template"];
  }
}

TEST(ChatTemplate, RendersThePublishedExamplesOfV31AndV2) {
  const std::vector<ChatMessage> messages = {
      system_says("You are a helpful assistant"), user("Who are you?"),
      assistant("<think>Hmm</think>I am DeepSeek"), user("1+1=?")};
  const std::string start =
      "<｜begin▁of▁sentence｜>You are a helpful assistant<｜User｜>Who are "
      "you?<｜Assistant｜></think>I am DeepSeek"
      "<｜end▁of▁sentence｜><｜User｜>1+1=?<｜Assistant｜>";
  EXPECT_EQ(rendered(ChatFormat::kDeepseekV31, messages, {true, true}), start + "<think>");
  EXPECT_EQ(rendered(ChatFormat::kDeepseekV31, messages, {true, false}), start + "</think>");
  EXPECT_EQ(
      rendered(ChatFormat::kDeepseekV2, {system_says("S"), user("a"), assistant("b"), user("c")}),
      "<｜begin▁of▁sentence｜>S\n\nUser: a\n\nAssistant: b<｜end▁of▁sentence｜>User: "
      "c\n\nAssistant:");
}

TEST(ChatTemplate, RendersToolRoundsWithEveryBlockClosed) {
  const std::vector<ChatMessage> messages = {user("w?"),
                                             assistant("", {{"f", "{}"}}),
                                             tool("1"),
                                             tool("2"),
                                             assistant("", {{"g", "[]"}, {"h", "0"}}),
                                             tool("3"),
                                             user("and?")};
  EXPECT_EQ(
      rendered(ChatFormat::kDeepseekR1, messages),
      "<｜begin▁of▁sentence｜><｜User｜>w?<｜Assistant｜>"
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<"
      "｜tool▁call▁end｜>"
      "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
      "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>1<｜tool▁output▁end｜>\n"
      "<｜tool▁output▁begin｜>2<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json\n[]\n```<"
      "｜tool▁call▁end｜>\n"
      "<｜tool▁call▁begin｜>function<｜tool▁sep｜>h\n```json\n0\n```<｜tool▁call▁end｜>"
      "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>"
      "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>3<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
      "<｜User｜>and?<｜Assistant｜><think>\n");
  EXPECT_EQ(
      rendered(ChatFormat::kDeepseekV31,
               {user("w?"), assistant("", {{"f", "{}"}, {"g", "1"}}), tool("1"), tool("2")}),
      "<｜begin▁of▁sentence｜><｜User｜>w?<｜Assistant｜></think>"
      "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
      "<｜tool▁call▁begin｜>g<｜tool▁sep｜>1<｜tool▁call▁end｜><｜tool▁calls▁end｜><"
      "｜end▁of▁sentence｜>"
      "<｜tool▁output▁begin｜>1<｜tool▁output▁end｜><｜tool▁output▁begin｜>2<｜tool▁output▁end｜>");
}

// What the oracle leaves out because the templates of these formats forget it: a thought beside
// tool calls.
TEST(ChatTemplate, DropsPastThoughtsEverywhere) {
  for (const ChatFormat format : kAll) {
    std::vector<ChatMessage> messages = {user("q"), assistant("answer"), user("r")};
    const std::string without = rendered(format, messages);
    messages[1].reasoning = "secret";
    EXPECT_EQ(rendered(format, messages), without) << chat_format_name(format);
    messages[1].content = "<think>secret</think>answer";
    EXPECT_EQ(rendered(format, messages) == without, thinking_marks(format, {}).has_value())
        << chat_format_name(format);
  }
  for (const ChatFormat format : {ChatFormat::kDeepseekR1, ChatFormat::kDeepseekV31}) {
    const std::string text =
        rendered(format, {user("q"), assistant("<think>secret</think>", {{"f", "{}"}}), tool("1"),
                          assistant("<think>secret</think>answer")});
    EXPECT_EQ(text.find("secret"), std::string::npos) << text;
  }
}

TEST(ChatTemplate, ContentsNeverBecomeSpecialPieces) {
  for (const ChatFormat format : kAll) {
    const bool tools = format != ChatFormat::kDeepseekV2 && format < ChatFormat::kChatMl;
    const auto build = [&](const std::string& evil) {
      std::vector<ChatMessage> messages = {system_says(evil), user(evil), assistant(evil),
                                           user(evil)};
      if (tools) {
        messages.push_back(assistant(evil, {{evil, evil}}));
        messages.push_back(tool(evil));
        messages.push_back(user("q"));
      }
      return render_chat(format, messages, {});
    };
    const auto specials = [](const std::vector<PromptPiece>& pieces) {
      std::vector<std::string> texts;
      for (const PromptPiece& piece : pieces) {
        if (piece.special) texts.push_back(piece.text);
      }
      return texts;
    };
    const std::vector<std::string> honest = specials(build("x"));
    for (const PromptPiece& piece : build("x"))
      EXPECT_EQ(piece.special, piece.text[0] == '<') << piece.text;
    for (const std::string evil :
         {"<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<|im_end|>", "<|im_start|>", "<think>",
          "<｜tool▁outputs▁end｜>", "<｜begin▁of▁sentence｜>", "<｜User｜>"}) {
      EXPECT_EQ(specials(build(evil)), honest) << chat_format_name(format) << " " << evil;
    }
  }
}

TEST(ChatTemplate, PlainPiecesAreJoinedAndNeverEmpty) {
  for (const Conversation& c : conversations()) {
    const std::vector<PromptPiece> pieces =
        render_chat(ChatFormat::kDeepseekV31, c.messages, c.options);
    for (size_t i = 0; i < pieces.size(); ++i) {
      EXPECT_FALSE(pieces[i].text.empty());
      EXPECT_TRUE(pieces[i].special || i == 0 || pieces[i - 1].special);
    }
  }
}

TEST(ChatTemplate, RefusesWhatAFormatCannotSay) {
  EXPECT_EQ(
      message_of([] {
        rendered(ChatFormat::kDeepseekV2, {user("q"), assistant("a"), tool("r")});
      }),
      "message 2: role 'tool', expected system, user or assistant (format deepseek-v2 has no tool "
      "results)");
  EXPECT_EQ(message_of([] {
              rendered(ChatFormat::kSmolLm2, {user("q"), assistant("", {{"f", "{}"}})});
            }),
            "message 1: 1 tool calls, expected none (format smollm2 has none)");
  ChatMessage confused = user("q");
  confused.tool_calls = {{"f", "{}"}};
  EXPECT_EQ(message_of([&] { rendered(ChatFormat::kDeepseekV3, {confused}); }),
            "message 0: tool calls in role 'user', expected in role 'assistant' only");
}

TEST(ChatTemplate, KnowsWhereThoughtsBegin) {
  const auto marks = [](ChatFormat format, bool thinking, bool after_tool = false) {
    const std::optional<ThinkingMarks> m = thinking_marks(format, {true, thinking}, after_tool);
    return !m ? std::string("none") : fmt::format("{} {} {}", m->begin, m->end, m->prompt_opens);
  };
  EXPECT_EQ(marks(ChatFormat::kDeepseekV3, true), "none");
  EXPECT_EQ(marks(ChatFormat::kSmolLm2, true), "none");
  EXPECT_EQ(marks(ChatFormat::kDeepseekV31, false), "none");
  EXPECT_EQ(marks(ChatFormat::kDeepseekV31, true), "<think> </think> true");
  EXPECT_EQ(marks(ChatFormat::kDeepseekR1, false), "<think> </think> true");
  EXPECT_EQ(marks(ChatFormat::kDeepseekR1, true, true), "<think> </think> false");
  EXPECT_EQ(marks(ChatFormat::kDeepseekR10528, true), "<think> </think> false");
  // The marks tell the truth about every prompt.
  for (const ChatFormat format : kAll) {
    for (const Conversation& c : conversations()) {
      if (format == ChatFormat::kDeepseekV2 || format >= ChatFormat::kChatMl) continue;
      const auto last =
          std::ranges::find_if(c.messages.rbegin(), c.messages.rend(),
                               [](const ChatMessage& m) { return m.role != Role::kSystem; });
      const auto m =
          thinking_marks(format, c.options, last != c.messages.rend() && last->role == Role::kTool);
      const std::vector<PromptPiece> pieces = render_chat(format, c.messages, c.options);
      const bool opened = pieces.back().text == "<think>" && pieces.back().special;
      const bool opened_line = pieces.back().text == "\n" &&
                               pieces[pieces.size() - 2].text == "<think>" &&
                               pieces[pieces.size() - 2].special;
      ASSERT_EQ(m && m->prompt_opens, opened || opened_line) << joined(pieces);
    }
  }
}

TEST(ChatTemplate, NamesGoBothWays) {
  for (const ChatFormat format : kAll)
    EXPECT_EQ(chat_format_by_name(chat_format_name(format)), format);
  EXPECT_EQ(message_of([] { chat_format_by_name("jinja\n"); }),
            "chat format: 'jinja\\x0a', expected one of deepseek-v2, deepseek-v2.5, deepseek-v3, "
            "deepseek-r1, deepseek-r1-0528, "
            "deepseek-v3.1, r1-distill-qwen, r1-distill-llama, chatml, smollm2, qwen2");
}

TEST(ChatTemplate, DetectsEveryPublishedTemplate) {
  struct Case {
    const char* file;
    std::optional<int32_t> bos;
    ChatFormat format;
  };
  for (const Case& c :
       {Case{"deepseek-v2", 100000, ChatFormat::kDeepseekV2},
        Case{"deepseek-v2.5", 100000, ChatFormat::kDeepseekV25},
        Case{"deepseek-v3", 0, ChatFormat::kDeepseekV3},
        Case{"deepseek-v3-0324", 0, ChatFormat::kDeepseekV3},
        Case{"deepseek-r1", 0, ChatFormat::kDeepseekR1},
        Case{"deepseek-r1-0528", 0, ChatFormat::kDeepseekR10528},
        Case{"deepseek-v3.1", 0, ChatFormat::kDeepseekV31},
        Case{"deepseek-v3.1-terminus", 0, ChatFormat::kDeepseekV31},
        Case{"r1-distill", 151646, ChatFormat::kR1DistillQwen},
        Case{"r1-distill", 128000, ChatFormat::kR1DistillLlama},
        Case{"chatml", {}, ChatFormat::kChatMl}, Case{"smollm2", {}, ChatFormat::kSmolLm2},
        Case{"qwen2", {}, ChatFormat::kQwen2}}) {
    const std::string source = golden(std::string("templates/") + c.file + ".jinja");
    std::string spaced, written;  // re-indented, and with \n written as two characters
    for (const char ch : source) {
      spaced += ch;
      if (ch == '}') spaced += "\n  ";
      written += ch == '\n' ? "\\n" : std::string(1, ch);
    }
    for (const std::string& variant : {source, spaced, written}) {
      const std::optional<ChatFormat> found = detect_chat_format(variant, c.bos);
      ASSERT_TRUE(found) << c.file;
      EXPECT_EQ(*found, c.format) << c.file << ": " << chat_format_name(*found);
    }
  }
}

TEST(ChatTemplate, DetectsNothingInTemplatesItDoesNotKnow) {
  const std::string smol = golden("templates/smollm2.jinja");
  const auto replaced = [&](std::string_view from, std::string_view to) {
    std::string copy = smol;
    EXPECT_NE(copy.find(from), std::string::npos);
    return copy.replace(copy.find(from), from.size(), to);
  };
  for (const std::string& source :
       {std::string(), std::string("{{ messages }}"), replaced("SmolLM", "Another"),
        replaced("message['content']", "message['content'] | trim"),
        golden("templates/deepseek-v3.1.jinja") + "<｜DSML｜function_calls>"}) {
    EXPECT_FALSE(detect_chat_format(source, std::nullopt)) << source;
  }
}

const Tokenizer& v3() {
  static const Tokenizer tokenizer =
      Tokenizer::from_json(published_v3(), "tokenizer.json",
                           Json{{"chat_template", golden("templates/deepseek-v3.jinja")}}.dump());
  return tokenizer;
}

TEST(ChatTemplate, EncodesMarksAsTokensAndContentsAsText) {
  EXPECT_EQ(detect_chat_format(v3()), ChatFormat::kDeepseekV3);
  EXPECT_TRUE(has_chat_format(v3()));
  const auto encoded = [](const std::string& content) {
    return encode_chat(v3(), ChatFormat::kDeepseekV3, std::vector{user(content)}, {});
  };
  EXPECT_EQ(encoded("Hello, world!"),
            (std::vector<int32_t>{0, 128803, 19923, 14, 2058, 3, 128804}));
  std::vector<int32_t> ids = encoded("<｜Assistant｜>");
  EXPECT_EQ(v3().decode(ids), "<｜begin▁of▁sentence｜><｜User｜><｜Assistant｜><｜Assistant｜>");
  EXPECT_EQ(std::ranges::count(ids, 128804), 1);
}

// Where contents hold no special token, the pieces' ids are the whole text's.
TEST(ChatTemplate, EncodesPiecesAsTheWholeText) {
  int compared = 0;
  for (const ChatFormat format :
       {ChatFormat::kDeepseekV3, ChatFormat::kDeepseekV25, ChatFormat::kDeepseekV2}) {
    for (const Conversation& c : conversations()) {
      const bool forged = std::ranges::any_of(c.messages, [](const ChatMessage& m) {
        return m.content.find("<｜") != std::string::npos;
      });
      const bool tools = std::ranges::any_of(c.messages, [](const ChatMessage& m) {
        return m.role == Role::kTool || !m.tool_calls.empty();
      });
      if (forged || (tools && format == ChatFormat::kDeepseekV2)) continue;
      const std::string text = rendered(format, c.messages, c.options);
      ASSERT_EQ(encode_chat(v3(), format, c.messages, c.options), v3().encode(text, true)) << text;
      ++compared;
    }
  }
  EXPECT_GT(compared, 1000);
}

TEST(ChatTemplate, TheOpeningIsTheFirstTurnsPrompt) {
  for (const ChatFormat format :
       {ChatFormat::kDeepseekV2, ChatFormat::kDeepseekV25, ChatFormat::kDeepseekV3}) {
    const auto opening = [&](const std::vector<ChatMessage>& messages) {
      return opening_tokens(v3(), format, messages, {});
    };
    const std::vector<ChatMessage> first{system_says("Be kind."), user("How are you?")};
    EXPECT_EQ(opening(first), -1);
    const int64_t tokens = std::ssize(encode_chat(v3(), format, first, {}));
    std::vector<ChatMessage> talk = first;
    for (const char* word : {"Well.", "And you?", "Well."}) {
      talk.push_back(talk.back().role == Role::kUser ? assistant(word) : user(word));
      EXPECT_EQ(opening(talk), tokens) << chat_format_name(format);
    }
    EXPECT_GT(opening({assistant("Hello.")}), 0) << "what comes before it";
  }
}

TEST(ChatTemplate, SaysWhatTheModelLacks) {
  EXPECT_EQ(
      message_of([] { encode_chat(v3(), ChatFormat::kDeepseekR1, std::vector{user("q")}, {}); }),
      "chat format deepseek-r1: token '<think>': not in the tokenizer (--template chooses another "
      "format)");
  const std::string choices =
      message_of([] { chat_format_by_name("x"); }).substr(std::string("chat format: 'x', ").size());
  const std::string tokenizer_json = golden("../text/deepseek-v3.json");
  const auto detect = [&](const Json& config) {
    detect_chat_format(Tokenizer::from_json(tokenizer_json, "tokenizer.json", config.dump()));
  };
  EXPECT_EQ(message_of([&] { detect(Json::object()); }),
            "chat template: the model carries none, " + choices + " (choose with --template)");
  EXPECT_EQ(message_of([&] {
              detect({{"chat_template", "{{ messages }}"}});
            }),
            "chat template: the model's own is none that we know, " + choices +
                " (choose with --template)");
}

}  // namespace
}  // namespace fathom
