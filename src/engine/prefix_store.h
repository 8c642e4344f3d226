// The prefix cache on disk: computed blocks that survive a restart. One file per block, named by
// the hash of its tokens and all before them, then that of all before; a folder per computation, so
// that blocks of another model, form or program never meet. It is a cache: whatever is wrong with a
// file, it is not used, the reason is kept for whoever asks, and the block is computed again.
//
// A file: PrefixFileHeader, then the rows [layers, tokens, row_width], then the XXH3 of both;
// little-endian. Everything is compared before use: the header with what is expected, the tokens of
// the block one by one, the size, the checksum. The tokens before it, and the scope, are compared
// by a 128-bit hash that is not made to resist an adversary. The checksum finds damage, not
// forgery: whoever may write into the folder can change answers. So folders are made with mode
// 0700, files with 0600, and a folder is refused that others own or may write to.
//
// The rows of a beginning are the same bits each time only for the same weights, dtype, form,
// precision and instruction set, and the same program; all of that is in the name of the folder. In
// fast mode rows that are not in the engine's form have names (row_name()) in place of tokens.
//
// All files that a store knows of stay within max_bytes together; the least recently used go first
// (modification time; a load or another save renews it). Several processes may share a folder:
// files appear whole or not at all, a file that has gone is only a miss, and each process keeps
// what it knows of within its bound. One thread per store.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/block_pool.h"
#include "kernels/attention.h"
#include "model/model.h"
#include "tensor/context.h"

namespace fathom {

// Names the weights: config and tensor table (names, types, shapes) and, of each tensor, all bytes
// up to 64 KiB, else 16 evenly spread pieces of 4 KiB. Reads at most that much. Limits: a change
// that leaves size and all pieces as they are is not seen. Training, merging, quantising or
// converting change nearly every piece; a single edited number in a large tensor may escape.
Hash128 model_fingerprint(const Model& model);

struct PrefixFileHeader {
  char magic[8] = {'f', 'a', 't', 'h', 'o', 'm', 'k', 'v'};
  uint32_t version = 2;
  // What the rows depend on, beside their tokens. Enumerators, as this program numbers them.
  uint32_t dtype = 0, form = 0, isa = 0, bf16_dot = 0, precision = 0;
  uint32_t layers = 0, block_tokens = kKeyBlock;
  uint64_t row_width = 0;
  Hash128 model, program;
  // Of this block: the hash of all before it, that of all up to its end, its tokens, then -1.
  Hash128 before, content;
  int32_t tokens[kKeyBlock] = {};
};
static_assert(sizeof(PrefixFileHeader) == 112 + 4 * kKeyBlock);  // no padding: it is hashed

struct PrefixStoreOptions {
  std::filesystem::path folder;
  uint64_t max_bytes = uint64_t{4} << 30;
  Hash128 model;    // model_fingerprint()
  Hash128 program;  // names this build: another one may round otherwise
};

class PrefixStore {
 public:
  // Makes the folder and lists what it holds. Throws if it cannot be made or read, or is not
  // private. form and ctx: of the engine that uses the store; layout: of its cache.
  PrefixStore(const PrefixStoreOptions& options, const Context& ctx, MlaForm form,
              const KvCacheView& layout);

  // A block of this name was there at the start, or was saved since. O(1).
  bool has(const Hash128& hash) const { return known_.contains(hash); }
  // Reads the block into cache row `row` and those after it. False if there is no such file, or,
  // with the reason in last_problem(), if it is not to be trusted (then it is removed); the rows
  // are as before. Throws std::bad_alloc only.
  bool load(const BlockPool::Content& content, const KvCacheView& cache, int64_t row);
  // Of the kLookedAt blocks after `before` that were saved last, reads as many rows as there are
  // equal tokens of the one that begins most like `tokens`; none if these are no more than
  // `more_than` or fewer than kAkin, or as in load(). token_differs: the one behind those rows, or,
  // if none were read, behind the first `more_than`; else whoever has them has no more.
  struct Loaded {
    int64_t rows = 0;
    bool token_differs = false;
  };
  Loaded load_alike(const Hash128& before, std::span<const int32_t> tokens, int64_t more_than,
                    const KvCacheView& cache, int64_t row);
  // Writes the block at cache row `row`; if it is there, renews its age: so save children before
  // their parents, and a beginning outlives what follows it. Throws nothing: a failure is counted;
  // after it nothing more is written (the disk is full or gone), loads go on. A tail that another
  // block begins with is not written or, being there, removed; one of fewer than kAkin tokens,
  // which nobody would load, is not written.
  void save(const BlockPool::Content& content, const KvCacheView& cache, int64_t row);

  // Full blocks that fit into max_bytes.
  int64_t most_blocks() const { return static_cast<int64_t>(max_bytes_ / file_bytes()); }

  struct Stats {
    int64_t loaded = 0, saved = 0;
    int64_t alike = 0;    // of the loaded: those that load_alike() found
    int64_t ignored = 0;  // files not to be trusted
    int64_t evicted = 0;
    bool failed = false;  // writing has stopped
  };
  const Stats& stats() const { return stats_; }
  // Place, subject, found, expected of the last ignored file or failed write; "" if there was none.
  const std::string& last_problem() const { return last_problem_; }

 private:
  struct HashOfHash {
    size_t operator()(const Hash128& hash) const { return static_cast<size_t>(hash.low); }
  };
  // Of other computations too: all files count for max_bytes.
  struct File {
    std::filesystem::path path;
    uint64_t bytes = 0;
    Hash128 hash, before;
    bool ours = false;
  };
  // Oldest first: modification time, then a counter that keeps equal times apart.
  using Age = std::pair<int64_t, uint64_t>;

  PrefixFileHeader header_of(const BlockPool::Content& content) const;
  std::filesystem::path path_of(const BlockPool::Content& content) const;
  uint64_t file_bytes(int64_t tokens = kKeyBlock) const;
  void list_files();
  void list_file(const std::filesystem::path& path, bool ours);
  void add(File file, int64_t modified_ns);
  void drop(Age age);
  int64_t next_time();
  bool renew(Age age);
  void make_room(uint64_t bytes);
  void remove_beginnings(const BlockPool::Content& content);
  struct Alike {
    Hash128 hash;
    std::vector<int32_t> tokens;  // its own
    int64_t equal = 0;
    bool differs = false;  // both go on
  };
  Alike most_alike(const Hash128& before, std::span<const int32_t> tokens);
  template <class Read>
  bool trusted(Age age, Read read);
  std::vector<int32_t> tokens_of(const Hash128& hash);
  bool read_rows(const BlockPool::Content& content, int64_t rows, const KvCacheView& cache,
                 int64_t row);
  void write(const BlockPool::Content& content, const KvCacheView& cache, int64_t row);
  void stop_writing(const char* why);
  void check_file(const std::string& bytes, const PrefixFileHeader& expected,
                  const std::string& place) const;

  std::filesystem::path folder_, own_folder_;
  PrefixFileHeader common_;  // without a block
  uint64_t max_bytes_, row_bytes_, total_bytes_ = 0;
  std::map<Age, File> files_;
  std::unordered_map<Hash128, Age, HashOfHash> known_;  // ours
  // Those after the same beginning, the one saved last is last.
  std::unordered_map<Hash128, std::vector<Hash128>, HashOfHash> followers_;
  uint64_t next_ = 0;
  int64_t last_time_ = 0;
  Stats stats_;
  std::string last_problem_;
};

}  // namespace fathom
