#include "kernels/adamw.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/reference/expect_close.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;
using reference::kUnit;
using reference::noise;

std::vector<float> numbers(uint64_t stream, int64_t n) {
  std::vector<float> x;
  for (int64_t i = 0; i < n; ++i) x.push_back(noise(stream, i));
  return x;
}

// Twin in double; its own inputs are the f32 state before the step, so each step is judged by
// itself.
TEST(AdamW, EqualsTheTwinAtEveryStepAndLength) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (const int64_t n : {0, 1, 15, 16, 17, 1000, 70000}) {
      std::vector<float> w = numbers(1, n), m(w.size()), v(w.size());
      std::vector<bf16> compute(w.size());
      for (int t = 1; t <= 3; ++t) {
        std::vector<float> g = numbers(static_cast<uint64_t>(10 + t), n);
        const AdamWStep s{.lr = 1e-2f,
                          .beta1 = 0.9f,
                          .beta2 = 0.95f,
                          .eps = 1e-8f,
                          .weight_decay = 0.1f,
                          .bias1 = static_cast<float>(1 - std::pow(0.9, t)),
                          .bias2 = static_cast<float>(1 - std::pow(0.95, t)),
                          .gradient_scale = 0.7f};
        std::vector<double> expected_w, expected_m, expected_v, bounds;
        for (size_t i = 0; i < w.size(); ++i) {
          const double gi = double{s.gradient_scale} * g[i];
          const double mi = double{s.beta1} * m[i] + (1 - double{s.beta1}) * gi;
          const double vi = double{s.beta2} * v[i] + (1 - double{s.beta2}) * gi * gi;
          const double update = s.lr / s.bias1 * mi / (std::sqrt(vi / s.bias2) + s.eps);
          expected_w.push_back(w[i] * (1 - double{s.lr} * s.weight_decay) - update);
          expected_m.push_back(mi);
          expected_v.push_back(vi);
          // mi may cancel: its own error is a few u of its terms.
          const double m_error = 4 * kUnit * (std::abs(m[i]) + std::abs(gi));
          bounds.push_back(8 * kUnit * std::abs(w[i]) + 16 * kUnit * std::abs(update) +
                           s.lr / s.bias1 * m_error / (std::sqrt(vi / s.bias2) + s.eps) + 1e-30);
        }
        adamw(ctx, s, w, g, m, v, compute);
        expect_close(std::span<const float>(w), expected_w, bounds);
        expect_close(std::span<const float>(m), expected_m, 4 * kUnit * 2);
        expect_close(std::span<const float>(v), expected_v, 6 * kUnit * 2);
        for (size_t i = 0; i < w.size(); ++i) {
          EXPECT_EQ(compute[i], f32_to_bf16(w[i]));
          EXPECT_EQ(g[i], 0.0f);
        }
      }
    }
  }
}

TEST(AdamW, HasTheSameBitsOnAnyNumberOfThreads) {
  const int64_t n = 200000;
  std::vector<std::vector<float>> results;
  std::vector<double> norms;
  for (const int threads : {1, 2, 3}) {
    Context ctx(threads);
    std::vector<float> w = numbers(1, n), g = numbers(2, n), m = numbers(3, n), v(w.size(), 0.5f);
    norms.push_back(sum_of_squares(ctx, g));
    adamw(ctx, {.lr = 0.1f}, w, g, m, v, {});
    results.push_back(w);
  }
  expect_same_bits(results[0], results[1]);
  expect_same_bits(results[0], results[2]);
  EXPECT_EQ(norms[0], norms[1]);
  EXPECT_EQ(norms[0], norms[2]);
}

TEST(SumOfSquares, IsExactToDoubleAndSeesWhatIsNotFinite) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (const int64_t n : {0, 1, 17, 65536, 65537, 200001}) {
      std::vector<float> x = numbers(5, n);
      double sum = 0;
      for (const float value : x) sum += double{value} * value;
      EXPECT_NEAR(sum_of_squares(ctx, x), sum, 1e-12 * sum);
      if (n == 0) continue;
      x.back() = std::numeric_limits<float>::quiet_NaN();
      EXPECT_TRUE(std::isnan(sum_of_squares(ctx, x)));
      x.back() = -std::numeric_limits<float>::infinity();
      EXPECT_TRUE(std::isinf(sum_of_squares(ctx, x)));
    }
  }
}

}  // namespace
}  // namespace fathom
