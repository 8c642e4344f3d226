#include "engine/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/random.h"
#include "kernels/attention.h"
#include "tests/engine/tiny_model.h"

namespace fathom {
namespace {

TEST(KvCache, HoldsTheWidthsOfTheModel) {
  const Model v3 = load_tiny("v3");  // latent 32 + rope 8, three layers and MTP
  EXPECT_EQ(KvCache::bytes_per_token(v3.config(), v3.cache_layers(), DType::kF32), 40 * 4 * 4);
  EXPECT_EQ(KvCache::bytes_per_token(v3.config(), v3.cache_layers(), DType::kBF16), 40 * 2 * 4);
  EXPECT_EQ(KvCache::bytes_per_token(v3.config(), v3.cache_layers(), DType::kI8), (40 + 4) * 4);
  const KvCache cache(v3, DType::kBF16, 65);
  EXPECT_EQ(cache.view().row_width, 40);
  EXPECT_EQ(cache.view().dtype, DType::kBF16);
  EXPECT_EQ(cache.pool().total(), 2);
  EXPECT_EQ(cache.pool().available(), 2);
  ASSERT_EQ(cache.view().layers.size(), 4u);
  for (size_t layer = 1; layer < 4; ++layer) {
    EXPECT_EQ(cache.view().layers[layer] - cache.view().layers[layer - 1], 2 * kKeyBlock * 40 * 2);
  }
  for (std::byte* layer : cache.view().layers)
    std::fill_n(layer, 2 * kKeyBlock * 40 * 2, std::byte{0xff});  // all of it is ours
}

TEST(KvCache, AnInt8BlockMustNotStraddleHeads) {
  const Model model = load_tiny("qwen2");  // head_dim 16
  EXPECT_FALSE(takes_cache_dtype(model.config(), DType::kI8));
  EXPECT_TRUE(takes_cache_dtype(load_tiny("v3").config(), DType::kI8));
  try {
    KvCache cache(model, DType::kI8, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "cache: type I8: found head_dim 16, expected a multiple of 64");
  }
}

TEST(KvCache, HandsEachBlockOutOnceAndTakesAllBack) {
  const Model model = load_tiny("qwen2");
  KvCache cache(model, DType::kF32, 40 * kKeyBlock);
  std::vector<std::vector<int64_t>> owners(6);
  std::vector<int64_t> tokens(6, 0);
  int refused = 0;
  for (uint64_t i = 0; i < 20'000; ++i) {
    const uint64_t bits = random_bits({.seed = 3}, i);
    const size_t who = bits % owners.size();
    if (bits >> 8 & 1) {
      cache.release(owners[who]);
      tokens[who] = 0;
      EXPECT_TRUE(owners[who].empty());
    } else {
      const auto want = static_cast<int64_t>((bits >> 16) % 1500);
      const std::vector<int64_t> before = owners[who];
      const int64_t free_before = cache.pool().available();
      const int64_t missing =
          std::max<int64_t>(0, (want + kKeyBlock - 1) / kKeyBlock - std::ssize(before));
      const bool granted = cache.reserve(owners[who], want);
      ASSERT_EQ(granted, missing <= free_before);
      refused += !granted;
      if (granted) tokens[who] = std::max(tokens[who], want);
      ASSERT_EQ(cache.pool().available(), free_before - (granted ? missing : 0));
      ASSERT_TRUE(std::equal(before.begin(), before.end(),
                             owners[who].begin()));  // what it had stays where it was
    }
    std::set<int64_t> out;
    int64_t count = 0;
    for (size_t o = 0; o < owners.size(); ++o) {
      ASSERT_GE(std::ssize(owners[o]) * kKeyBlock, tokens[o]);
      for (const int64_t row : owners[o]) {
        ASSERT_TRUE(row >= 0 && row < cache.pool().total() * kKeyBlock && row % kKeyBlock == 0)
            << row;
        out.insert(row);
        ++count;
      }
    }
    ASSERT_EQ(std::ssize(out), count) << "a block has two owners";
    ASSERT_EQ(cache.pool().available() + count, cache.pool().total());
  }
  EXPECT_GT(refused, 100);
}

TEST(KvCache, RefusesWhatMemoryCannotHoldWithTheFigures) {
  const Model model = load_tiny("v3");
  // From far more than any machine has up to sizes that overflow 64 bits in rows, then in bytes.
  for (const int64_t tokens :
       {int64_t{1} << 45, int64_t{1} << 53, int64_t{1} << 55, int64_t{1} << 62, INT64_MAX}) {
    try {
      const KvCache cache(model, DType::kF32, tokens);
      ADD_FAILURE() << tokens;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kNoResources);
      EXPECT_NE(std::string(error.what())
                    .find(fmt::format("cache: {} tokens of 640 bytes (F32): found ", tokens)),
                std::string::npos)
          << error.what();
    }
  }
}

}  // namespace
}  // namespace fathom
