// Pieces of each splitter; what the expressions say is checked at large by tokenizer_oracle_test,
// here case by case.
#include "text/pretokenizer.h"

#include <gtest/gtest.h>

#include <ctime>
#include <string>

#include "base/random.h"
#include "text/unicode.h"

namespace fathom {
namespace {

using enum Splitter;

std::vector<std::string> pieces(std::string_view text, std::initializer_list<Splitter> splitters) {
  std::vector<std::string> out;
  for (const std::string_view piece : split(text, std::vector(splitters))) out.emplace_back(piece);
  return out;
}
using Pieces = std::vector<std::string>;

TEST(PreTokenizer, EmptyTextHasNoPieces) { EXPECT_EQ(pieces("", {kDeepseekV3}), Pieces{}); }

TEST(PreTokenizer, Gpt2KeepsASpaceWithItsWord) {
  EXPECT_EQ(pieces("Hello  world's 42nd\n", {kGpt2}),
            (Pieces{"Hello", " ", " world", "'s", " 42", "nd", "\n"}));
  EXPECT_EQ(pieces("I'LL we'll", {kGpt2}), (Pieces{"I", "'", "LL", " we", "'ll"}));
  EXPECT_EQ(pieces(" ... \t", {kGpt2}), (Pieces{" ...", " \t"}));
}

TEST(PreTokenizer, SmolLmCutsEveryDigitFirst) {
  EXPECT_EQ(pieces("in 2024", {kDigit, kGpt2}), (Pieces{"in", " ", "2", "0", "2", "4"}));
}

TEST(PreTokenizer, Llama3TakesContractionsInAnyCaseAndThreeDigits) {
  EXPECT_EQ(pieces("I'LL don't 1234567", {kLlama3}),
            (Pieces{"I", "'LL", " don", "'t", " ", "123", "456", "7"}));
  // the long s folds to s
  EXPECT_EQ(pieces("x'\u017fy", {kLlama3}), (Pieces{"x", "'\u017f", "y"}));
  EXPECT_EQ(pieces("a\n\n  b();\r\n", {kLlama3}), (Pieces{"a", "\n\n", " ", " b", "();\r\n"}));
}

TEST(PreTokenizer, Qwen2DiffersFromLlama3InDigitsOnly) {
  EXPECT_EQ(pieces("I'LL 123", {kQwen2}), (Pieces{"I", "'LL", " ", "1", "2", "3"}));
}

TEST(PreTokenizer, DeepseekV3IsolatesDigitsAndCjkFirst) {
  EXPECT_EQ(pieces("has 1234 days", {kDigits3, kCjkKana, kDeepseekV3}),
            (Pieces{"has", " ", "123", "4", " days"}));
  EXPECT_EQ(pieces("你好，world", {kDigits3, kCjkKana, kDeepseekV3}),
            (Pieces{"你好", "，", "world"}));
  EXPECT_EQ(pieces("don't _name .x", {kDeepseekV3}),
            (Pieces{"don", "'t", " _", "name", " .", "x"}));
  EXPECT_EQ(pieces("/path _x\n", {kDeepseekV3}), (Pieces{"/path", " _", "x", "\n"}));
  EXPECT_EQ(pieces("e\u0301t\u00e9 a\u0301", {kDeepseekV3}),
            (Pieces{"e\u0301t\u00e9", " a\u0301"}));
  EXPECT_EQ(pieces("foo   bar  \n  ", {kDeepseekV3}), (Pieces{"foo", "  ", " bar", "  \n", "  "}));
}

TEST(PreTokenizer, DeepseekLlmSplitsItsWordsOnceMoreAtNonAsciiLetters) {
  // The range :-~ of the punctuation step holds the ASCII letters: the published expression, odd as
  // it is.
  EXPECT_EQ(pieces("Größe x", {kLineBreak, kCasedLetters, kAsciiPunctuation, kTrailingSpace,
                               kCjkHangul, kDigit}),
            (Pieces{"Gr", "öß", "e", " x"}));
  EXPECT_EQ(pieces("a \n\n 한국 12 ", {kLineBreak, kCasedLetters, kAsciiPunctuation, kTrailingSpace,
                                       kCjkHangul, kDigit}),
            (Pieces{"a", " ", "\n", "\n", " ", "한국", " ", "1", "2", " "}));
}

TEST(PreTokenizer, DeepseekCoderTakesAnyLettersAndPunctuation) {
  EXPECT_EQ(pieces("int x=7; // é\n", {kLineBreak, kLetters, kPunctuation, kCjkHangul, kDigit}),
            (Pieces{"int", " x", "=", "7", ";", " //", " é", "\n"}));
}

TEST(PreTokenizer, TrailingSpaceEndsBeforeANewline) {
  EXPECT_EQ(pieces("a  \n b  ", {kTrailingSpace}), (Pieces{"a", "  ", "\n b", "  "}));
  EXPECT_EQ(pieces(" \n \n x", {kTrailingSpace}), (Pieces{" \n ", "\n x"}));
}

TEST(PreTokenizer, WhiteSpaceIsUnicodeWhiteSpace) {
  // U+0085 is, U+FEFF and U+001C are not: Oniguruma, unlike JavaScript and Python.
  EXPECT_EQ(pieces("a\u0085 b", {kGpt2}), (Pieces{"a", "\u0085", " b"}));
  EXPECT_EQ(pieces("a\ufeff b", {kGpt2}), (Pieces{"a", "\ufeff", " b"}));
  EXPECT_EQ(char_class(0x85), CharClass::kSpace);
  EXPECT_EQ(char_class(0xfeff), CharClass::kOther);
  EXPECT_EQ(char_class(0x1c), CharClass::kOther);
}

TEST(PreTokenizer, IllFormedBytesAreSymbolsAndKeepTheirBytes) {
  EXPECT_EQ(pieces("a\xff\xfe b\xe4\xbd", {kDeepseekV3}),
            (Pieces{"a", "\xff\xfe", " b", "\xe4\xbd"}));
}

TEST(PreTokenizer, PiecesJoinedAreTheTextForAnyBytes) {
  const std::vector<Splitter> all = {kGpt2,         kLlama3,           kQwen2,         kDigit,
                                     kDigits3,      kLineBreak,        kLetters,       kPunctuation,
                                     kCasedLetters, kAsciiPunctuation, kTrailingSpace, kCjkHangul,
                                     kCjkKana,      kDeepseekV3};
  const std::string_view alphabet[] = {" ",      "\n", "\r", "a",  "B",    "'s",       "1", "é",
                                       "\u0301", "你", "。", "한", "\xff", "\xe4\xbd", "😀", "!"};
  for (uint64_t round = 0; round < 300; ++round) {
    const RandomKey key{1, RandomPurpose::kTest, round};
    std::string text;
    for (uint64_t i = 0; i < round % 40; ++i)
      text += alphabet[random_bits(key, i) % std::size(alphabet)];
    for (const Splitter splitter : all) {
      std::string joined;
      for (const std::string_view piece : split(text, std::vector{splitter})) {
        EXPECT_FALSE(piece.empty());
        joined += piece;
      }
      EXPECT_EQ(joined, text);
    }
  }
}

TEST(PreTokenizer, TimeIsLinear) {
  // of the processor: other work on the machine does not count
  const std::clock_t begin = std::clock();
  for (const std::string_view unit : {" ", "\n", "a", "1", "'", "\u3000", "你", " \n", "  a"}) {
    std::string text;
    while (text.size() < 500'000) text += unit;
    text += 'x';
    for (int s = 0; s <= static_cast<int>(kDeepseekV3); ++s) split(text, std::vector{Splitter(s)});
  }
  // seconds; quadratic would be many minutes
  EXPECT_LT((std::clock() - begin) / CLOCKS_PER_SEC, 100);
}

TEST(PreTokenizer, ExpressionsAreKnownInBothSpellings) {
  EXPECT_EQ(splitter_by_regex("[\r\n]"), kLineBreak);
  EXPECT_EQ(splitter_by_regex("[\\r\\n]"), kLineBreak);
  EXPECT_EQ(splitter_by_regex("\\p{N}{1,3}"), kDigits3);
  EXPECT_EQ(splitter_by_regex("[一-龥\u3040-ゟ゠-ヿ]+"), kCjkKana);
  EXPECT_EQ(splitter_by_regex("\\p{N}{1,4}"), std::nullopt);
  EXPECT_EQ(splitter_by_regex(""), std::nullopt);
  for (int i = 0; i <= static_cast<int>(kDeepseekV3); ++i) {
    const auto splitter = static_cast<Splitter>(i);
    EXPECT_EQ(splitter_by_regex(regex_of(splitter)), splitter) << i;
  }
}

TEST(PreTokenizer, GgufNamesAreKnownExactly) {
  for (const char* name : {"deepseek-llm", "deepseek-coder", "deepseek-v3", "joyai-llm", "qwen2",
                           "deepseek-r1-qwen", "llama-bpe", "smollm", "gpt-2", "default"}) {
    EXPECT_TRUE(splitters_by_gguf_name(name)) << name;
  }
  EXPECT_EQ(splitters_by_gguf_name("joyai-llm"), splitters_by_gguf_name("deepseek-v3"));
  EXPECT_FALSE(splitters_by_gguf_name("DeepSeek-V3"));
  EXPECT_FALSE(splitters_by_gguf_name("kimi-k2"));
}

}  // namespace
}  // namespace fathom
