// The lane functions of kernels/simd-inl.h, seen through vector_exp on every instruction set.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/vector_math.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> exp_of(Isa isa, const std::vector<float>& x) {
  std::vector<float> y(x.size(), kNan);
  vector_exp(isa, x.data(), static_cast<int64_t>(x.size()), y.data());
  return y;
}

double ulp_of(double y) { return std::ldexp(1.0, std::ilogb(y) - 23); }

TEST(Exp, IsWithinTwoUlpOverItsWholeRange) {
  std::vector<float> x;
  for (double v = -87.33654; v <= 88.72283; v += 1.7e-4) x.push_back(static_cast<float>(v));
  for (float edge : {-87.33654f, 88.72283f, 88.3762626f, 88.376259f, 0.0f, -0.0f}) {
    for (float v = edge, i = 0; i < 50; ++i, v = std::nextafter(v, 0.0f)) x.push_back(v);
  }
  for (int e = -149; e <= 6; ++e) {
    x.push_back(std::ldexp(1.0f, e));
    x.push_back(-std::ldexp(1.0f, e));
  }
  std::vector<double> expected, bounds;
  for (float v : x) {
    expected.push_back(std::exp(static_cast<double>(v)));
    bounds.push_back(2 * ulp_of(expected.back()));
  }
  for (Isa isa : instruction_sets()) {
    SCOPED_TRACE(isa_name(isa));
    expect_close(exp_of(isa, x), expected, bounds);
  }
}

TEST(Exp, IsExactlyZeroBelowInfinityAboveAndKeepsNan) {
  const std::vector<float> x = {-kInf, -3e38f, -1000, -103.9f, -88, -87.4f, -87.337f, kNan,  -kNan,
                                kInf,  3e38f,  1000,  88.723f, 0,   -0.0f,  89,       1e-45f};
  for (Isa isa : instruction_sets()) {
    SCOPED_TRACE(isa_name(isa));
    const std::vector<float> y = exp_of(isa, x);
    for (size_t i = 0; i < 7; ++i) EXPECT_EQ(std::bit_cast<uint32_t>(y[i]), 0u) << x[i];
    EXPECT_TRUE(std::isnan(y[7]) && std::isnan(y[8]));
    for (size_t i : {9, 10, 11, 12, 15}) EXPECT_EQ(y[i], kInf) << x[i];
    for (size_t i : {13, 14, 16}) EXPECT_EQ(y[i], 1.0f) << x[i];
  }
}

TEST(Exp, EveryLengthComputesTheSameBitsAndTouchesNothingBehind) {
  std::vector<float> x(70);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 5 * reference::noise(1, static_cast<int64_t>(i));
  for (Isa isa : instruction_sets()) {
    const std::vector<float> all = exp_of(isa, x);
    for (size_t n = 0; n <= x.size(); ++n) {
      std::vector<float> y(x.size() + 1, -1.0f),
          expected(all.begin(), all.begin() + static_cast<int64_t>(n));
      expected.resize(x.size() + 1, -1.0f);
      vector_exp(isa, x.data(), static_cast<int64_t>(n), y.data());
      expect_same_bits(y, expected);
    }
  }
}

}  // namespace
}  // namespace fathom
