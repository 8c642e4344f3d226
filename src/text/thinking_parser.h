// Splits generated text into thought and answer by the marks of its chat format, while it streams.
//
// The parts joined, with the marks put back, are the text as it came: nothing is trimmed and
// nothing fails, whatever the model writes. Joined by label they are the same for every way of
// cutting the stream into pieces.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat_template.h"

namespace fathom {

struct OutputPart {
  bool thought = false;
  std::string text;  // not empty
};

class ThinkingParser {
 public:
  // Without marks everything is answer. With them a begin mark counts at the very start only (a
  // model may repeat the one in its prompt), the first end mark closes the thought, and all later
  // marks are ordinary text of the answer. REQUIRES: the marks are not empty.
  explicit ThinkingParser(std::optional<ThinkingMarks> marks);

  // What the piece settles; only bytes that may still become a mark are held back.
  std::vector<OutputPart> push(std::string_view piece);
  // What was held back. Call once, at the end.
  std::vector<OutputPart> finish();

  bool in_thought() const { return in_thought_; }

 private:
  std::string_view begin_, end_;
  bool at_start_;
  bool in_thought_;
  std::string held_;
};

}  // namespace fathom
