#include "base/random.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace fathom {
namespace {

TEST(Random, MixIsTheSplitMix64Generator) {
  // Published first outputs of SplitMix64 seeded with 1234567: state advances by the constant that
  // mix_bits adds.
  EXPECT_EQ(mix_bits(1234567), 6457827717110365317u);
  EXPECT_EQ(mix_bits(1234567 + 0x9e3779b97f4a7c15), 3203168211198807973u);
  EXPECT_EQ(mix_bits(1234567 + 2 * 0x9e3779b97f4a7c15), 9817491932198370423u);
}

TEST(Random, EveryWordOfTheKeyAndThePositionMatter) {
  const RandomKey key{7, RandomPurpose::kSampling, 3};
  std::set<uint64_t> bits = {random_bits(key, 5), random_bits(key, 6)};
  bits.insert(random_bits({8, RandomPurpose::kSampling, 3}, 5));
  bits.insert(random_bits({7, RandomPurpose::kInit, 3}, 5));
  bits.insert(random_bits({7, RandomPurpose::kSampling, 4}, 5));
  EXPECT_EQ(bits.size(), 5u);
  EXPECT_EQ(random_bits(key, 5), random_bits(key, 5));
}

TEST(Random, UniformFillsTheUnitIntervalEvenly) {
  constexpr int kCount = 100'000, kBins = 20;
  int bins[kBins] = {};
  for (int i = 0; i < kCount; ++i) {
    const double u = random_uniform({1, RandomPurpose::kTest, 0}, static_cast<uint64_t>(i));
    ASSERT_TRUE(u >= 0 && u < 1) << u;
    ++bins[static_cast<int>(u * kBins)];
  }
  double chi_squared = 0;
  const double expected = double{kCount} / kBins;
  for (const int n : bins) chi_squared += (n - expected) * (n - expected) / expected;
  // 19 degrees of freedom: exceeded once in 1000 seeds, and the seed is fixed
  EXPECT_LT(chi_squared, 43.8);
}

TEST(Random, NormalHasTheMomentsOfTheStandardNormal) {
  constexpr int kCount = 200'000;
  double sum = 0, squares = 0, fourth = 0;
  for (int i = 0; i < kCount; ++i) {
    const double x = random_normal({2, RandomPurpose::kTest, 0}, static_cast<uint64_t>(i));
    ASSERT_TRUE(std::isfinite(x));
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
  }
  // Four standard errors each: of the mean 1/sqrt(n), of x^2 sqrt(2/n), of x^4 sqrt(96/n).
  EXPECT_NEAR(sum / kCount, 0, 4 / std::sqrt(kCount));
  EXPECT_NEAR(squares / kCount, 1, 4 * std::sqrt(2.0 / kCount));
  EXPECT_NEAR(fourth / kCount, 3, 4 * std::sqrt(96.0 / kCount));
}

}  // namespace
}  // namespace fathom
