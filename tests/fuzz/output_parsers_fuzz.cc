// Any text, stop strings and cuts: the streaming parsers give what they give on the whole text.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "text/stop_strings.h"
#include "text/thinking_parser.h"

using namespace fathom;

namespace {

// Thoughts and answer, apart.
std::vector<std::string> parse(const ThinkingMarks& marks,
                               const std::vector<std::string_view>& pieces) {
  ThinkingParser parser(marks);
  std::vector<std::string> texts(2);
  const auto take = [&](const std::vector<OutputPart>& parts) {
    for (const OutputPart& part : parts) texts[part.thought] += part.text;
  };
  for (const std::string_view piece : pieces) take(parser.push(piece));
  take(parser.finish());
  return texts;
}

std::string stop(const std::vector<std::string>& stops,
                 const std::vector<std::string_view>& pieces) {
  StopStrings matcher(stops);
  std::string text;
  for (const std::string_view piece : pieces) text += matcher.push(piece);
  text += matcher.finish();
  return text + (matcher.stopped() ? "|" : "");
}

}  // namespace

// One byte each: flags, how text is cut, lengths of two stop strings; then these; the rest is the
// text.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  const auto byte = [&] {
    const uint8_t first = rest.empty() ? 0 : static_cast<uint8_t>(rest[0]);
    rest.remove_prefix(rest.empty() ? 0 : 1);
    return first;
  };
  const bool open = byte() % 2 != 0;
  const size_t step = 1 + byte() % 9;
  std::vector<std::string> stops;
  for (int i = 0; i < 2; ++i) {
    const std::string text(rest.substr(0, byte() % 8));
    rest.remove_prefix(text.size());
    if (!text.empty()) stops.push_back(text);
  }
  std::vector<std::string_view> pieces;
  for (size_t i = 0; i < rest.size(); i += step) pieces.push_back(rest.substr(i, step));
  const ThinkingMarks marks{"<think>", "</think>", open};
  FATHOM_CHECK(parse(marks, pieces) == parse(marks, {rest}));
  FATHOM_CHECK(stop(stops, pieces) == stop(stops, {rest}));
  return 0;
}
