// UTF-8, decoded by hand because input may be invalid anywhere and must never be guessed at (RFC
// 3629: no overlong forms, no surrogates, nothing above U+10FFFF).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace fathom {

struct Utf8Char {
  uint32_t code_point;  // U+FFFD if !valid
  uint32_t bytes;       // consumed; if !valid the length of the maximal ill-formed prefix (Unicode
                        // §3.9), at least 1
  bool valid;
  bool incomplete;  // !valid only because the text ended: more bytes could make it valid
};

// First character of `text`. REQUIRES: text is not empty.
Utf8Char decode_utf8(std::string_view text);

// Appends the encoding of a scalar value. REQUIRES: code_point <= 0x10FFFF and not a surrogate.
void append_utf8(uint32_t code_point, std::string& out);

// `text` with every maximal ill-formed prefix replaced by U+FFFD.
std::string replace_invalid_utf8(std::string_view text);

bool is_valid_utf8(std::string_view text);

}  // namespace fathom
