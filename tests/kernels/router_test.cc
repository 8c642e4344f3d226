#include "kernels/router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
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
using reference::kUnit;
using reference::noise;
using reference::PaddedRows;

constexpr float kInf = std::numeric_limits<float>::infinity(),
                kNan = std::numeric_limits<float>::quiet_NaN();

struct Routed {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Routed run(Context& ctx, const RouterRule& rule, ConstRows logits, const float* bias) {
  const auto slots = static_cast<size_t>(logits.rows * rule.num_experts_per_tok);
  Routed r{std::vector<int32_t>(slots), std::vector<float>(slots)};
  route(ctx, rule, logits, bias, r.experts.data(), r.weights.data());
  return r;
}

Routed run_one(const RouterRule& rule, const std::vector<float>& logits, const float* bias) {
  Context ctx(1);
  const auto n = static_cast<int64_t>(logits.size());
  return run(ctx, rule, {logits.data(), 1, n, n}, bias);
}

constexpr auto kSoftmax = ScoringFunc::kSoftmax;
constexpr auto kSigmoid = ScoringFunc::kSigmoid;

// Every released router and the combinations between: experts, k, n_group, topk_group, norm,
// factor.
std::vector<RouterRule> rules() {
  return {
      {kSoftmax, TopkMethod::kGreedy, 64, 6, 1, 1, false, 1.0f},                // V2-Lite
      {kSoftmax, TopkMethod::kGroupLimitedGreedy, 160, 6, 8, 3, false, 16.0f},  // V2
      {kSigmoid, TopkMethod::kNoauxTc, 256, 8, 8, 4, true, 2.5f},               // V3
      {kSigmoid, TopkMethod::kNoauxTc, 384, 8, 1, 1, true, 2.827f},             // K2
      {kSoftmax, TopkMethod::kGreedy, 16, 4, 1, 1, true, 3.0f},
      {kSoftmax, TopkMethod::kGreedy, 16, 1, 1, 1, true, 3.0f},
      {kSigmoid, TopkMethod::kGreedy, 7, 3, 1, 1, false, 2.0f},
      {kSigmoid, TopkMethod::kNoauxTc, 8, 8, 4, 4, true, 1.0f},
      {kSigmoid, TopkMethod::kNoauxTc, 6, 2, 6, 3, true, 1.0f},  // groups of one
      {kSigmoid, TopkMethod::kGroupLimitedGreedy, 12, 4, 4, 2, true, 1.0f},
      {kSoftmax, TopkMethod::kNoauxTc, 12, 4, 4, 2, false, 0.5f},
  };
}

TEST(Router, ChoosesAndWeighsLikeTheTwinForEveryRule) {
  Context ctx(2);
  constexpr int64_t kTokens = 400;
  for (const RouterRule& rule : rules()) {
    // 0: ties are improbable; else logits and biases are multiples of 1 / steps
    for (const float steps : {0.0f, 2.0f, 64.0f}) {
      for (const float bias_scale : {0.01f, 1.0f, 20.0f}) {
        SCOPED_TRACE(std::to_string(rule.n_routed_experts) + " experts, steps " +
                     std::to_string(steps));
        const PaddedRows logits(kTokens, rule.n_routed_experts, 1, 3),
            bias(1, rule.n_routed_experts, 2, bias_scale);
        if (steps > 0) {
          for (int64_t i = 0; i < kTokens * logits.view.stride - 3; ++i) {
            logits.view.data[i] = std::round(logits.view.data[i] * steps) / steps;
          }
          for (int64_t i = 0; i < bias.view.cols; ++i)
            bias.view.data[i] = std::round(bias.view.data[i] * steps) / steps;
        }
        const float* correction =
            rule.topk_method == TopkMethod::kNoauxTc ? bias.view.data : nullptr;
        const auto expected = reference::route_ref(rule, logits.view, correction);
        const Routed actual = run(ctx, rule, logits.view, correction);
        EXPECT_EQ(actual.experts, expected.experts);
        std::vector<double> bounds;
        for (const double w : expected.weights) bounds.push_back(1.001 * kUnit * w);
        expect_close(actual.weights, expected.weights, bounds);
      }
    }
  }
}

TEST(Router, V3ByHand) {
  // s = 0.5, 0.75, 0.25, 0.9 | biases move the choice from {1, 3} to {0, 2}; the weights are the
  // unbiased s.
  const RouterRule rule{kSigmoid, TopkMethod::kNoauxTc, 4, 2, 1, 1, true, 2.5f};
  const std::vector<float> logits = {0, std::log(3.0f), -std::log(3.0f), std::log(9.0f)},
                           bias = {1, 0, 2, 0};
  const Routed r = run_one(rule, logits, bias.data());
  EXPECT_EQ(r.experts, (std::vector<int32_t>{0, 2}));
  const std::vector<double> expected = {2.5 * 0.5 / 0.75, 2.5 * 0.25 / 0.75};
  expect_close(r.weights, expected, 1e-6);
}

TEST(Router, GroupsAreRankedByTwoBestForV3AndByTheBestForV2) {
  // Group 0 has the largest score, group 1 the larger two.
  const std::vector<float> logits = {3, -3, 2, 2}, bias(4, 0.0f);
  EXPECT_EQ(run_one({kSigmoid, TopkMethod::kNoauxTc, 4, 1, 2, 1, true, 1}, logits, bias.data())
                .experts[0],
            2);
  EXPECT_EQ(
      run_one({kSoftmax, TopkMethod::kGroupLimitedGreedy, 4, 1, 2, 1, false, 1}, logits, nullptr)
          .experts[0],
      0);
}

TEST(Router, AnExpertOutsideTheKeptGroupsIsNotChosenEvenIfAllInsideAreNegative) {
  // sums: group 0 -20, group 1 -24
  const std::vector<float> logits(4, 0.0f), bias = {-10, -11, -30, 5};
  const Routed r =
      run_one({kSigmoid, TopkMethod::kNoauxTc, 4, 2, 2, 1, true, 1}, logits, bias.data());
  EXPECT_EQ(r.experts, (std::vector<int32_t>{0, 1}));
}

TEST(Router, V2WeighsByProbabilityTimesTheFactor) {
  const std::vector<float> logits = {0, std::log(2.0f), std::log(5.0f)};
  const Routed r = run_one({kSoftmax, TopkMethod::kGreedy, 3, 2, 1, 1, false, 16}, logits, nullptr);
  EXPECT_EQ(r.experts, (std::vector<int32_t>{1, 2}));
  const std::vector<double> expected = {16 * 0.25, 16 * 0.625};
  expect_close(r.weights, expected, 1e-5);
}

TEST(Router, EqualLogitsGoToTheLowestIds) {
  for (const RouterRule& rule : rules()) {
    const std::vector<float> same(static_cast<size_t>(rule.n_routed_experts), 0.25f);
    const Routed r =
        run_one(rule, same, rule.topk_method == TopkMethod::kNoauxTc ? same.data() : nullptr);
    for (size_t j = 0; j < r.experts.size(); ++j) EXPECT_EQ(r.experts[j], static_cast<int32_t>(j));
  }
}

TEST(Router, NanGivesNanWeightsAndValidIdsInItsRowOnly) {
  Context ctx(1);
  for (const RouterRule& rule : rules()) {
    const int n = rule.n_routed_experts;
    const PaddedRows logits(3, n, 1), bias(1, n, 2);
    const float* correction = rule.topk_method == TopkMethod::kNoauxTc ? bias.view.data : nullptr;
    logits.view.row(1)[n - 1] = kNan;
    const Routed r = run(ctx, rule, logits.view, correction);
    for (size_t i = 0; i < r.experts.size(); ++i) {
      const bool second = i / static_cast<size_t>(rule.num_experts_per_tok) == 1;
      EXPECT_EQ(std::isnan(r.weights[i]), second);
      EXPECT_TRUE(r.experts[i] >= 0 && r.experts[i] < n);
      EXPECT_TRUE(i % static_cast<size_t>(rule.num_experts_per_tok) == 0 ||
                  r.experts[i - 1] < r.experts[i]);
    }
  }
}

TEST(Router, InfiniteLogitsAreSafe) {
  const std::vector<float> bias(4, 0.0f);
  const RouterRule v3{kSigmoid, TopkMethod::kNoauxTc, 4, 2, 1, 1, true, 1};
  const Routed r = run_one(v3, {-kInf, kInf, -kInf, 0}, bias.data());
  EXPECT_EQ(r.experts, (std::vector<int32_t>{1, 3}));
  const std::vector<double> expected = {1 / 1.5, 0.5 / 1.5};
  expect_close(r.weights, expected, 1e-7);
  for (const float w :
       run_one({kSoftmax, TopkMethod::kGreedy, 4, 2, 1, 1, false, 1}, {kInf, 0, 0, 0}, nullptr)
           .weights) {
    EXPECT_TRUE(std::isnan(w));
  }
}

TEST(Router, ARowDependsOnItselfOnly) {
  Context one(1), three(3);
  for (const RouterRule& rule : rules()) {
    const PaddedRows logits(50, rule.n_routed_experts, 1, 2), bias(1, rule.n_routed_experts, 2);
    const float* correction = rule.topk_method == TopkMethod::kNoauxTc ? bias.view.data : nullptr;
    const Routed together = run(three, rule, logits.view, correction);
    const auto k = static_cast<size_t>(rule.num_experts_per_tok);
    for (int64_t t = 0; t < 50; ++t) {
      const Routed alone = run(one, rule, logits.view.slice(t, 1), correction);
      const size_t begin = static_cast<size_t>(t) * k;
      EXPECT_TRUE(std::equal(alone.experts.begin(), alone.experts.end(),
                             together.experts.begin() + static_cast<int64_t>(begin)));
      expect_same_bits(alone.weights, std::span(together.weights).subspan(begin, k));
    }
  }
}

// Doubles all the way: an error of 2^-40 of the terms, far above what they lose, then one rounding
// to f32.
TEST(RouterBackward, MatchesTheTwinForEveryRule) {
  Context ctx(2);
  for (const RouterRule& rule : rules()) {
    const int64_t tokens = 9, n = rule.n_routed_experts, k = rule.num_experts_per_tok;
    SCOPED_TRACE(std::to_string(n) + " " + std::to_string(k));
    const PaddedRows logits(tokens, n, 1, 3), bias(1, n, 2, 0.1f), dweights(1, tokens * k, 3),
        dlogits(tokens, n);
    const Routed r = run(ctx, rule, logits.view,
                         rule.topk_method == TopkMethod::kNoauxTc ? bias.view.data : nullptr);
    const Doubles expected =
        reference::route_gradient(rule, dense(logits.view), r.experts, dense(dweights.view));
    Doubles bounds;
    for (const double v : expected)
      bounds.push_back(kUnit * std::abs(v) + 0x1p-40 * rule.routed_scaling_factor);
    route_backward(ctx, rule, logits.view, r.experts.data(), dweights.view.data, dlogits.view);
    expect_close(dlogits.view, expected, bounds);
    EXPECT_TRUE(dlogits.intact());
  }
}

// Two groups of two, one kept, three experts chosen: one of them from the other group, with the
// constant weight 0.
TEST(RouterBackward, AnExpertOfALeftOutGroupHasNoGradient) {
  Context ctx(1);
  const RouterRule rule{kSigmoid, TopkMethod::kGroupLimitedGreedy, 4, 3, 2, 1, false, 1};
  const std::vector<float> logits = {0, 1, 5, 6}, dweights = {1, 1, 1};
  const Routed r = run_one(rule, logits, nullptr);
  EXPECT_EQ(r.experts, (std::vector<int32_t>{0, 2, 3}));
  EXPECT_EQ(r.weights[0], 0);
  std::vector<float> dlogits(4, 7);
  route_backward(ctx, rule, {logits.data(), 1, 4, 4}, r.experts.data(), dweights.data(),
                 {dlogits.data(), 1, 4, 4});
  EXPECT_EQ(dlogits[0], 0);
  EXPECT_EQ(dlogits[1], 0);
  EXPECT_GT(dlogits[2], 0);
  EXPECT_GT(dlogits[3], 0);
}

TEST(BalanceLoss, MatchesTheTwinForEveryRuleAndEveryLoss) {
  Context ctx(2);
  for (const RouterRule& rule : rules()) {
    for (const BalanceAlpha& alpha :
         {BalanceAlpha{0.5, 0, 0}, {0, 0.5, 0}, {0, 0, 0.5}, {0.1, 0.2, 0.3}}) {
      const int64_t tokens = 9, n = rule.n_routed_experts;
      const std::vector<int64_t> documents = {1, 5, 3};
      const PaddedRows logits(tokens, n, 1, 3), bias(1, n, 2, 0.1f), dlogits(tokens, n, 4),
          before(tokens, n, 4);
      const Routed r = run(ctx, rule, logits.view,
                           rule.topk_method == TopkMethod::kNoauxTc ? bias.view.data : nullptr);
      const Doubles x = dense(logits.view),
                    gradient = reference::balance_gradient(rule, x, r.experts, documents, alpha);
      Doubles expected = dense(before.view), bounds;
      for (size_t i = 0; i < expected.size(); ++i) {
        expected[i] += gradient[i];
        bounds.push_back(kUnit * std::abs(expected[i]) + 0x1p-40);
      }
      const double loss =
          balance_loss(ctx, rule, logits.view, r.experts.data(), documents, alpha, dlogits.view);
      EXPECT_NEAR(loss, reference::balance_value(rule, x, r.experts, documents, alpha), 1e-13);
      expect_close(dlogits.view, expected, bounds);
      EXPECT_TRUE(dlogits.intact());
    }
  }
}

// Every token picks both experts of two: f = 1 and sum P = 1, whatever the scores.
TEST(BalanceLoss, OfAPerfectBalanceIsAlphaAndHasNoGradient) {
  Context ctx(1);
  const RouterRule rule{kSigmoid, TopkMethod::kGreedy, 2, 2, 1, 1, true, 1};
  const BalanceAlpha alpha{.sequence = 0.25};
  const PaddedRows logits(3, 2, 1), dlogits(3, 2, 2), before(3, 2, 2);
  const std::vector<int32_t> experts = {0, 1, 0, 1, 0, 1};
  const std::vector<int64_t> documents = {2, 1};
  EXPECT_NEAR(balance_loss(ctx, rule, logits.view, experts.data(), documents, alpha, dlogits.view),
              0.25, 1e-15);
  expect_close(dlogits.view, dense(before.view), 1e-15);
  EXPECT_EQ(balance_loss(ctx, rule, {nullptr, 0, 2, 2}, nullptr, {}, alpha, {nullptr, 0, 2, 2}), 0);
}

// Two groups of two experts, two tokens, equal scores 1/4: P = 1/4, P' = 1/2 each.
TEST(BalanceLoss, OfDevicesByHand) {
  Context ctx(1);
  const RouterRule rule{kSoftmax, TopkMethod::kGroupLimitedGreedy, 4, 2, 2, 1, false, 1};
  const PaddedRows logits(2, 4, 1, 0), dlogits(2, 4, 2, 0);
  const std::vector<int32_t> experts = {0, 1, 0, 2};
  const std::vector<int64_t> documents = {2};
  const auto loss = [&](const BalanceAlpha& alpha) {
    return balance_loss(ctx, rule, logits.view, experts.data(), documents, alpha, dlogits.view);
  };
  // f = 4 / (2 * 2) of (2, 1, 1, 0): f' = 1.5, 0.5. The whole gradient of token 0, expert 0, before
  // the softmax: 1.5 / 2; after it 1/4 (1.5 - 1) / 2.
  EXPECT_NEAR(loss({.device = 1}), 1.5 / 2 + 0.5 / 2, 1e-15);
  EXPECT_NEAR(dlogits.view.row(0)[0], 0.0625, 1e-8);
  EXPECT_NEAR(dlogits.view.row(1)[2], -0.0625, 1e-8);
  // Group 0 receives both tokens, token 0 once though it has two experts there; group 1 one:
  // f'' = 2 / (1 * 2) of (2, 1).
  EXPECT_NEAR(loss({.communication = 1}), 2.0 / 2 + 1.0 / 2, 1e-15);
}

TEST(RouterBackward, HasTheSameBitsOnAnyNumberOfThreads) {
  const RouterRule rule = rules()[2];
  const int64_t tokens = 90, n = rule.n_routed_experts;
  const PaddedRows logits(tokens, n, 1, 2), bias(1, n, 2),
      dweights(1, tokens * rule.num_experts_per_tok, 3), first(tokens, n);
  const std::vector<int64_t> documents = {60, 30};
  Context one(1);
  const Routed r = run(one, rule, logits.view, bias.view.data);
  const auto both = [&](Context& ctx, Rows out) {
    route_backward(ctx, rule, logits.view, r.experts.data(), dweights.view.data, out);
    return balance_loss(ctx, rule, logits.view, r.experts.data(), documents, {0.5, 0.5, 0.5}, out);
  };
  const double loss = both(one, first.view);
  for (const int threads : {2, 3}) {
    Context ctx(threads);
    const PaddedRows dlogits(tokens, n);
    EXPECT_EQ(both(ctx, dlogits.view), loss);
    expect_same_bits(dlogits.view, first.view);
  }
}

}  // namespace
}  // namespace fathom
