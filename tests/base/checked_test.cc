#include "base/checked.h"

#include <gtest/gtest.h>

#include <cstdint>

namespace fathom {
namespace {

constexpr uint64_t kMax = UINT64_MAX;

TEST(Checked, SumsAndProductsThatFitAreExact) {
  EXPECT_EQ((Checked(3) + 4).value(), 7u);
  EXPECT_EQ((Checked(3) * 4).value(), 12u);
  EXPECT_EQ((Checked(kMax - 1) + 1).value(), kMax);
  EXPECT_EQ((Checked(kMax / 5) * 5).value(), kMax);  // 2^64 - 1 is divisible by 5
  EXPECT_EQ((Checked(kMax) * 0).value(), 0u);
}

TEST(Checked, OverflowIsRememberedThroughLaterArithmetic) {
  EXPECT_FALSE((Checked(kMax) + 1).value());
  EXPECT_FALSE((Checked(kMax / 5 + 1) * 5).value());
  EXPECT_FALSE((Checked(1ull << 32) * (1ull << 32)).value());
  const Checked bad = Checked(kMax) + 1;  // would be 0 if it wrapped
  EXPECT_FALSE((bad + 1).value());
  EXPECT_FALSE((Checked(1) + bad).value());
  EXPECT_FALSE((bad * 0).value());
  EXPECT_FALSE(bad.align_up(8).value());
}

TEST(Checked, AlignUpRoundsToMultiplesAndNeverWraps) {
  EXPECT_EQ(Checked(0).align_up(32).value(), 0u);
  EXPECT_EQ(Checked(1).align_up(32).value(), 32u);
  EXPECT_EQ(Checked(32).align_up(32).value(), 32u);
  EXPECT_EQ(Checked(33).align_up(32).value(), 64u);
  EXPECT_EQ(Checked(kMax - 31).align_up(32).value(), kMax - 31);
  EXPECT_FALSE(Checked(kMax - 30).align_up(32).value());
  EXPECT_FALSE(Checked(kMax).align_up(8).value());
}

TEST(Checked, RangeInFileHoldsAtTheEdgesWithoutWrapping) {
  EXPECT_TRUE(range_in_file(0, 0, 0));
  EXPECT_TRUE(range_in_file(0, 10, 10));
  EXPECT_TRUE(range_in_file(10, 0, 10));
  EXPECT_TRUE(range_in_file(4, 6, 10));
  EXPECT_FALSE(range_in_file(4, 7, 10));
  EXPECT_FALSE(range_in_file(11, 0, 10));
  EXPECT_FALSE(range_in_file(kMax, 2, 10));  // the sum would wrap to 1
  EXPECT_FALSE(range_in_file(2, kMax, 10));
}

}  // namespace
}  // namespace fathom
