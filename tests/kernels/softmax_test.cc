#include "kernels/softmax.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/reference/expect_close.h"
#include "tests/reference/ops_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;
using reference::kUnit;
using reference::PaddedRows;

constexpr float kInf = std::numeric_limits<float>::infinity(),
                kNan = std::numeric_limits<float>::quiet_NaN();

void expect_log_sum_exp(Context& ctx, ConstRows x, double spread) {
  const auto expected = reference::log_sum_exp_ref(x);
  std::vector<float> out(static_cast<size_t>(x.rows));
  std::vector<double> bounds;
  for (const double y : expected)
    bounds.push_back((264 + spread + (std::isfinite(y) ? std::abs(y) : 0)) * kUnit);
  log_sum_exp(ctx, x, out);
  expect_close(out, expected, bounds);
}

TEST(LogSumExp, MatchesTheTwinAtEveryLengthAndSpread) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (int64_t n = 0; n <= 70; ++n) expect_log_sum_exp(ctx, PaddedRows(3, n, 1, 10).view, 20);
    for (const float scale : {1e-6f, 1.0f, 30.0f, 1000.0f}) {
      expect_log_sum_exp(ctx, PaddedRows(3, 129280, 1, scale).view, 2 * scale);
    }
  }
}

TEST(LogSumExp, NanAndInfinitiesSurface) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    for (const int64_t n : {1, 5, 16, 33, 5000}) {
      for (const float filler : {1.0f, -kInf}) {
        for (const float special : {kNan, kInf, -kInf}) {
          for (const int64_t where : {int64_t{0}, n / 2, n - 1}) {
            const PaddedRows x(1, n);
            std::fill_n(x.view.data, n, filler);
            x.view.data[where] = special;
            expect_log_sum_exp(ctx, x.view, 0);
          }
        }
      }
    }
  }
}

TEST(LogSumExp, ARowDependsOnItselfOnly) {
  for (const Isa isa : instruction_sets()) {
    Context one(1, isa), three(3, isa);
    const PaddedRows x(20, 9000, 1, 8);
    std::vector<float> together(20), alone(20);
    log_sum_exp(three, x.view, together);
    for (int64_t t = 0; t < 20; ++t) {
      log_sum_exp(one, x.view.slice(t, 1), std::span(alone).subspan(static_cast<size_t>(t), 1));
    }
    expect_same_bits(together, alone);
  }
}

}  // namespace
}  // namespace fathom
