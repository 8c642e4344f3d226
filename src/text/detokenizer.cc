#include "text/detokenizer.h"

#include "base/utf8.h"

namespace fathom {

std::string Detokenizer::push(int32_t id) {
  held_ += tokenizer_->token_bytes(id);
  size_t complete = 0;
  while (complete < held_.size()) {
    const Utf8Char c = decode_utf8(std::string_view(held_).substr(complete));
    if (c.incomplete) break;
    complete += c.bytes;
  }
  const std::string text = replace_invalid_utf8(std::string_view(held_).substr(0, complete));
  held_.erase(0, complete);
  return text;
}

std::string Detokenizer::finish() {
  std::string text = replace_invalid_utf8(held_);
  held_.clear();
  return text;
}

}  // namespace fathom
