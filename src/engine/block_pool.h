// Who owns which block of the cache, and what it holds. Numbers only: the rows themselves are the
// KvCache's.
//
// A block is free (nobody's, content unknown), in use (one or more owners) or cached (no owner, its
// content can be found). A block that was published is known by its content: its tokens and the
// block before it, the parent. So published blocks form trees, and a path from a root is the
// beginning of a text. No content has two blocks. One that is not full, a tail, is published when
// its owner gives it back; nothing follows it and nobody shares it: who wants its rows copies them.
//
// Invariants (check() proves them):
//   1. whoever owns a published block owns its parent, so the parent of a block in use is in use;
//   2. owners give their blocks back deepest first, so a cached child lies before its parent in the
//      list of cached blocks, least recently used first; with 1. the first of the list has no
//      child, and evicting from there never orphans a block;
//   3. hence every cached block can be had: available() = total() - in_use().
//
// All memory is taken at construction. One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/hash.h"

namespace fathom {

class BlockPool {
 public:
  static constexpr int64_t kNone = -1;

  // Content of one block. hash names the whole beginning up to its end, parent_hash that up to
  // its begin (of a root: whatever keeps texts apart that must not share). A block is found if its
  // tokens, compared one by one, and its parent are the wanted ones, so all before it are too; only
  // the scope, and what comes before a block that a PrefixStore loads, are compared by a 128-bit
  // hash that is not made to resist an adversary.
  struct Content {
    int64_t parent = kNone;  // a published full block, or kNone for the first of a text
    Hash128 parent_hash, hash;
    std::span<const int32_t> tokens;  // [1 to kKeyBlock], as the engine names them (row_name())
  };

  explicit BlockPool(int64_t blocks);

  int64_t total() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t in_use() const { return in_use_; }
  int64_t cached() const { return total() - in_use_ - static_cast<int64_t>(free_.size()); }
  int64_t available() const { return total() - in_use_; }

  // A block for one owner: a free one, else the least recently used cached one, whose content is
  // then forgotten. kNone if all are in use. O(1).
  int64_t take();
  // One more owner. REQUIRES: published, and the caller owns its parent.
  void share(int64_t block);
  // One owner less; the last one leaves it cached if it was published, else free. REQUIRES: the
  // caller owns none of its children.
  void release(int64_t block);

  // The block that holds this content, or kNone.
  int64_t find(const Content& content) const;
  // The caller's block holds this content. Returns the block to go on with: the same one, or the
  // one that held this content already; the caller then owns that one instead. Cached tails that
  // it begins with are free from then on (as far as most_alike() looks). REQUIRES: one owner, not
  // published, the caller owns the parent; of a tail, that the caller releases it next.
  int64_t publish(int64_t block, const Content& content);
  // Makes a cached block the most recently used. REQUIRES: the caller owns its parent.
  void renew(int64_t block);

  // The full block of this hash was evicted lately (remembered in as many places as there are
  // blocks, so an old or a colliding one may be overwritten and forgotten).
  bool was_evicted(const Hash128& hash) const;

  // The child of `parent` whose tokens begin most like `tokens`, among the kLookedAt published
  // last, how many agree, and whether both go on, differently. {kNone, 0}
  // if there is no child; of roots, only those under parent_hash.
  struct Alike {
    int64_t block = kNone;
    int64_t tokens = 0;
    bool differs = false;
  };
  static constexpr int kLookedAt = 16;
  // Fewer equal tokens are no reason to read a file or to keep a block longer: unrelated texts
  // begin with as many (BOS, a chat template's first). Within memory they are copied all the same.
  static constexpr int64_t kAkin = 8;
  Alike most_alike(int64_t parent, const Hash128& parent_hash,
                   std::span<const int32_t> tokens) const;

  // f(block, content) of every cached block, least recently used first, so a child before its
  // parent. f must not change the pool.
  template <class F>
  void for_each_cached(F f) const {
    for (int64_t block = oldest_; block != kNone; block = at(block).newer) {
      const Block& b = at(block);
      f(block, Content{b.parent, b.parent_hash, b.hash, tokens(block)});
    }
  }

  // Forgets all content. REQUIRES: no block in use.
  void forget();

  // Aborts unless the invariants hold and each block has as many owners as times it occurs in
  // `owned`. O(blocks). For tests.
  void check(std::span<const int64_t> owned) const;

 private:
  struct Block {
    int32_t owners = 0;
    int32_t size = 0;  // tokens of its content; 0: not published
    int64_t parent = kNone;
    Hash128 parent_hash, hash;
    int64_t next_in_bucket = kNone;
    int64_t first_child = kNone, next_sibling = kNone, previous_sibling = kNone;
    int64_t older = kNone, newer = kNone;  // in the list of cached blocks
  };

  Block& at(int64_t block) { return blocks_[static_cast<size_t>(block)]; }
  const Block& at(int64_t block) const { return blocks_[static_cast<size_t>(block)]; }
  int64_t& bucket(const Hash128& hash) { return buckets_[hash.low & (buckets_.size() - 1)]; }
  std::span<const int32_t> tokens(int64_t block) const;  // of its content
  // Head of the list of `parent`'s children.
  int64_t& children(int64_t parent) {
    return parent == kNone ? first_root_ : at(parent).first_child;
  }
  void append_cached(int64_t block);
  void remove_cached(int64_t block);
  void evict(int64_t block);
  void drop_beginnings(int64_t block);

  std::vector<Block> blocks_;
  std::vector<int32_t> tokens_;   // [blocks, kKeyBlock]
  std::vector<int64_t> free_;     // the next one to hand out is last
  std::vector<int64_t> buckets_;  // [power of two] first block of each chain
  std::vector<Hash128> evicted_;  // [power of two]
  int64_t first_root_ = kNone;
  int64_t oldest_ = kNone, newest_ = kNone;  // of the cached blocks
  int64_t in_use_ = 0;
};

}  // namespace fathom
