#include "engine/block_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "base/random.h"
#include "kernels/attention.h"

namespace fathom {
namespace {

constexpr int64_t kNone = BlockPool::kNone;

std::vector<int32_t> block_of(int32_t letter) {
  return std::vector<int32_t>(static_cast<size_t>(kKeyBlock), letter);
}

// A text of one letter per block, and how an owner takes it: finds what it can, computes the rest.
class Text {
 public:
  explicit Text(std::vector<int32_t> letters, Hash128 scope = {}) : scope_(scope) {
    Hash128 hash = scope;
    for (const int32_t letter : letters) {
      tokens_.push_back(block_of(letter));
      hash = hash_chained(hash, std::as_bytes(std::span(tokens_.back())));
      hashes_.push_back(hash);
    }
  }
  int64_t size() const { return std::ssize(tokens_); }
  const Hash128& end() const { return hashes_.back(); }
  BlockPool::Content content(size_t i, int64_t parent) const {
    return {parent, i == 0 ? scope_ : hashes_[i - 1], hashes_[i], tokens_[i]};
  }
  // Blocks found; the others are taken and, once all are there, published. Empty without room.
  std::vector<int64_t> own(BlockPool& pool, int64_t* found = nullptr) const {
    std::vector<int64_t> owned;
    const auto parent = [&](size_t i) { return i == 0 ? kNone : owned[i - 1]; };
    for (size_t i = 0; i < tokens_.size(); ++i) {
      const int64_t block = pool.find(content(i, parent(i)));
      if (block == kNone) break;
      pool.share(block);
      owned.push_back(block);
    }
    const size_t shared = owned.size();
    if (found != nullptr) *found = static_cast<int64_t>(shared);
    if (size() - static_cast<int64_t>(shared) > pool.available()) {
      disown(pool, owned);
      return {};
    }
    while (std::ssize(owned) < size()) owned.push_back(pool.take());
    for (size_t i = shared; i < owned.size(); ++i)
      owned[i] = pool.publish(owned[i], content(i, parent(i)));
    return owned;
  }
  static void disown(BlockPool& pool, const std::vector<int64_t>& owned) {
    for (size_t i = owned.size(); i-- > 0;) pool.release(owned[i]);
  }
  int64_t found(BlockPool& pool) const {
    int64_t count = 0, parent = kNone;
    for (size_t i = 0; i < tokens_.size(); ++i, ++count) {
      parent = pool.find(content(i, parent));
      if (parent == kNone) break;
    }
    return count;
  }

 private:
  Hash128 scope_;
  std::vector<std::vector<int32_t>> tokens_;
  std::vector<Hash128> hashes_;
};

TEST(BlockPool, ATextIsFoundAgainBlockByBlockUntilItsRoomIsNeeded) {
  BlockPool pool(4);
  const Text abc({1, 2, 3});
  const auto owned = abc.own(pool);
  ASSERT_EQ(owned.size(), 3u);
  EXPECT_EQ(pool.in_use(), 3);
  Text::disown(pool, owned);
  EXPECT_EQ(pool.in_use(), 0);
  EXPECT_EQ(pool.cached(), 3);
  EXPECT_EQ(pool.available(), 4);
  EXPECT_EQ(abc.found(pool), 3);
  EXPECT_EQ(Text({1, 2, 9}).found(pool), 2);
  EXPECT_EQ(Text({2, 3}).found(pool), 0) << "the same tokens after others are another content";

  pool.take();  // the free one
  EXPECT_EQ(abc.found(pool), 3);
  pool.take();  // evicts from the end
  EXPECT_EQ(abc.found(pool), 2);
  EXPECT_TRUE(pool.was_evicted(abc.content(2, kNone).hash));
  EXPECT_FALSE(pool.was_evicted(abc.content(1, kNone).hash));
  pool.take();
  pool.take();
  EXPECT_EQ(abc.found(pool), 0);
  EXPECT_EQ(pool.take(), kNone);
  EXPECT_EQ(pool.available(), 0);
}

TEST(BlockPool, TheLeastRecentlyUsedTextGoesFirstAndASharedBeginningStays) {
  BlockPool pool(6);
  const Text ab({1, 2}), ac({1, 3}), de({4, 5});
  for (const Text* text : {&ab, &ac, &de}) Text::disown(pool, text->own(pool));
  EXPECT_EQ(pool.cached(), 5);
  Text::disown(pool, ab.own(pool));  // used again
  pool.take();
  pool.take();
  EXPECT_EQ(ac.found(pool), 1);
  EXPECT_EQ(de.found(pool), 2);
  pool.take();
  EXPECT_EQ(de.found(pool), 1);
  pool.take();
  EXPECT_EQ(de.found(pool), 0);
  EXPECT_EQ(ab.found(pool), 2);
  pool.take();
  EXPECT_EQ(ab.found(pool), 1);
}

TEST(BlockPool, OneContentHasOneBlockWhoeverComputesIt) {
  BlockPool pool(8);
  const Text text({1, 2});
  const int64_t first[] = {pool.take(), pool.take()}, second[] = {pool.take(), pool.take()};
  EXPECT_EQ(pool.publish(first[0], text.content(0, kNone)), first[0]);
  EXPECT_EQ(pool.publish(second[0], text.content(0, kNone)), first[0]);  // and its own is free
  EXPECT_EQ(pool.in_use(), 3);
  EXPECT_EQ(pool.publish(second[1], text.content(1, first[0])), second[1]);
  EXPECT_EQ(pool.publish(first[1], text.content(1, first[0])), second[1]);
  EXPECT_EQ(pool.in_use(), 2);
  pool.check(std::vector<int64_t>{first[0], first[0], second[1], second[1]});
}

TEST(BlockPool, EqualHashesOfDifferentTokensAreToldApart) {
  BlockPool pool(4);
  const std::vector<int32_t> one = block_of(1), two = block_of(2);
  const Hash128 same{7, 7};
  const int64_t a = pool.publish(pool.take(), {kNone, {}, same, one});
  EXPECT_EQ(pool.find({kNone, {}, same, two}), kNone);
  const int64_t b = pool.publish(pool.take(), {kNone, {}, same, two});
  EXPECT_NE(a, b);
  EXPECT_EQ(pool.find({kNone, {}, same, one}), a);
  EXPECT_EQ(pool.find({kNone, {}, same, two}), b);
  EXPECT_EQ(pool.find({a, {}, same, two}), kNone) << "another text before it";
  EXPECT_EQ(pool.find({kNone, {1, 0}, same, two}), kNone) << "another scope";
  pool.check(std::vector<int64_t>{a, b});
}

TEST(BlockPool, KnowsWhichContinuationIsMostAlike) {
  BlockPool pool(8);
  EXPECT_EQ(pool.most_alike(kNone, {}, block_of(1)).block, kNone);
  const Text ab({1, 2}), ac({1, 3}), other({1, 4}, {5, 5});
  const auto owned_b = ab.own(pool), owned_c = ac.own(pool);
  other.own(pool);
  std::vector<int32_t> wanted = block_of(2);
  wanted[10] = 3;
  auto alike = pool.most_alike(owned_b[0], ab.content(1, kNone).parent_hash, wanted);
  EXPECT_EQ(alike.block, owned_b[1]);
  EXPECT_EQ(alike.tokens, 10);
  wanted = block_of(3);
  wanted.resize(7);
  alike = pool.most_alike(owned_b[0], ab.content(1, kNone).parent_hash, wanted);
  EXPECT_EQ(alike.block, owned_c[1]);
  EXPECT_EQ(alike.tokens, 7);
  alike = pool.most_alike(kNone, {}, block_of(8));
  EXPECT_EQ(alike.block, owned_b[0]) << "the root of another scope is not looked at";
  EXPECT_EQ(alike.tokens, 0);
}

TEST(BlockPool, ATailIsFoundUntilSomethingBeginsWithIt) {
  BlockPool pool(8);
  const Text text({1});
  const int64_t root = text.own(pool)[0];
  const Hash128 before = text.content(0, kNone).hash;
  const auto leave = [&](const std::vector<int32_t>& tokens) {
    const Hash128 hash = hash_chained(before, std::as_bytes(std::span(tokens)));
    const int64_t block = pool.publish(pool.take(), {root, before, hash, tokens});
    pool.release(block);
    return block;
  };
  const std::vector<int32_t> wanted = {5, 6, 7, 8};
  const int64_t a = leave({5, 6}), b = leave({5, 9});
  EXPECT_EQ(leave({5, 6}), a) << "no content has two blocks";
  BlockPool::Alike alike = pool.most_alike(root, before, wanted);
  EXPECT_EQ(alike.block, a);
  EXPECT_EQ(alike.tokens, 2);
  EXPECT_FALSE(alike.differs) << "it only ends";
  alike = pool.most_alike(root, before, std::vector<int32_t>{5, 9});
  EXPECT_EQ(alike.block, b);
  EXPECT_EQ(alike.tokens, 2);
  EXPECT_TRUE(pool.most_alike(root, before, std::vector<int32_t>{5, 1}).differs);
  const int64_t longer = leave({5, 6, 7});
  EXPECT_EQ(pool.cached(), 2) << "a has gone";
  EXPECT_EQ(pool.most_alike(root, before, wanted).block, longer);
  pool.renew(b);
  for (int i = 0; i < 6; ++i) pool.take();  // five are free; then the least recently used goes
  EXPECT_EQ(pool.most_alike(root, before, wanted).block, b);
  EXPECT_FALSE(pool.was_evicted(hash_chained(before, std::as_bytes(std::span(wanted).first(3)))));
}

TEST(BlockPool, ForgetsEverythingAtOnce) {
  BlockPool pool(4);
  const Text text({1, 2, 3});
  Text::disown(pool, text.own(pool));
  pool.forget();
  EXPECT_EQ(text.found(pool), 0);
  EXPECT_EQ(pool.cached(), 0);
  EXPECT_EQ(pool.available(), 4);
  pool.check({});
}

// Owners of random texts come and go in pools that are too small for all; what is found is compared
// with what a map of contents says must be there.
TEST(BlockPool, KeepsItsInvariantsThroughRandomUse) {
  for (const int64_t blocks : {5, 9, 40}) {
    BlockPool pool(blocks);
    std::vector<std::vector<int64_t>> owners(7);
    std::map<int64_t, std::vector<int32_t>> holds;  // the letters up to each published block
    int64_t shared = 0, refused = 0, tails_found = 0;
    for (uint64_t i = 0; i < 20'000; ++i) {
      const uint64_t bits = random_bits({.seed = 21}, i);
      std::vector<int64_t>& owned = owners[bits % owners.size()];
      if (!owned.empty()) {
        if (const int64_t block = bits >> 40 & 1 ? pool.take() : kNone; block != kNone) {
          const std::vector<int32_t> tail(1 + (bits >> 41) % 4, 2 + (bits >> 50 & 1));
          const int64_t parent = owned.back();
          const Hash128 before = Text(holds[parent]).end();
          tails_found += pool.most_alike(parent, before, tail).tokens == std::ssize(tail);
          const Hash128 hash = hash_chained(before, std::as_bytes(std::span(tail)));
          pool.release(pool.publish(block, {parent, before, hash, tail}));
        }
        Text::disown(pool, owned);
        owned.clear();
      } else {
        std::vector<int32_t> letters;
        for (uint64_t k = 0; k < 1 + (bits >> 8) % 5; ++k)
          letters.push_back(static_cast<int32_t>(bits >> (16 + 2 * k) & 1));
        int64_t found = 0;
        owned = Text(letters).own(pool, &found);
        refused += owned.empty();
        if (!owned.empty()) shared += found;
        for (size_t k = 0; k < owned.size(); ++k) {
          const std::vector<int32_t> beginning(letters.begin(),
                                               letters.begin() + static_cast<ptrdiff_t>(k) + 1);
          ASSERT_TRUE(static_cast<int64_t>(k) >= found || holds[owned[k]] == beginning);
          holds[owned[k]] = beginning;
        }
      }
      std::vector<int64_t> all;
      for (const auto& o : owners) all.insert(all.end(), o.begin(), o.end());
      pool.check(all);
    }
    EXPECT_GT(shared, 1000) << blocks;
    EXPECT_TRUE(tails_found > 100 || blocks < 40) << blocks;
    EXPECT_TRUE(refused > 100 || blocks == 40) << blocks;
    for (auto& o : owners) Text::disown(pool, o);
    pool.check({});
    EXPECT_EQ(pool.available(), blocks);
  }
}

}  // namespace
}  // namespace fathom
