// Token shards: what is written comes back, cut and held out as promised, and nothing damaged is
// trained on.
#include "train/shards.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <map>
#include <set>

#include "base/error.h"
#include "formats/safetensors.h"
#include "tests/base/test_files.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kTokenizer = 17;

// Document d holds 1 + d % 50 tokens d * 100, d * 100 + 1, ...
std::vector<int32_t> numbered(int32_t d) {
  std::vector<int32_t> tokens;
  for (int32_t t = 0; t <= d % 50; ++t) tokens.push_back(d * 100 + t);
  return tokens;
}

ShardCounts write_numbered(const fs::path& folder, int32_t documents,
                           int64_t tokens_per_file = 300) {
  ShardWriter writer(folder, kTokenizer, tokens_per_file);
  for (int32_t d = 0; d < documents; ++d) writer.add(numbered(d));
  return writer.finish();
}

std::unique_ptr<DocumentSource> open_split(const fs::path& folder, Split split = Split::kTrain) {
  return shard_documents(open_shards(folder, kTokenizer, 10'000), 20, 1, split);
}

// All documents of the first epoch.
std::vector<std::vector<int32_t>> epoch(const DocumentSource& source) {
  std::vector<std::vector<int32_t>> all;
  std::set<int32_t> seen;
  Document d;
  for (uint64_t i = 0;; ++i) {
    source.document(i, d);
    if (!seen.insert(d.tokens[0]).second) return all;
    EXPECT_EQ(d.learned, std::vector<bool>(d.tokens.size(), true));
    all.push_back(d.tokens);
  }
}

std::string refusal(const fs::path& folder, uint64_t tokenizer = kTokenizer,
                    int64_t vocab = 10'000) {
  return error_of(
      [&] { shard_documents(open_shards(folder, tokenizer, vocab), 20, 1, Split::kTrain); },
      ExitCode::kBadInput);
}

TEST(Shards, EveryTokenIsTrainedOnOnceOrHeldOut) {
  const TempDir folder;
  const ShardCounts counts = write_numbered(folder.path(), 100);
  EXPECT_EQ(counts.documents, 100);
  EXPECT_GT(counts.files, 5);
  std::map<int32_t, int> times;
  for (const Split split : {Split::kTrain, Split::kValidation}) {
    for (const auto& piece : epoch(*open_split(folder.path(), split))) {
      EXPECT_LE(piece.size(), 20u);
      for (size_t t = 0; t < piece.size(); ++t) {
        EXPECT_EQ(piece[t], piece[0] + static_cast<int32_t>(t));  // one stretch of one document
        ++times[piece[t]];
        EXPECT_EQ((piece[t] / 100 + 1) % 20 == 0, split == Split::kValidation);
      }
    }
  }
  for (int32_t d = 0; d < 100; ++d) {
    for (const int32_t id : numbered(d)) {
      // the last token of its document, alone in its piece
      const bool alone = d % 50 % 20 == 0 && id == d * 100 + d % 50;
      EXPECT_EQ(times[id], alone ? 0 : 1) << id;
    }
  }
}

TEST(Shards, EpochsAreOtherPermutations) {
  const TempDir folder;
  write_numbered(folder.path(), 60);
  const auto source = open_split(folder.path());
  const size_t n = epoch(*source).size();
  std::vector<int32_t> first, second;
  Document d;
  for (uint64_t i = 0; i < n; ++i) {
    source->document(i, d);
    first.push_back(d.tokens[0]);
    source->document(i + n, d);
    second.push_back(d.tokens[0]);
  }
  EXPECT_NE(first, second);
  std::sort(first.begin(), first.end());
  std::sort(second.begin(), second.end());
  EXPECT_EQ(first, second);
}

TEST(Shards, OfFewDocumentsTheLastTwentiethIsHeldOut) {
  const TempDir folder;
  ShardWriter writer(folder.path(), kTokenizer);
  std::vector<int32_t> book;
  for (int32_t t = 0; t < 4000; ++t) book.push_back(t);
  writer.add(book);
  writer.finish();
  int32_t highest = 0, lowest = 4000;
  for (const auto& piece : epoch(*open_split(folder.path())))
    highest = std::max(highest, piece.back());
  for (const auto& piece : epoch(*open_split(folder.path(), Split::kValidation)))
    lowest = std::min(lowest, piece.front());
  EXPECT_EQ(highest, 3799);
  EXPECT_EQ(lowest, 3800);
}

TEST(Shards, DamageIsNamed) {
  const TempDir folder;
  write_numbered(folder.path(), 40);
  const fs::path shard = folder.path() / "shard-00001.safetensors", away = folder.path() / "away";
  const auto size = fs::file_size(shard);
  EXPECT_NE(refusal(folder.path(), kTokenizer + 1).find("shards.json: tokenizer: found"),
            std::string::npos);
  EXPECT_NE(refusal(folder.path(), kTokenizer, 3000).find("expected 0 to 2999"), std::string::npos);

  fs::copy_file(shard, away);
  std::fstream(shard, std::ios::in | std::ios::out | std::ios::binary)
      .seekp(static_cast<std::streamoff>(size) - 3)
      .put('\x7f');
  EXPECT_NE(refusal(folder.path()).find("shard-00001.safetensors: its content has changed"),
            std::string::npos);
  fs::resize_file(shard, size - 4);
  EXPECT_NE(refusal(folder.path()).find(fmt::format("{} bytes, expected {}", size - 4, size)),
            std::string::npos);
  fs::remove(shard);
  EXPECT_NE(refusal(folder.path()).find("shard-00001.safetensors"), std::string::npos);
  fs::create_directory(shard);  // there, but not to be read
  EXPECT_NE(refusal(folder.path()).find("shard-00001.safetensors"), std::string::npos);
  fs::remove(shard);
  fs::rename(away, shard);
  EXPECT_NO_THROW(open_split(folder.path()));

  std::ofstream(folder.path() / "shards.json")
      << R"({"tokenizer": "0000000000000011", "files": []})";
  EXPECT_NE(refusal(folder.path()).find("files: expected an array of 1"), std::string::npos);
  fs::remove(folder.path() / "shards.json");
  EXPECT_NE(refusal(folder.path()).find("shards.json"), std::string::npos);
}

TEST(Shards, AFileOfAnotherShapeIsNamed) {
  const TempDir folder;
  const std::vector<int32_t> tokens = {1, 2, 3, 4};
  const std::vector<int64_t> ends = {4}, falling = {3, 2}, beyond = {5};
  const TensorToWrite good{"tokens", DType::kI32, {4}, std::as_bytes(std::span(tokens))};
  const TensorToWrite good_ends{"ends", DType::kI64, {1}, std::as_bytes(std::span(ends))};
  const auto refused = [&](std::vector<TensorToWrite> tensors) {
    const FileDigest digest = write_safetensors(folder / "shard-00000.safetensors", tensors);
    folder.write("shards.json",
                 fmt::format(R"({{"tokenizer": "{}", "files": [{{"bytes": {}, "hash": "{}"}}]}})",
                             hash_text(kTokenizer), digest.bytes, hash_text(digest.hash)));
    return refusal(folder.path());
  };
  EXPECT_NE(refused({good_ends}).find("tensor 'tokens': missing"), std::string::npos);
  EXPECT_NE(refused({good_ends, {"tokens", DType::kU32, {4}, good.data}})
                .find("tensor 'tokens': found U32 with 1 dimensions, expected I32 with 1"),
            std::string::npos);
  EXPECT_NE(refused({good_ends, {"tokens", DType::kI32, {2, 2}, good.data}})
                .find("found I32 with 2 dimensions"),
            std::string::npos);
  EXPECT_NE(refused({{"ends", DType::kI64, {2}, std::as_bytes(std::span(falling))}, good})
                .find("tensor 'ends': found 2 after 3"),
            std::string::npos);
  EXPECT_NE(refused({{"ends", DType::kI64, {1}, std::as_bytes(std::span(beyond))}, good})
                .find("expected rising numbers up to 4"),
            std::string::npos);
}

TEST(Shards, AnUnfinishedFolderIsNothingAndAFinishedOneIsNotOverwritten) {
  const TempDir folder;
  {
    ShardWriter writer(folder.path(), kTokenizer, 10);
    for (int32_t d = 0; d < 30; ++d) writer.add(numbered(d));
  }
  EXPECT_NE(refusal(folder.path()).find("shards.json"), std::string::npos);
  write_numbered(folder.path(), 40);
  EXPECT_NO_THROW(open_split(folder.path()));
  EXPECT_FALSE(std::filesystem::exists(folder / "shard-00020.safetensors"));  // the first writer's
  EXPECT_NE(error_of([&] { ShardWriter(folder.path(), kTokenizer); }, ExitCode::kBadInput)
                .find("holds token shards already"),
            std::string::npos);
}

TEST(Shards, TooLittleTextIsRefused) {
  const TempDir folder, empty;
  ShardWriter writer(folder.path(), kTokenizer);
  writer.add(std::vector<int32_t>{5});
  writer.finish();
  EXPECT_NE(refusal(folder.path()).find("1 documents of 1 tokens in all, expected more"),
            std::string::npos);
  EXPECT_NE(error_of([&] { ShardWriter(empty.path(), kTokenizer).finish(); }, ExitCode::kBadInput)
                .find("no document to write"),
            std::string::npos);
}

}  // namespace
}  // namespace fathom
