#include "engine/block_pool.h"

#include <algorithm>
#include <bit>

#include "base/check.h"
#include "kernels/attention.h"

namespace fathom {

BlockPool::BlockPool(int64_t blocks)
    : blocks_(static_cast<size_t>(blocks)),
      tokens_(static_cast<size_t>(blocks * kKeyBlock)),
      buckets_(std::bit_ceil(static_cast<size_t>(blocks)), kNone),
      evicted_(buckets_.size()) {
  free_.reserve(static_cast<size_t>(blocks));
  for (int64_t block = blocks; block-- > 0;) free_.push_back(block);
}

std::span<const int32_t> BlockPool::tokens(int64_t block) const {
  return {tokens_.data() + block * kKeyBlock, static_cast<size_t>(at(block).size)};
}

int64_t BlockPool::take() {
  if (free_.empty()) {
    if (oldest_ == kNone) return kNone;
    evict(oldest_);
  }
  const int64_t block = free_.back();
  free_.pop_back();
  at(block).owners = 1;
  ++in_use_;
  return block;
}

void BlockPool::share(int64_t block) {
  FATHOM_CHECK(at(block).size > 0, block);
  if (at(block).owners++ > 0) return;
  remove_cached(block);
  ++in_use_;
}

void BlockPool::release(int64_t block) {
  FATHOM_CHECK(at(block).owners > 0, block);
  if (--at(block).owners > 0) return;
  --in_use_;
  if (at(block).size > 0) {
    append_cached(block);
  } else {
    free_.push_back(block);
  }
}

int64_t BlockPool::find(const Content& content) const {
  int64_t block = buckets_[content.hash.low & (buckets_.size() - 1)];
  for (; block != kNone; block = at(block).next_in_bucket) {
    const Block& b = at(block);
    if (b.hash == content.hash && b.parent == content.parent &&
        b.parent_hash == content.parent_hash &&
        std::equal(content.tokens.begin(), content.tokens.end(), tokens(block).begin(),
                   tokens(block).end()))
      return block;
  }
  return kNone;
}

int64_t BlockPool::publish(int64_t block, const Content& content) {
  const int64_t size = std::ssize(content.tokens);
  FATHOM_CHECK(at(block).owners == 1 && at(block).size == 0, block);
  FATHOM_CHECK(size > 0 && size <= kKeyBlock, size);
  FATHOM_CHECK(content.parent == kNone ||
                   (at(content.parent).size == kKeyBlock && at(content.parent).owners > 0),
               content.parent);
  if (const int64_t same = find(content); same != kNone) {
    share(same);
    release(block);
    return same;
  }
  Block& b = at(block);
  b.size = static_cast<int32_t>(size);
  b.parent = content.parent;
  b.parent_hash = content.parent_hash;
  b.hash = content.hash;
  std::copy(content.tokens.begin(), content.tokens.end(), tokens_.data() + block * kKeyBlock);
  b.next_in_bucket = bucket(b.hash);
  bucket(b.hash) = block;
  int64_t& first = children(b.parent);
  b.next_sibling = first;
  if (first != kNone) at(first).previous_sibling = block;
  first = block;
  drop_beginnings(block);
  return block;
}

// Its older siblings that hold nothing which it does not hold as well.
void BlockPool::drop_beginnings(int64_t block) {
  const std::span<const int32_t> has = tokens(block);
  int64_t sibling = at(block).next_sibling;
  for (int i = 1; i < kLookedAt && sibling != kNone; ++i) {
    const int64_t next = at(sibling).next_sibling;
    const std::span<const int32_t> old = tokens(sibling);
    if (at(sibling).owners == 0 && old.size() < has.size() &&
        at(sibling).parent_hash == at(block).parent_hash &&
        std::equal(old.begin(), old.end(), has.begin()))
      evict(sibling);
    sibling = next;
  }
}

void BlockPool::renew(int64_t block) {
  const Block& b = at(block);
  FATHOM_CHECK(b.size > 0 && (b.parent == kNone || at(b.parent).owners > 0), block);
  if (b.owners > 0) return;
  remove_cached(block);
  append_cached(block);
}

bool BlockPool::was_evicted(const Hash128& hash) const {
  return evicted_[hash.low & (evicted_.size() - 1)] == hash;
}

BlockPool::Alike BlockPool::most_alike(int64_t parent, const Hash128& parent_hash,
                                       std::span<const int32_t> wanted) const {
  Alike best;
  int64_t child = parent == kNone ? first_root_ : at(parent).first_child;
  for (int i = 0; i < kLookedAt && child != kNone; ++i, child = at(child).next_sibling) {
    if (at(child).parent_hash != parent_hash) continue;
    const std::span<const int32_t> has = tokens(child);
    const auto differs = std::mismatch(has.begin(), has.end(), wanted.begin(), wanted.end()).first;
    const int64_t agree = differs - has.begin();
    if (best.block == kNone || agree > best.tokens)
      best = {child, agree, agree < std::min(std::ssize(has), std::ssize(wanted))};
  }
  return best;
}

void BlockPool::forget() {
  FATHOM_CHECK(in_use_ == 0, in_use_);
  while (oldest_ != kNone) evict(oldest_);
}

void BlockPool::append_cached(int64_t block) {
  at(block).older = newest_;
  at(block).newer = kNone;
  (newest_ == kNone ? oldest_ : at(newest_).newer) = block;
  newest_ = block;
}

void BlockPool::remove_cached(int64_t block) {
  const Block& b = at(block);
  (b.older == kNone ? oldest_ : at(b.older).newer) = b.newer;
  (b.newer == kNone ? newest_ : at(b.newer).older) = b.older;
}

// A cached block becomes free: its content can no longer be found.
void BlockPool::evict(int64_t block) {
  Block& b = at(block);
  FATHOM_CHECK(b.owners == 0 && b.first_child == kNone, block, b.owners, b.first_child);
  remove_cached(block);
  int64_t* link = &bucket(b.hash);
  while (*link != block) link = &at(*link).next_in_bucket;
  *link = b.next_in_bucket;
  (b.previous_sibling == kNone ? children(b.parent) : at(b.previous_sibling).next_sibling) =
      b.next_sibling;
  if (b.next_sibling != kNone) at(b.next_sibling).previous_sibling = b.previous_sibling;
  if (b.size == kKeyBlock) evicted_[b.hash.low & (evicted_.size() - 1)] = b.hash;
  b = {};
  free_.push_back(block);
}

void BlockPool::check(std::span<const int64_t> owned) const {
  std::vector<int32_t> owners(blocks_.size(), 0);
  for (const int64_t block : owned) ++owners[static_cast<size_t>(block)];
  std::vector<int64_t> place(blocks_.size(), kNone);  // in the list of cached blocks
  int64_t places = 0, before = kNone;
  for (int64_t block = oldest_; block != kNone; block = at(block).newer) {
    FATHOM_CHECK(at(block).older == before && places < total(), block);
    place[static_cast<size_t>(block)] = places++;
    before = block;
  }
  FATHOM_CHECK(newest_ == before && places == cached(), newest_, places, cached());
  std::vector<int32_t> owned_children(blocks_.size(), 0);
  int64_t used = 0;
  for (int64_t block = 0; block < total(); ++block) {
    const Block& b = at(block);
    const bool listed = place[static_cast<size_t>(block)] != kNone;
    FATHOM_CHECK(b.owners == owners[static_cast<size_t>(block)], block, b.owners);
    FATHOM_CHECK(listed == (b.owners == 0 && b.size > 0), block, listed);
    used += b.owners > 0;
    if (b.size == 0) continue;
    FATHOM_CHECK(b.size == kKeyBlock || b.owners == 0, block);
    FATHOM_CHECK(find({b.parent, b.parent_hash, b.hash, tokens(block)}) == block, block);
    if (b.parent == kNone) continue;
    const Block& parent = at(b.parent);
    FATHOM_CHECK(parent.size == kKeyBlock && parent.hash == b.parent_hash, block, b.parent);
    owned_children[static_cast<size_t>(b.parent)] += b.owners;
    FATHOM_CHECK(b.owners > 0 || parent.owners > 0 ||
                     place[static_cast<size_t>(block)] < place[static_cast<size_t>(b.parent)],
                 block, b.parent);
  }
  FATHOM_CHECK(used == in_use_, used, in_use_);
  for (int64_t block = 0; block < total(); ++block) {  // an owner of a child is one of its parent's
    FATHOM_CHECK(owned_children[static_cast<size_t>(block)] <= at(block).owners, block);
  }
  std::vector<bool> seen(blocks_.size(), false);
  for (const int64_t block : free_) {
    FATHOM_CHECK(!seen[static_cast<size_t>(block)] && at(block).owners == 0 && at(block).size == 0,
                 block);
    seen[static_cast<size_t>(block)] = true;
  }
}

}  // namespace fathom
