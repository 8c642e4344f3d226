// Token shards: a corpus as token ids on disk, tokenised once and mapped by every run that trains
// on it.
//
//   FOLDER/shard-00000.safetensors ...  tokens I32 [tokens], one document after the other; ends I64 [documents], where each one ends
//   FOLDER/shards.json                  counts, size and hash of each file, and the hash of the tokenizer; written last: without it
//                                       the folder is nothing
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file.h"
#include "train/data.h"

namespace fathom {

struct ShardCounts {
  int64_t documents = 0, tokens = 0, files = 0;
};

class ShardWriter {
 public:
  // `tokenizer` identifies it: whoever trains must name the same. Throws if the folder holds
  // finished shards; those of a writer that did not finish are replaced.
  ShardWriter(const std::filesystem::path& folder, uint64_t tokenizer,
              int64_t tokens_per_file = int64_t{16} << 20);
  void add(std::span<const int32_t> document);
  // Once, last. Throws if there was no document.
  ShardCounts finish();

 private:
  void write_file();

  std::filesystem::path folder_;
  uint64_t tokenizer_;
  int64_t tokens_per_file_;
  std::vector<int32_t> tokens_;
  std::vector<int64_t> ends_;
  std::vector<FileDigest> files_;
  ShardCounts counts_;
};

class Shards;  // open files
// Every file's hash is checked, every id is below vocab_size. Throws "FILE: ...": missing, damaged,
// other tokenizer.
std::shared_ptr<const Shards> open_shards(const std::filesystem::path& folder, uint64_t tokenizer,
                                          int64_t vocab_size);

// Documents of at most sequence_length tokens: those of the shards, longer ones in pieces, shuffled
// anew each epoch. split: every twentieth document is held out for validation; of fewer than
// twenty, the last twentieth of each. Throws if there is too little text for both.
std::unique_ptr<DocumentSource> shard_documents(std::shared_ptr<const Shards> shards,
                                                int64_t sequence_length, uint64_t seed,
                                                Split split);

}  // namespace fathom
