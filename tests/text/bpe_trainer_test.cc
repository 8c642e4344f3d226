// Merges against a plain trainer that recounts all pairs for each merge; files against the
// tokenizer that reads them.
#include "text/bpe_trainer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>

#include "base/random.h"
#include "base/utf8.h"
#include "tests/base/test_files.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace fathom {
namespace {

using Merges = std::vector<std::pair<int32_t, int32_t>>;

constexpr int32_t id_of(char byte) { return kSpecialTokens + static_cast<unsigned char>(byte); }

TrainedBpe trained_on(std::string_view text, int64_t vocab_size) {
  BpeTrainer trainer(vocab_size);
  trainer.add(text, "text");
  return trainer.train();
}

Tokenizer tokenizer_of(const TrainedBpe& trained) {
  return Tokenizer::from_json(tokenizer_json(trained), "tokenizer.json", tokenizer_config_json());
}

uint64_t draw(uint64_t seed, uint64_t position, uint64_t below) {
  return random_bits({seed, RandomPurpose::kTest, 0}, position) % below;
}

std::string random_bytes(uint64_t seed, size_t size) {
  std::string bytes;
  for (size_t i = 0; i < size; ++i) bytes += static_cast<char>(draw(seed, i, 256));
  return bytes;
}

// Of few different things, so that pairs repeat, tie and overlap.
std::string random_text(uint64_t seed) {
  constexpr const char* kParts[] = {"a",  "a", "a", "b",  "ab", "aa", " ",    " ",
                                    "\n", "7", ".", "猫", "が", "é",  "\xff", "e\u0301"};
  std::string text;
  const uint64_t parts = 1 + draw(seed, 0, 300);
  for (uint64_t i = 1; i <= parts; ++i) text += kParts[draw(seed, i, std::size(kParts))];
  return text;
}

// Every piece of the text with its copies; all pairs counted anew for each merge.
TrainedBpe plain_train(std::string_view text, int64_t vocab_size) {
  std::vector<std::vector<int32_t>> pieces;
  for (const std::string_view piece : split(text, splitters_by_gguf_name("deepseek-v3").value())) {
    std::vector<int32_t>& ids = pieces.emplace_back();
    for (const char c : piece) ids.push_back(id_of(c));
  }
  TrainedBpe trained;
  while (trained.vocab_size() < vocab_size) {
    std::map<std::pair<int32_t, int32_t>, int64_t> counts;
    for (const auto& ids : pieces) {
      for (size_t i = 0; i + 1 < ids.size(); ++i) ++counts[{ids[i], ids[i + 1]}];
    }
    const auto best = std::ranges::max_element(
        counts, {}, [](const auto& entry) { return entry.second; });  // the first of equals
    if (best == counts.end() || best->second < 2) break;
    const auto pair = best->first;
    const auto id = static_cast<int32_t>(trained.vocab_size());
    for (auto& ids : pieces) {
      std::vector<int32_t> merged;
      for (size_t i = 0; i < ids.size(); ++i) {
        const bool match = i + 1 < ids.size() && ids[i] == pair.first && ids[i + 1] == pair.second;
        merged.push_back(match ? id : ids[i]);
        i += match;
      }
      ids = merged;
    }
    trained.merges.push_back(pair);
  }
  for (const auto& ids : pieces) trained.text_tokens += ids.size();
  return trained;
}

TEST(BpeTrainer, MergesOfACorpusWorkedByHand) {
  // Pieces: "low" once, " low" twice, " lower" twice, " newest" three times. Ties go to the smaller
  // ids: bytes before merges.
  const TrainedBpe trained =
      trained_on("low low low lower lower newest newest newest", kFirstMerge + 8);
  const int32_t lo = kFirstMerge, we = kFirstMerge + 1, space_n = kFirstMerge + 3,
                ewe = kFirstMerge + 4, st = kFirstMerge + 5;
  const Merges expected = {
      {id_of('l'), id_of('o')},  // 5, as many as (o, w) and (w, e)
      {id_of('w'), id_of('e')},  // 5, as many as (lo, w)
      {id_of(' '), lo},          // 4
      {id_of(' '), id_of('n')},  // 3, as all that follow
      {id_of('e'), we},         {id_of('s'), id_of('t')}, {space_n, ewe}, {kFirstMerge + 6, st},
  };
  EXPECT_EQ(trained.merges, expected);
}

TEST(BpeTrainer, MergesAreThoseOfAPlainTrainer) {
  for (uint64_t seed = 0; seed < 400; ++seed) {
    const std::string text = random_text(seed);
    const int64_t vocab_size = kFirstMerge + static_cast<int64_t>(draw(seed, 1000, 60));
    const TrainedBpe trained = trained_on(text, vocab_size), plain = plain_train(text, vocab_size);
    ASSERT_EQ(trained.merges, plain.merges) << "seed " << seed << ": " << quoted(text);
    EXPECT_EQ(trained.text_tokens, plain.text_tokens);
    EXPECT_EQ(trained.text_bytes, text.size());
  }
}

TEST(BpeTrainer, TheTokenizerReadsItAndCutsTheTrainingTextAlike) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    const std::string text = random_text(seed);
    const TrainedBpe trained = trained_on(text, kFirstMerge + 500);
    const Tokenizer tokenizer = tokenizer_of(trained);
    EXPECT_EQ(tokenizer.vocab_size(), trained.vocab_size());
    EXPECT_EQ(tokenizer.encode(text, false).size(), trained.text_tokens) << "seed " << seed;
  }
}

TEST(BpeTrainer, AnyBytesComeBack) {
  std::string text =
      "The cat sat. 猫は座った。 The cat sat. 猫は座った。<think> <｜User｜> </think>\n";
  text += random_bytes(1, 2000);
  const Tokenizer tokenizer = tokenizer_of(trained_on(text + text, 400));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, false)), text);
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, true)), text);
  for (uint64_t seed = 2; seed < 100; ++seed) {
    const std::string bytes = random_bytes(seed, seed * 7);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(bytes, false)), bytes) << "seed " << seed;
  }
}

TEST(BpeTrainer, SpeaksR1sPromptFormatInV3sPieces) {
  const Tokenizer tokenizer = tokenizer_of(trained_on("abab <think>abab</think> <think>", 300));
  EXPECT_EQ(detect_chat_format(tokenizer), ChatFormat::kDeepseekR1);
  EXPECT_EQ(tokenizer.gguf_pre_tokenizer(), "deepseek-v3");
  EXPECT_EQ(tokenizer.bos_id(), 0);
  EXPECT_EQ(tokenizer.eos_ids(), std::vector<int32_t>{1});
  EXPECT_EQ(tokenizer.encode("<think>", true), std::vector<int32_t>{5});
  EXPECT_GT(tokenizer.encode("<think>", false).size(), 1u);
  EXPECT_EQ(tokenizer.find("\n"), id_of('\n'));
}

TEST(BpeTrainer, EqualTextsGiveEqualFilesInWhateverOrder) {
  BpeTrainer forward(400), again(400), backward(400);
  for (uint64_t i = 0; i < 50; ++i) {
    forward.add(random_text(i), "text");
    again.add(random_text(i), "text");
    backward.add(random_text(49 - i), "text");
  }
  const std::string file = tokenizer_json(forward.train());
  EXPECT_EQ(tokenizer_json(again.train()), file);
  EXPECT_EQ(tokenizer_json(forward.train()), file);
  EXPECT_EQ(tokenizer_json(backward.train()), file);
}

TEST(BpeTrainer, ALongTextIsCutWhereNoPieceIs) {
  constexpr const char* kLines[] = {"word ?\n", "\n",         " \n",      "\u3000猫\n",
                                    "\t\r\n",   "x = 1;\r\n", "\u00a0\n", "...\n"};
  for (uint64_t seed = 0; seed < 4; ++seed) {  // two or three chunks each
    std::string text;
    for (uint64_t i = 0; text.size() < 5 << 19; ++i)
      text += kLines[draw(seed, i, std::size(kLines))];
    const TrainedBpe trained = trained_on(text, kFirstMerge + 200);
    EXPECT_EQ(tokenizer_of(trained).encode(text, false).size(), trained.text_tokens)
        << "seed " << seed;
  }
}

TEST(BpeTrainer, ALongLineIsCutBetweenCharacters) {
  std::string text;
  while (text.size() < 17 << 20) text += "猫";
  const TrainedBpe trained = trained_on(".." + text, kFirstMerge + 2);
  EXPECT_EQ(trained.text_tokens, 2 + text.size() / 3);
}

TEST(BpeTrainer, StopsWhenNoPairOccursTwice) {
  EXPECT_EQ(trained_on("abcdefg", 1000).vocab_size(), kFirstMerge);
  EXPECT_EQ(trained_on("", 1000).vocab_size(), kFirstMerge);
  EXPECT_EQ(trained_on("xy xy", 1000).merges, (Merges{{id_of('x'), id_of('y')}}));
  EXPECT_EQ(trained_on("aaa", 1000).merges, (Merges{{id_of('a'), id_of('a')}}));
}

TEST(BpeTrainer, MergesStayWithinPieces) {
  std::string text;
  for (int i = 0; i < 10; ++i) text += "one, 1234 two\n";
  const Tokenizer tokenizer = tokenizer_of(trained_on(text, 1000));
  EXPECT_FALSE(tokenizer.find("1234"));
  EXPECT_FALSE(tokenizer.find("one,"));
  EXPECT_TRUE(tokenizer.find("123"));
  EXPECT_TRUE(tokenizer.find(" two"));
  EXPECT_TRUE(tokenizer.find("one"));
}

TEST(BpeTrainer, NoTokenIsLongerThanTheLimit) {
  const TrainedBpe trained = trained_on(std::string(100'000, 'a'), 1000);
  const Tokenizer tokenizer = tokenizer_of(trained);
  size_t longest = 0;
  for (int32_t id = kFirstMerge; id < tokenizer.vocab_size(); ++id)
    longest = std::max(longest, tokenizer.token_bytes(id).size());
  EXPECT_EQ(longest, kMaxTrainedTokenBytes);
}

TEST(BpeTrainer, VocabulariesTooSmallOrTooLargeAreRefused) {
  EXPECT_EQ(error_of([] { BpeTrainer trainer(kFirstMerge - 1); }),
            "vocabulary: found 262 tokens, expected 263 (7 special ones and the bytes) to 1000000");
  EXPECT_NE(error_of([] { BpeTrainer trainer(kMaxTrainedVocabulary + 1); }).find("found 1000001"),
            std::string::npos);
  BpeTrainer smallest(kFirstMerge), largest(kMaxTrainedVocabulary);
  smallest.add("aa aa", "text");
  EXPECT_EQ(smallest.train().vocab_size(), kFirstMerge);
}

TEST(BpeTrainer, PiecesAreRefusedOneAboveTheirLimits) {
  Limits limits;
  limits.trained_pieces = 2;
  BpeTrainer two(300, limits);
  two.add("aa aa aa", "x.txt");
  EXPECT_EQ(error_of([&] { two.add("b", "y.txt"); }),
            "y.txt: 3 different pieces of 6 bytes up to here, expected at most 2 of 134217728 "
            "(train on a part of the text)");
  limits = {};
  limits.trained_piece_bytes = 5;
  BpeTrainer five(300, limits);
  five.add("aa aa aa", "x.txt");
  EXPECT_NE(error_of([&] { five.add("b", "y.txt"); }).find("of 6 bytes"), std::string::npos);
}

TEST(BpeTrainer, AFileThatNobodyWouldReadIsRefused) {
  const TrainedBpe trained = trained_on("abab", 300);
  const size_t size = tokenizer_json(trained).size();
  EXPECT_EQ(tokenizer_json(trained, size).size(), size);
  EXPECT_NE(error_of([&] { tokenizer_json(trained, size - 1); }).find("expected at most"),
            std::string::npos);
}

}  // namespace
}  // namespace fathom
