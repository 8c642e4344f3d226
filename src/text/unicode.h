// What a code point is, and NFC. Unicode 16, as the tokenizers have it whose vocabularies we read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fathom {

// The classes that pre-tokenisers ask for: \s is White_Space, the others are general categories
// \p{L} \p{M} \p{N} \p{P} \p{S}; no code point is in two of them.
enum class CharClass : uint8_t { kOther, kSpace, kLetter, kMark, kNumber, kPunctuation, kSymbol };
CharClass char_class(uint32_t code_point);

// Normalisation form C. Ill-formed bytes stay as they are, and nothing composes across them.
std::string to_nfc(std::string_view text);

}  // namespace fathom
