// The gradients of the twins against central differences of their values, along random directions
// of every input; and the values against the forward twins.
#include "tests/reference/ops_backward_ref.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/reference/expect_close.h"
#include "tests/reference/ops_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::Doubles;
using reference::expect_close;
using reference::PaddedRows;

Doubles random_doubles(int64_t n, uint64_t stream, double scale = 1) {
  Doubles x;
  for (int64_t i = 0; i < n; ++i)
    x.push_back(
        scale *
        (random_uniform({.seed = 3, .sequence = stream}, static_cast<uint64_t>(i)) * 2 - 1));
  return x;
}

double dot(const Doubles& a, const Doubles& b) {
  EXPECT_EQ(a.size(), b.size());
  double sum = 0;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) sum += a[i] * b[i];
  return sum;
}

// The error of a central difference is h^2 f''' / 6 + 2^-53 f / h: far below 1e-6 of the terms for
// functions as smooth as these.
void expect_gradient(const std::function<double(const Doubles&)>& f, const Doubles& x,
                     const Doubles& gradient) {
  ASSERT_EQ(gradient.size(), x.size());
  constexpr double kStep = 1e-4;
  for (uint64_t direction = 0; direction < 4; ++direction) {
    const Doubles v = random_doubles(static_cast<int64_t>(x.size()), 100 + direction);
    Doubles ahead = x, behind = x;
    double terms = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      ahead[i] += kStep * v[i];
      behind[i] -= kStep * v[i];
      terms += std::abs(gradient[i] * v[i]);
    }
    EXPECT_GT(terms, 0);
    EXPECT_NEAR((f(ahead) - f(behind)) / (2 * kStep), dot(gradient, v), 1e-6 * terms);
  }
}

TEST(Gradients, OfLinearLayers) {
  const int64_t m = 5, n = 7, k = 9;
  const Doubles x = random_doubles(m * k, 1), w = random_doubles(n * k, 2),
                bias = random_doubles(n, 3), dy = random_doubles(m * n, 4);
  const auto g = reference::linear_gradient(x, w, n, dy);
  expect_gradient([&](const Doubles& v) { return dot(dy, reference::linear_value(v, w, bias)); }, x,
                  g.dx);
  expect_gradient([&](const Doubles& v) { return dot(dy, reference::linear_value(x, v, bias)); }, w,
                  g.dw);
  expect_gradient([&](const Doubles& v) { return dot(dy, reference::linear_value(x, w, v)); }, bias,
                  g.db);
}

TEST(Gradients, OfRmsNorm) {
  for (const double scale : {0.001, 1.0, 100.0}) {
    const int64_t m = 4, n = 11;
    const double eps = 1e-2;
    const Doubles x = random_doubles(m * n, 1, scale), weight = random_doubles(n, 2),
                  dy = random_doubles(m * n, 3);
    const auto g = reference::rms_norm_gradient(x, weight, eps, dy);
    expect_gradient(
        [&](const Doubles& v) { return dot(dy, reference::rms_norm_value(v, weight, eps)); }, x,
        g.dx);
    expect_gradient([&](const Doubles& v) { return dot(dy, reference::rms_norm_value(x, v, eps)); },
                    weight, g.dweight);
  }
  const PaddedRows x(3, 20, 1), weight(1, 20, 2);
  expect_close(
      reference::rms_norm_value(reference::dense(x.view), reference::dense(weight.view), 1e-6),
      reference::rms_norm_ref(x.view, weight.view.data, 1e-6), 1e-14);
}

TEST(Gradients, OfSwiglu) {
  for (const double scale : {0.1, 3.0, 20.0}) {
    const Doubles gate = random_doubles(40, 1, scale), up = random_doubles(40, 2),
                  dy = random_doubles(40, 3);
    const auto g = reference::swiglu_gradient(gate, up, dy);
    expect_gradient([&](const Doubles& v) { return dot(dy, reference::swiglu_value(v, up)); }, gate,
                    g.dgate);
    expect_gradient([&](const Doubles& v) { return dot(dy, reference::swiglu_value(gate, v)); }, up,
                    g.dup);
  }
  const PaddedRows gate(3, 20, 1), up(3, 20, 2);
  expect_close(reference::swiglu_value(reference::dense(gate.view), reference::dense(up.view)),
               reference::swiglu_ref(gate.view, up.view), 1e-14);
}

TEST(Gradients, OfRope) {
  for (const RopeLayout layout : {RopeLayout::kInterleaved, RopeLayout::kHalfSplit}) {
    const PaddedRows cos_sin(3, 10, 1), x(3, 10, 2);
    const Doubles dy = random_doubles(30, 3);
    expect_gradient(
        [&](const Doubles& v) { return dot(dy, reference::rope_value(cos_sin.view, layout, v)); },
        reference::dense(x.view), reference::rope_gradient(cos_sin.view, layout, dy));
    expect_close(reference::rope_value(cos_sin.view, layout, reference::dense(x.view)),
                 reference::rope_ref(cos_sin.view, layout, 1, 10, 0, x.view), 1e-14);
  }
}

TEST(Gradients, OfRowsSortedByExpert) {
  const std::vector<int64_t> position = {3, 0, 5, 1, 2, 4};
  const int64_t k = 2, cols = 5;
  const Doubles x = random_doubles(3 * cols, 1), dsorted = random_doubles(6 * cols, 2),
                y = random_doubles(6 * cols, 3);
  const Doubles weights = random_doubles(6, 4), dout = random_doubles(3 * cols, 5);
  expect_gradient(
      [&](const Doubles& v) { return dot(dsorted, reference::gather_value(v, position, cols)); }, x,
      reference::gather_gradient(dsorted, position, k, cols));
  const auto g = reference::scatter_gradient(y, position, weights, k, cols, dout);
  expect_gradient(
      [&](const Doubles& v) {
        return dot(dout, reference::scatter_value(v, position, weights, k, cols));
      },
      y, g.dy);
  expect_gradient(
      [&](const Doubles& v) {
        return dot(dout, reference::scatter_value(y, position, v, k, cols));
      },
      weights, g.dweights);
}

TEST(Gradients, OfTheRouterAndItsBalanceLoss) {
  for (const ScoringFunc scoring_func : {ScoringFunc::kSoftmax, ScoringFunc::kSigmoid}) {
    for (const int k : {1, 3}) {
      for (const bool normalise : {false, true}) {
        const RouterRule rule{.scoring_func = scoring_func,
                              .topk_method = TopkMethod::kGreedy,
                              .n_routed_experts = 8,
                              .num_experts_per_tok = k,
                              .norm_topk_prob = normalise,
                              .routed_scaling_factor = 2.5f};
        const int64_t tokens = 7;
        const PaddedRows logits(tokens, 8, 1, 2);
        const auto route = reference::route_ref(rule, logits.view, nullptr);
        const Doubles x = reference::dense(logits.view), dweights = random_doubles(tokens * k, 2);
        expect_close(reference::route_value(rule, x, route.experts), route.weights, 1e-14);
        // there the weight is constant
        if (!(scoring_func == ScoringFunc::kSigmoid && normalise && k == 1)) {
          expect_gradient(
              [&](const Doubles& v) {
                return dot(dweights, reference::route_value(rule, v, route.experts));
              },
              x, reference::route_gradient(rule, x, route.experts, dweights));
        }
        const std::vector<int64_t> documents = {2, 4, 1};
        RouterRule grouped = rule;
        grouped.n_group = 4;
        grouped.topk_group = 3;
        for (const BalanceAlpha& alpha :
             {BalanceAlpha{0.3, 0, 0}, {0, 0.3, 0}, {0, 0, 0.3}, {0.3, 0.7, 0.2}}) {
          expect_gradient(
              [&](const Doubles& v) {
                return reference::balance_value(grouped, v, route.experts, documents, alpha);
              },
              x, reference::balance_gradient(grouped, x, route.experts, documents, alpha));
        }
      }
    }
  }
}

TEST(Gradients, OfCrossEntropy) {
  const std::vector<int32_t> targets = {3, -1, 0, 10};
  const PaddedRows logits(4, 11, 1, 4);
  const Doubles x = reference::dense(logits.view);
  expect_gradient([&](const Doubles& v) { return reference::cross_entropy_value(v, targets, 11); },
                  x, reference::cross_entropy_gradient(x, targets, 11));
  double expected = 0;
  const Doubles log_sums = reference::log_sum_exp_ref(logits.view);
  for (size_t t = 0; t < 4; ++t) {
    if (targets[t] >= 0)
      expected += log_sums[t] - logits.view.row(static_cast<int64_t>(t))[targets[t]];
  }
  EXPECT_NEAR(reference::cross_entropy_value(x, targets, 11), expected, 1e-13);
  const Doubles row(x.begin(), x.begin() + 11);
  expect_gradient(
      [&](const Doubles& v) {
        const auto [log_prob, entropy] = reference::log_prob_entropy_value(v, 4);
        return 0.7 * log_prob - 0.3 * entropy;
      },
      row, reference::log_prob_entropy_gradient(row, 4, 0.7, -0.3));
}

TEST(Gradients, OfTheEmbedding) {
  const std::vector<int32_t> ids = {2, 0, 2, 5, 2};
  const Doubles table = random_doubles(6 * 3, 1), dy = random_doubles(5 * 3, 2);
  expect_gradient([&](const Doubles& v) { return dot(dy, reference::embedding_value(v, ids, 3)); },
                  table, reference::embedding_gradient(dy, ids, 6, 3));
}

}  // namespace
}  // namespace fathom
