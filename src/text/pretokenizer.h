// Pre-tokenisers: cut text into the pieces inside which BPE may merge.
//
// A pre-tokeniser is a list of splitters. Each one refines every piece that the ones before it
// left: its matches and the gaps between them become pieces (Hugging Face "Isolated"). A splitter
// is one published regular expression, written out by hand: linear time and no regex engine on
// outside text. \s is Unicode White_Space and \p{..} general categories, as in Oniguruma, which
// Hugging Face uses. Ill-formed bytes count as U+FFFD (a symbol) and keep their bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

enum class Splitter : uint8_t {
  kGpt2,  // ByteLevel(use_regex=true)
  kLlama3,
  kQwen2,             // kLlama3 with single digits
  kDigit,             // \p{N}, and Digits(individual_digits=true)
  kDigits3,           // \p{N}{1,3}
  kLineBreak,         // [\r\n]
  kLetters,           // \s?\p{L}+
  kPunctuation,       // \s?\p{P}+
  kCasedLetters,      // \s?[..]+, letters with case as DeepSeek-LLM lists them
  kAsciiPunctuation,  // \s?[!-/:-~..]+; its range :-~ holds the ASCII letters too
  kTrailingSpace,     // \s+$
  kCjkHangul,         // [一-龥ࠀ-一가-퟿]+
  kCjkKana,           // [一-龥぀-ゟ゠-ヿ]+
  kDeepseekV3,        // the last expression of V3
};

// The splitter with exactly this expression, as tokenizer.json spells it (CR and LF literal or
// escaped);
// absent if unknown.
std::optional<Splitter> splitter_by_regex(std::string_view regex);
// The expression of a splitter, CR and LF escaped.
std::string regex_of(Splitter splitter);

// The splitters behind a GGUF `tokenizer.ggml.pre` name; absent if unknown.
std::optional<std::vector<Splitter>> splitters_by_gguf_name(std::string_view name);

// The pieces of `text`, in order; joined they are `text`. None is empty. O(text * splitters).
std::vector<std::string_view> split(std::string_view text, std::span<const Splitter> splitters);

}  // namespace fathom
