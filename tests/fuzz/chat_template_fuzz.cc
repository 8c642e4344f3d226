// Any bytes as a conversation: rendering never fails but by fathom::Error, and what is special does
// not depend on contents.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "text/chat_template.h"

using namespace fathom;

namespace {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : rest_(reinterpret_cast<const char*>(data), size) {}
  bool empty() const { return rest_.empty(); }
  uint8_t byte() {
    if (rest_.empty()) return 0;
    const uint8_t first = static_cast<uint8_t>(rest_[0]);
    rest_.remove_prefix(1);
    return first;
  }
  std::string text() {
    const std::string taken(rest_.substr(0, byte() % 32));
    rest_.remove_prefix(std::min(rest_.size(), taken.size()));
    return taken;
  }

 private:
  std::string_view rest_;
};

std::vector<std::string> specials(const std::vector<PromptPiece>& pieces) {
  std::vector<std::string> texts;
  for (const PromptPiece& piece : pieces) {
    FATHOM_CHECK(!piece.text.empty());
    if (piece.special) texts.push_back(piece.text);
  }
  return texts;
}

void blank(std::vector<ChatMessage>& messages) {
  for (ChatMessage& message : messages) {
    message.content.clear();
    message.reasoning.clear();
    for (ToolCall& call : message.tool_calls) call = {};
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  detect_chat_format(std::string_view(reinterpret_cast<const char*>(data), size),
                     static_cast<int32_t>(size));
  Bytes in(data, size);
  try {
    chat_format_by_name(in.text());
  } catch (const Error&) {
  }
  const auto format =
      static_cast<ChatFormat>(in.byte() % (static_cast<int>(ChatFormat::kQwen2) + 1));
  const uint8_t flags = in.byte();
  const ChatOptions options{(flags & 1) != 0, (flags & 2) != 0};
  std::vector<ChatMessage> messages;
  while (!in.empty()) {
    ChatMessage& message = messages.emplace_back();
    const uint8_t kind = in.byte();
    message.role = static_cast<ChatMessage::Role>(kind % 4);
    message.content = in.text();
    if (kind & 4) message.reasoning = in.text();
    for (int calls = kind >> 6; calls > 0; --calls) {
      std::string name = in.text();
      message.tool_calls.push_back({std::move(name), in.text()});
    }
  }
  try {
    const std::vector<std::string> found = specials(render_chat(format, messages, options));
    blank(messages);
    FATHOM_CHECK(found == specials(render_chat(format, messages, options)));
  } catch (const Error&) {
  }
  return 0;
}
