// The comparison of all numeric tests is itself seen failing: each test hands it a fault it must
// report.
#include "tests/reference/expect_close.h"

#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace fathom::reference {
namespace {

const std::vector<double> kExpected = {1, -2, 3, 0, 5};
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// EXPECT_NONFATAL_FAILURE needs names it can see from a local class: hence static.
TEST(ExpectClose, AcceptsEqualValuesWithBoundZero) {
  expect_close(std::vector<float>{1, -2, 3, 0, 5}, kExpected, 0.0);
  expect_close(std::vector<float>{}, std::vector<double>{}, 0.0);
}

TEST(ExpectClose, AcceptsUpToTheBoundAndNotBeyond) {
  static const std::vector<float> actual = {1, -2, 3.5f, 0, 5};
  expect_close(actual, kExpected, 0.5);
  EXPECT_NONFATAL_FAILURE(expect_close(actual, kExpected, 0.4999), "worst at [2]: 3.5, expected 3");
}

TEST(ExpectClose, UsesTheBoundOfEachElement) {
  static const std::vector<float> actual = {1, -2, 3.5f, 0, 5};
  static const std::vector<double> good = {0, 0, 0.5, 0, 0}, bad = {9, 9, 0.1, 9, 9};
  expect_close(actual, kExpected, good);
  EXPECT_NONFATAL_FAILURE(expect_close(actual, kExpected, bad), "worst at [2]");
  EXPECT_NONFATAL_FAILURE(expect_close(actual, kExpected, std::vector<double>{1}),
                          "1 bounds for 5 elements");
}

TEST(ExpectClose, RejectsNanOnEitherSide) {
  static const std::vector<float> actual = {1, kNan, 3, 0, 5}, fine = {1, -2, 3, 0, 5};
  static const std::vector<double> expected = {1, kNan, 3, 0, 5};
  EXPECT_NONFATAL_FAILURE(expect_close(actual, kExpected, 1e30), "worst at [1]: nan, expected -2");
  EXPECT_NONFATAL_FAILURE(expect_close(fine, expected, 1e30), "expected nan");
  expect_close(actual, expected, 0.0);
}

TEST(ExpectClose, RejectsInfinityInTheWrongPlaceOrWithTheWrongSign) {
  static const std::vector<float> actual = {1, kInf, 3, 0, 5};
  static const std::vector<double> same = {1, kInf, 3, 0, 5}, negative = {1, -kInf, 3, 0, 5};
  EXPECT_NONFATAL_FAILURE(expect_close(actual, kExpected, 1e300), "worst at [1]: inf, expected -2");
  EXPECT_NONFATAL_FAILURE(expect_close(actual, negative, 1e300), "expected -inf");
  expect_close(actual, same, 0.0);
}

TEST(ExpectClose, RejectsASignFlipAndASwap) {
  static const std::vector<float> flipped = {1, 2, 3, 0, 5}, swapped = {-2, 1, 3, 0, 5};
  EXPECT_NONFATAL_FAILURE(expect_close(flipped, kExpected, 1.0), "1 of 5 elements differ");
  EXPECT_NONFATAL_FAILURE(expect_close(swapped, kExpected, 1.0), "2 of 5 elements differ");
}

TEST(ExpectClose, RejectsAnotherSizeAndABufferComparedWithItself) {
  static const std::vector<float> three = {1, -2, 3};
  static const std::vector<double> twin = kExpected;
  EXPECT_NONFATAL_FAILURE(expect_close(three, kExpected, 1e300), "3 elements, expected 5");
  EXPECT_NONFATAL_FAILURE(expect_close(twin, twin, 0.0), "same memory");
  EXPECT_NONFATAL_FAILURE(expect_same_bits(std::span(three).first(2), std::span(three).last(2)),
                          "same memory");
}

TEST(ExpectClose, RejectsABoundThatBoundsNothing) {
  static const std::vector<float> actual = {1, -2, 3, 0, 5};
  for (const double each : {std::nan(""), -1.0, static_cast<double>(kInf)}) {
    static double bound = 0;  // the macro sees no locals
    bound = each;
    EXPECT_NONFATAL_FAILURE(expect_close(actual, kExpected, bound), "is not a finite number >= 0");
  }
}

TEST(ExpectClose, LooksAtRowsNotAtThePaddingBetweenThem) {
  static const std::vector<float> memory = {1, 2, kNan, 3, 4, kNan};
  static const ConstRows rows{memory.data(), 2, 2, 3};
  expect_close(rows, std::vector<double>{1, 2, 3, 4}, 0.0);
  EXPECT_NONFATAL_FAILURE(expect_close(rows, std::vector<double>({1, 2, 3, 5}), 0.5),
                          "worst at [1, 1]: 4");
}

TEST(ExpectSameBits, SeesTheSignOfZeroAndTheLastBit) {
  static const std::vector<float> a = {0.0f, 1.0f}, minus = {-0.0f, 1.0f},
                                  ulp = {0.0f, std::nextafter(1.0f, 2.0f)};
  static const std::vector<float> copy = a;
  expect_same_bits(a, copy);
  EXPECT_NONFATAL_FAILURE(expect_same_bits(a, minus), "first difference at [0]");
  EXPECT_NONFATAL_FAILURE(expect_same_bits(a, ulp), "first difference at [1]");
}

}  // namespace
}  // namespace fathom::reference
