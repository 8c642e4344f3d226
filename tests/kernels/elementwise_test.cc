#include "kernels/elementwise.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/reference/expect_close.h"
#include "tests/reference/ops_backward_ref.h"
#include "tests/reference/ops_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::dense;
using reference::Doubles;
using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;
using reference::PaddedRows;

void expect_swiglu(Context& ctx, const PaddedRows& gate, const PaddedRows& up) {
  const auto expected = reference::swiglu_ref(gate.view, up.view);
  std::vector<double> bounds;
  for (int64_t t = 0; t < up.view.rows; ++t) {
    for (int64_t i = 0; i < up.view.cols; ++i) {
      bounds.push_back(8 * reference::kUnit * std::abs(expected[bounds.size()]) +
                       1e-36 * std::abs(up.view.row(t)[i]));
    }
  }
  PaddedRows out(gate.view.rows, gate.view.cols);
  swiglu(ctx, gate.view, up.view, out.view);
  expect_close(out.view, expected, bounds);
  EXPECT_TRUE(out.intact());
}

TEST(Swiglu, MatchesTheTwinAtEveryLengthAndSize) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    for (int64_t n = 0; n <= 70; ++n)
      expect_swiglu(ctx, PaddedRows(2, n, 1, 5), PaddedRows(2, n, 2));
    for (const float scale : {1e-30f, 1e-3f, 20.0f, 100.0f, 1e30f}) {
      expect_swiglu(ctx, PaddedRows(3, 300, 1, scale), PaddedRows(3, 300, 2));
    }
  }
}

TEST(Swiglu, NanAndInfinityComeOutWhereTheFormulaHasThem) {
  constexpr float kInf = std::numeric_limits<float>::infinity(),
                  kNan = std::numeric_limits<float>::quiet_NaN();
  for (const Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    const PaddedRows gate(1, 20, 1), up(1, 20, 2), out(1, 20);
    gate.view.row(0)[1] = kNan;
    up.view.row(0)[17] = kNan;
    gate.view.row(0)[2] = kInf;
    up.view.row(0)[2] = 1;
    swiglu(ctx, gate.view, up.view, out.view);
    for (int64_t i = 0; i < 20; ++i)
      EXPECT_EQ(std::isnan(out.view.row(0)[i]), i == 1 || i == 17) << i;
    EXPECT_EQ(out.view.row(0)[2], kInf);
  }
}

TEST(Swiglu, HasTheSameBitsRowByRowInPlaceAndOnAnyNumberOfThreads) {
  for (const Isa isa : instruction_sets()) {
    Context one(1, isa), three(3, isa);
    const PaddedRows gate(5, 20000, 1, 4), up(5, 20000, 2), together(5, 20000), alone(5, 20000);
    swiglu(three, gate.view, up.view, together.view);
    for (int64_t t = 0; t < 5; ++t) {
      swiglu(one, gate.view.slice(t, 1), up.view.slice(t, 1), alone.view.slice(t, 1));
    }
    expect_same_bits(together.view, alone.view);
    swiglu(three, gate.view, up.view, up.view);
    expect_same_bits(up.view, alone.view);
  }
}

TEST(Add, IsTheRoundedSumAtEveryLength) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (int64_t n = 0; n <= 70; ++n) {
      const PaddedRows x(3, n, 1), y(3, n, 2), sum(3, n, 2);
      add(ctx, x.view, sum.view);
      for (int64_t t = 0; t < 3; ++t) {
        for (int64_t i = 0; i < n; ++i)
          EXPECT_EQ(sum.view.row(t)[i], x.view.row(t)[i] + y.view.row(t)[i]);
      }
      EXPECT_TRUE(sum.intact());
    }
  }
}

TEST(Bf16, ConversionsEqualTheScalarOnesBitForBit) {
  std::vector<float> x;
  for (uint32_t high = 0; high < 0x10000; ++high) {
    for (const uint32_t low : {0u, 1u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu})
      x.push_back(std::bit_cast<float>(high << 16 | low));
  }
  for (const Isa isa : instruction_sets()) {
    std::vector<bf16> narrow(x.size());
    to_bf16(isa, x.data(), static_cast<int64_t>(x.size()), narrow.data());
    for (size_t i = 0; i < x.size(); ++i) {
      ASSERT_EQ(narrow[i], f32_to_bf16(x[i])) << std::bit_cast<uint32_t>(x[i]);
      ASSERT_EQ(std::isnan(bf16_to_f32(narrow[i])), std::isnan(x[i]));
    }
    std::vector<bf16> all(0x10000);
    for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<bf16>(i);
    std::vector<float> wide(all.size());
    from_bf16(isa, all.data(), static_cast<int64_t>(all.size()), wide.data());
    for (size_t i = 0; i < all.size(); ++i)
      ASSERT_EQ(std::bit_cast<uint32_t>(wide[i]), static_cast<uint32_t>(i) << 16);
  }
}

TEST(Bf16, ConversionsTouchNothingBesideTheirRange) {
  for (const Isa isa : instruction_sets()) {
    for (int64_t n = 0; n <= 70; ++n) {
      const PaddedRows x(1, n, 1);
      std::vector<bf16> narrow(static_cast<size_t>(n) + 2, 0x1234);
      to_bf16(isa, x.view.data, n, narrow.data() + 1);
      EXPECT_EQ(narrow.front(), 0x1234);
      EXPECT_EQ(narrow.back(), 0x1234);
      const PaddedRows wide(1, n);
      from_bf16(isa, narrow.data() + 1, n, wide.view.data);
      for (int64_t i = 0; i < n; ++i)
        EXPECT_EQ(wide.view.data[i], bf16_to_f32(f32_to_bf16(x.view.data[i])));
      EXPECT_TRUE(wide.intact());
    }
  }
}

void expect_swiglu_backward(Context& ctx, int64_t rows, int64_t n, float scale) {
  const PaddedRows gate(rows, n, 1, scale), up(rows, n, 2), dy(rows, n, 3), dgate(rows, n),
      dup(rows, n);
  const Doubles g = dense(gate.view), u = dense(up.view), d = dense(dy.view);
  const auto expected = reference::swiglu_gradient(g, u, d);
  Doubles gate_bounds, up_bounds;
  for (size_t i = 0; i < g.size(); ++i) {
    const double s = 1 / (1 + std::exp(-g[i])), rest = 1 / (1 + std::exp(g[i]));
    gate_bounds.push_back(std::abs(d[i] * u[i]) *
                          (32 * reference::kUnit * s * (1 + std::abs(g[i]) * rest) + 0x1p-118));
    up_bounds.push_back(8 * reference::kUnit * std::abs(expected.dup[i]) +
                        0x1p-118 * std::abs(d[i]));
  }
  swiglu_backward(ctx, gate.view, up.view, dy.view, dgate.view, dup.view);
  expect_close(dgate.view, expected.dgate, gate_bounds);
  expect_close(dup.view, expected.dup, up_bounds);
  EXPECT_TRUE(dgate.intact() && dup.intact());
}

TEST(SwigluBackward, MatchesTheTwinAtEveryLengthAndSize) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (int64_t n = 0; n <= 70; ++n) expect_swiglu_backward(ctx, 2, n, 5);
    for (const float scale : {1e-30f, 1e-3f, 20.0f, 100.0f, 1e30f})
      expect_swiglu_backward(ctx, 3, 300, scale);
  }
}

TEST(SwigluBackward, HasTheSameBitsInPlaceAndOnAnyNumberOfThreads) {
  for (const Isa isa : instruction_sets()) {
    Context one(1, isa);
    const PaddedRows gate(5, 20000, 1, 4), up(5, 20000, 2), dy(5, 20000, 3), dgate(5, 20000),
        dup(5, 20000);
    swiglu_backward(one, gate.view, up.view, dy.view, dgate.view, dup.view);
    for (const int threads : {2, 3}) {
      Context ctx(threads, isa);
      const PaddedRows g(5, 20000, 1, 4), u(5, 20000, 2), d(5, 20000, 3);
      const bool over_dy = threads == 3;
      swiglu_backward(ctx, g.view, u.view, d.view, over_dy ? d.view : g.view, u.view);
      expect_same_bits(over_dy ? d.view : g.view, dgate.view);
      expect_same_bits(u.view, dup.view);
    }
  }
}

}  // namespace
}  // namespace fathom
