// Token by token to text, for streaming: never half a character. Bytes that can still become a
// character are held back; bytes that cannot become U+FFFD.
#pragma once

#include <string>

#include "text/tokenizer.h"

namespace fathom {

class Detokenizer {
 public:
  explicit Detokenizer(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
  // The text that this token completes (maybe empty). Valid UTF-8.
  std::string push(int32_t id);
  // What was held back, as U+FFFD; call at the end.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  std::string held_;
};

}  // namespace fathom
