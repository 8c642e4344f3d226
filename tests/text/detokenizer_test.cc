#include "text/detokenizer.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/random.h"
#include "base/utf8.h"

namespace fathom {
namespace {

Tokenizer small_tokenizer() {
  return Tokenizer::from_json(read_file(FATHOM_SOURCE_DIR "/tests/golden/text/gpt2.json", 1 << 20),
                              "gpt2.json");
}

// One token per byte.
std::vector<int32_t> byte_ids(const Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(tokenizer.find(std::string(1, c)).value());
  return ids;
}

TEST(Detokenizer, HoldsBackUnfinishedCharacters) {
  const Tokenizer tokenizer = small_tokenizer();
  Detokenizer detokenizer(tokenizer);
  std::vector<std::string> parts;
  for (const int32_t id : byte_ids(tokenizer, "a\u00e9\u4f60\U0001f600b"))
    parts.push_back(detokenizer.push(id));
  EXPECT_EQ(parts, (std::vector<std::string>{"a", "", "\u00e9", "", "", "\u4f60", "", "", "",
                                             "\U0001f600", "b"}));
  EXPECT_EQ(detokenizer.finish(), "");
}

TEST(Detokenizer, BytesThatCannotBecomeACharacterDoNotWait) {
  const Tokenizer tokenizer = small_tokenizer();
  Detokenizer detokenizer(tokenizer);
  std::string text;
  for (const int32_t id : byte_ids(tokenizer, "\xff\xe4")) text += detokenizer.push(id);
  EXPECT_EQ(text, "\ufffd");
  EXPECT_EQ(detokenizer.push(byte_ids(tokenizer, "x")[0]), "\ufffdx");
}

TEST(Detokenizer, FinishReplacesWhatWasHeldBackOnce) {
  const Tokenizer tokenizer = small_tokenizer();
  Detokenizer detokenizer(tokenizer);
  std::string text;
  for (const int32_t id : byte_ids(tokenizer, "\xf0\x9f\x98")) text += detokenizer.push(id);
  EXPECT_EQ(text, "");
  EXPECT_EQ(detokenizer.finish(), "\ufffd");
  EXPECT_EQ(detokenizer.finish(), "");
}

TEST(Detokenizer, IdsWithoutATokenAddNothing) {
  const Tokenizer tokenizer = small_tokenizer();
  Detokenizer detokenizer(tokenizer);
  for (const int32_t id : {-1, INT32_MIN, INT32_MAX, tokenizer.vocab_size()})
    EXPECT_EQ(detokenizer.push(id), "");
}

TEST(Detokenizer, PartsJoinToTheDecodedTextForAnyIds) {
  const Tokenizer tokenizer = small_tokenizer();
  for (uint64_t round = 0; round < 2000; ++round) {
    const RandomKey key{2, RandomPurpose::kTest, round};
    std::vector<int32_t> ids;
    const int32_t range = round % 2 == 0 ? 256 : tokenizer.vocab_size();
    for (uint64_t i = 0; i < 1 + round % 20; ++i)
      ids.push_back(static_cast<int32_t>(random_bits(key, i) % uint64_t(range)));
    Detokenizer detokenizer(tokenizer);
    std::string text;
    for (const int32_t id : ids) {
      const std::string part = detokenizer.push(id);
      EXPECT_TRUE(is_valid_utf8(part));
      text += part;
    }
    text += detokenizer.finish();
    EXPECT_EQ(text, replace_invalid_utf8(tokenizer.decode(ids)));
  }
}

}  // namespace
}  // namespace fathom
