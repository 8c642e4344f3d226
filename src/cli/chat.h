// The conversation in a terminal.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "cli/run.h"

namespace fathom {

int run_chat(Session& session);

// A line that begins with a slash, taken apart: "/set temp 0.5" -> name "set", argument "temp 0.5".
// All spellings of a command give one name ("bye", "exit", "quit" -> "exit"); an unknown one gives
// "".
struct SlashCommand {
  std::string name;
  std::string argument;
};
SlashCommand parse_slash(std::string_view line);

// Saved conversations: {"messages": [{"role", "content", "reasoning_content"?}]}, as read_message()
// and training take them. Throws on anything else.
std::string conversation_text(std::span<const ChatMessage> messages);
std::vector<ChatMessage> parse_conversation(std::string_view text, const std::string& place);

}  // namespace fathom
