#include "kernels/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

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

constexpr float kEps = 1e-6f;

void expect_norm(Context& ctx, const PaddedRows& x, const PaddedRows& weight) {
  const auto expected = reference::rms_norm_ref(x.view, weight.view.data, kEps);
  std::vector<double> bounds;
  for (const double y : expected)
    bounds.push_back((static_cast<double>(x.view.cols) / 32 + 9) * reference::kUnit * std::abs(y));
  PaddedRows out(x.view.rows, x.view.cols);
  rms_norm(ctx, x.view, weight.view.data, kEps, out.view);
  expect_close(out.view, expected, bounds);
  EXPECT_TRUE(out.intact());
}

TEST(RmsNorm, MatchesTheTwinAtEveryLength) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    for (int64_t n = 1; n <= 70; ++n) {
      SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::to_string(n));
      expect_norm(ctx, PaddedRows(3, n, 1), PaddedRows(1, n, 2));
    }
    expect_norm(ctx, PaddedRows(2, 7168, 1), PaddedRows(1, 7168, 2));
  }
}

TEST(RmsNorm, TinyAndLargeRowsKeepTheirShape) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    for (const float scale : {0.0f, 1e-12f, 1e-3f, 1e6f, 1e17f}) {
      expect_norm(ctx, PaddedRows(1, 37, 1, scale), PaddedRows(1, 37, 2));
    }
  }
}

TEST(RmsNorm, ARowDependsOnItselfOnlyAndMayBeNormalisedInPlace) {
  for (const Isa isa : instruction_sets()) {
    Context one(1, isa), three(3, isa);
    const PaddedRows x(40, 700, 1), weight(1, 700, 2);
    PaddedRows together(40, 700), alone(40, 700);
    rms_norm(three, x.view, weight.view.data, kEps, together.view);
    for (int64_t t = 0; t < 40; ++t) {
      rms_norm(one, x.view.slice(t, 1), weight.view.data, kEps, alone.view.slice(t, 1));
    }
    expect_same_bits(together.view, alone.view);
    rms_norm(three, x.view, weight.view.data, kEps, x.view);
    expect_same_bits(x.view, alone.view);
  }
}

TEST(RmsNorm, NanFillsItsRowAndNoOther) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    const PaddedRows x(3, 33, 1), weight(1, 33, 2);
    x.view.row(1)[32] = std::numeric_limits<float>::quiet_NaN();
    PaddedRows out(3, 33);
    rms_norm(ctx, x.view, weight.view.data, kEps, out.view);
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t i = 0; i < 33; ++i) EXPECT_EQ(std::isnan(out.view.row(t)[i]), t == 1);
    }
  }
}

void check_backward(Context& ctx, int64_t rows, int64_t n, float scale) {
  SCOPED_TRACE(std::string(isa_name(ctx.isa())) + " " + std::to_string(n) + " " +
               std::to_string(scale));
  const PaddedRows x(rows, n, 1, scale), weight(1, n, 2), dy(rows, n, 3), dx(rows, n),
      dweight(1, n, 4), before(1, n, 4);
  const auto g =
      reference::rms_norm_gradient(dense(x.view), dense(weight.view), kEps, dense(dy.view));
  Doubles expected = dense(before.view), bounds, dweight_bounds;
  const auto length = static_cast<double>(n);
  for (const double terms : g.dx_terms)
    bounds.push_back((length / 6 + 40) * reference::kUnit * terms);
  for (size_t i = 0; i < expected.size(); ++i) {
    expected[i] += g.dweight[i];
    dweight_bounds.push_back(reference::kUnit *
                             ((length / 32 + 11) * g.dweight_terms[i] + std::abs(expected[i])));
  }
  rms_norm_backward(ctx, x.view, weight.view.data, kEps, dy.view, dx.view, dweight.view.data);
  expect_close(dx.view, g.dx, bounds);
  expect_close(dweight.view, expected, dweight_bounds);
  EXPECT_TRUE(dx.intact() && dweight.intact());
}

TEST(RmsNormBackward, MatchesTheTwinAtEveryLengthAndScale) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (int64_t n = 1; n <= 70; ++n) check_backward(ctx, 3, n, 1);
    for (const int64_t n : {127, 128, 129, 7168}) check_backward(ctx, 5, n, 1);
    for (const float scale : {1e-12f, 1e-3f, 1e6f, 1e17f}) check_backward(ctx, 4, 37, scale);
  }
}

TEST(RmsNormBackward, HasTheSameBitsInPlaceAndOnAnyNumberOfThreads) {
  for (const Isa isa : instruction_sets()) {
    const PaddedRows x(90, 700, 1), weight(1, 700, 2), dy(90, 700, 3), dx(90, 700),
        dweight(1, 700, 4);
    Context one(1, isa);
    rms_norm_backward(one, x.view, weight.view.data, kEps, dy.view, dx.view, dweight.view.data);
    for (const int threads : {2, 3}) {
      Context ctx(threads, isa);
      const PaddedRows inout(90, 700, 3), own(1, 700, 4);
      rms_norm_backward(ctx, x.view, weight.view.data, kEps, inout.view, inout.view, own.view.data);
      expect_same_bits(inout.view, dx.view);
      expect_same_bits(own.view, dweight.view);
    }
    // One row alone, the gradient of the weight not wanted, dx over x.
    rms_norm_backward(one, x.view.slice(7, 1), weight.view.data, kEps, dy.view.slice(7, 1),
                      x.view.slice(7, 1), nullptr);
    expect_same_bits(x.view.slice(7, 1), dx.view.slice(7, 1));
  }
}

}  // namespace
}  // namespace fathom
