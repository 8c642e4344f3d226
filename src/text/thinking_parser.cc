#include "text/thinking_parser.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace fathom {
namespace {

// Length of the longest suffix of `text` that is a proper prefix of `mark`.
size_t partial_mark(std::string_view text, std::string_view mark) {
  size_t length = std::min(text.size(), mark.size() - 1);
  while (!text.ends_with(mark.substr(0, length))) --length;
  return length;
}

void append(std::vector<OutputPart>& parts, bool thought, std::string_view text) {
  if (!text.empty()) parts.push_back({thought, std::string(text)});
}

}  // namespace

ThinkingParser::ThinkingParser(std::optional<ThinkingMarks> marks)
    : begin_(marks ? marks->begin : ""),
      end_(marks ? marks->end : ""),
      at_start_(marks.has_value()),
      in_thought_(marks && marks->prompt_opens) {
  FATHOM_CHECK(!marks || (!begin_.empty() && !end_.empty()));
}

std::vector<OutputPart> ThinkingParser::push(std::string_view piece) {
  held_ += piece;
  std::string_view text = held_;
  if (at_start_) {
    if (text.size() < begin_.size() && begin_.starts_with(text)) return {};
    at_start_ = false;
    if (text.starts_with(begin_)) {
      text.remove_prefix(begin_.size());
      in_thought_ = true;
    }
  }
  std::vector<OutputPart> parts;
  if (in_thought_) {
    const size_t end = text.find(end_);
    in_thought_ = end == std::string_view::npos;
    const size_t settled = in_thought_ ? text.size() - partial_mark(text, end_) : end;
    append(parts, true, text.substr(0, settled));
    text.remove_prefix(in_thought_ ? settled : end + end_.size());
  }
  if (!in_thought_) append(parts, false, std::exchange(text, {}));
  held_ = std::string(text);
  return parts;
}

std::vector<OutputPart> ThinkingParser::finish() {
  std::vector<OutputPart> parts;
  append(parts, in_thought_, held_);
  held_.clear();
  return parts;
}

}  // namespace fathom
