#include "kernels/rms_norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "tests/reference/expect_close.h"
#include "tests/reference/ops_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;
using reference::PaddedRows;

constexpr float kEps = 1e-6f;

void expect_norm(Context& ctx, const PaddedRows& x, const PaddedRows& weight) {
  const auto expected = reference::rms_norm_ref(x.view, weight.view.data, kEps);
  std::vector<double> bounds;
  for (const double y : expected) bounds.push_back((static_cast<double>(x.view.cols) / 32 + 9) * reference::kUnit * std::abs(y));
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

}  // namespace
}  // namespace fathom
