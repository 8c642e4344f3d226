#include "kernels/cross_entropy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/softmax.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/ops_backward_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::dense;
using reference::Doubles;
using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;
using reference::kUnit;
using reference::PaddedRows;

std::vector<int32_t> some_targets(int64_t rows, int64_t vocab_size) {
  std::vector<int32_t> targets;
  for (int64_t t = 0; t < rows; ++t)
    targets.push_back(t % 4 == 1 ? -1 : static_cast<int32_t>(t * 31 % vocab_size));
  return targets;
}

void check(Context& ctx, int64_t rows, int64_t n, float size) {
  SCOPED_TRACE(std::string(isa_name(ctx.isa())) + " " + std::to_string(n) + " " +
               std::to_string(size));
  constexpr float kScale = 0.125f;
  const PaddedRows logits(rows, n, 1, size);
  const std::vector<int32_t> targets = some_targets(rows, n);
  const Doubles x = dense(logits.view);
  Doubles expected = reference::cross_entropy_gradient(x, targets, n), bounds;
  const double loss = reference::cross_entropy_value(x, targets, n);
  const double spread = 2 * static_cast<double>(size);
  for (double& p : expected) {
    const auto t = bounds.size() / static_cast<size_t>(n);
    const bool target = static_cast<int32_t>(bounds.size() % static_cast<size_t>(n)) == targets[t];
    const double probability = p + (target ? 1 : 0);
    bounds.push_back(
        targets[t] < 0
            ? 0
            : kScale * ((probability * (280 + spread) + (target ? 1 : 0)) * kUnit + 0x1p-120));
    p *= kScale;
  }
  const CrossEntropy result = softmax_cross_entropy(ctx, targets, kScale, logits.view);
  expect_close(logits.view, expected, bounds);
  EXPECT_TRUE(logits.intact());
  EXPECT_EQ(result.count,
            std::count_if(targets.begin(), targets.end(), [](int32_t t) { return t >= 0; }));
  EXPECT_NEAR(result.loss, loss,
              static_cast<double>(result.count) * (264 + spread) * kUnit + 1e-15 * loss);
}

TEST(CrossEntropy, MatchesTheTwinAtEveryLengthAndSpread) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (int64_t n = 1; n <= 70; ++n) check(ctx, 5, n, 4);
    for (const float size : {1e-6f, 1.0f, 30.0f, 1000.0f}) check(ctx, 6, 12928, size);
    EXPECT_EQ(softmax_cross_entropy(ctx, {}, 1, {nullptr, 0, 7, 7}).count, 0);
  }
}

TEST(CrossEntropy, RowsWithoutATargetAreNotReadAndNanStaysInItsRow) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    const PaddedRows logits(3, 40, 1);
    std::fill_n(logits.view.row(0), 40, std::numeric_limits<float>::quiet_NaN());
    logits.view.row(2)[39] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isfinite(
        softmax_cross_entropy(ctx, std::vector<int32_t>{-1, 7}, 1, logits.view.slice(0, 2)).loss));
    for (int64_t i = 0; i < 80; ++i) EXPECT_TRUE(std::isfinite(logits.view.row(i / 40)[i % 40]));
    EXPECT_TRUE(std::isnan(
        softmax_cross_entropy(ctx, std::vector<int32_t>{3}, 1, logits.view.slice(2, 1)).loss));
    for (int64_t i = 0; i < 40; ++i) EXPECT_TRUE(std::isnan(logits.view.row(2)[i]));
  }
}

TEST(CrossEntropy, HasTheSameBitsOnAnyNumberOfThreads) {
  const std::vector<int32_t> targets = some_targets(50, 5000);
  for (const Isa isa : instruction_sets()) {
    const PaddedRows first(50, 5000, 1, 3);
    Context one(1, isa);
    const double loss = softmax_cross_entropy(one, targets, 0.01f, first.view).loss;
    for (const int threads : {2, 3}) {
      Context ctx(threads, isa);
      const PaddedRows logits(50, 5000, 1, 3);
      EXPECT_EQ(softmax_cross_entropy(ctx, targets, 0.01f, logits.view).loss, loss);
      expect_same_bits(logits.view, first.view);
    }
  }
}

void check_log_prob_entropy(Context& ctx, int64_t rows, int64_t n, float size) {
  SCOPED_TRACE(std::string(isa_name(ctx.isa())) + " " + std::to_string(n) + " " +
               std::to_string(size));
  const PaddedRows logits(rows, n, 1, size);
  const std::vector<int32_t> targets = some_targets(rows, n);
  const Doubles x = dense(logits.view);
  std::vector<float> log_prob(targets.size()), entropy(targets.size()), d_log_prob, d_entropy;
  for (size_t t = 0; t < targets.size(); ++t)
    d_log_prob.push_back(0.5f - static_cast<float>(t)),
        d_entropy.push_back(0.25f * static_cast<float>(t));
  log_prob_entropy(ctx, targets, logits.view, log_prob, entropy);
  Doubles expected, bounds;
  const double spread = 2 * static_cast<double>(size);
  for (size_t t = 0; t < targets.size(); ++t) {
    const auto row = std::span(x).subspan(t * static_cast<size_t>(n), static_cast<size_t>(n));
    if (targets[t] < 0) {
      EXPECT_EQ(log_prob[t], 0);
      EXPECT_EQ(entropy[t], 0);
      expected.resize(expected.size() + row.size());
      bounds.resize(expected.size());
      continue;
    }
    const auto [lp, h] = reference::log_prob_entropy_value(row, targets[t]);
    EXPECT_NEAR(log_prob[t], lp, (264 + spread + std::abs(lp) + size) * kUnit);
    EXPECT_NEAR(entropy[t], h, (280 + spread) * (1 + h) * kUnit);
    const Doubles gradient =
        reference::log_prob_entropy_gradient(row, targets[t], d_log_prob[t], d_entropy[t]);
    const double largest = std::abs(d_log_prob[t]) + std::abs(d_entropy[t]) * (1 + h + spread);
    for (const double g : gradient) {
      const bool target =
          static_cast<int32_t>(expected.size() % static_cast<size_t>(n)) == targets[t];
      // Factor and line each have the error of their parts; p <= 1, and e^y below 2^-126 is 0.
      const double p = std::min(1.0, std::exp(row[expected.size() % static_cast<size_t>(n)] + lp -
                                              row[static_cast<size_t>(targets[t])]));
      bounds.push_back(largest *
                       (p * 2 * (300 + spread) * kUnit + (target ? kUnit : 0) + 0x1p-118));
      expected.push_back(g);
    }
  }
  log_prob_entropy_backward(ctx, targets, entropy, d_log_prob, d_entropy, logits.view);
  expect_close(logits.view, expected, bounds);
  EXPECT_TRUE(logits.intact());
}

TEST(LogProbEntropy, MatchesTheTwinAtEveryLengthAndSpread) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (int64_t n = 1; n <= 70; ++n) check_log_prob_entropy(ctx, 5, n, 4);
    for (const float size : {1e-6f, 1.0f, 30.0f, 1000.0f})
      check_log_prob_entropy(ctx, 6, 12928, size);
  }
}

TEST(LogProbEntropy, TheLogProbabilityHasTheBitsOfTheSamplers) {
  Context ctx(1);
  const PaddedRows logits(9, 500, 1, 5);
  const std::vector<int32_t> targets = some_targets(9, 500);
  std::vector<float> log_prob(9), entropy(9), sums(9);
  log_prob_entropy(ctx, targets, logits.view, log_prob, entropy);
  log_sum_exp(ctx, logits.view, sums);
  for (size_t t = 0; t < 9; ++t) {
    if (targets[t] < 0) continue;
    EXPECT_EQ(
        log_prob[t],
        static_cast<float>(
            static_cast<double>(logits.view.row(static_cast<int64_t>(t))[targets[t]]) - sums[t]));
  }
}

TEST(LogProbEntropy, ALogitOfMinusInfinityCountsAsNothing) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    const PaddedRows logits(1, 20, 1);
    std::fill_n(logits.view.row(0), 20, -std::numeric_limits<float>::infinity());
    logits.view.row(0)[3] = logits.view.row(0)[17] = 2;
    const std::vector<int32_t> targets = {3};
    std::vector<float> log_prob(1), entropy(1);
    log_prob_entropy(ctx, targets, logits.view, log_prob, entropy);
    EXPECT_NEAR(log_prob[0], -std::log(2.0), 1e-6);
    EXPECT_NEAR(entropy[0], std::log(2.0), 1e-6);
    log_prob_entropy_backward(ctx, targets, entropy, std::vector<float>{1}, std::vector<float>{1},
                              logits.view);
    for (int64_t i = 0; i < 20; ++i)
      EXPECT_NEAR(logits.view.row(0)[i], i == 3 ? 0.5 : i == 17 ? -0.5 : 0, 1e-6) << i;
  }
}

}  // namespace
}  // namespace fathom
