#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/row_blocks.h"

namespace fathom {

// softmax.simd.cc
FATHOM_SIMD_DECLARE(double shifted_sum_exp(const float* x, int64_t n, float* shift))
FATHOM_SIMD_DECLARE(double shifted_sum_x_exp(const float* x, float shift, int64_t n))
FATHOM_SIMD_DECLARE(void scaled_exp_times_line(float shift, float factor, float a, float b,
                                               int64_t n, float* inout))
FATHOM_SIMD_DECLARE(void scaled_exp(float shift, float factor, int64_t n, float* inout))

CrossEntropy softmax_cross_entropy(Context& ctx, std::span<const int32_t> targets, float scale,
                                   Rows inout) {
  FATHOM_CHECK(static_cast<int64_t>(targets.size()) == inout.rows, targets.size(), inout.rows);
  ArenaScope scope(ctx.scratch());
  double* const losses = scope.array<double>(inout.rows);
  for_rows(ctx, inout.rows, inout.cols, [&](int64_t t, int) {
    const int32_t target = targets[static_cast<size_t>(t)];
    float* const row = inout.row(t);
    losses[t] = 0;
    if (target == -1) {
      std::fill_n(row, inout.cols, 0.0f);
      return;
    }
    FATHOM_CHECK(target >= 0 && target < inout.cols, t, target, inout.cols);
    float shift = 0;
    const double sum = FATHOM_SIMD_CALL(ctx.isa(), shifted_sum_exp)(row, inout.cols, &shift);
    losses[t] = std::log(sum) + (static_cast<double>(shift) - row[target]);
    FATHOM_SIMD_CALL(ctx.isa(), scaled_exp)
    (shift, static_cast<float>(scale / sum), inout.cols, row);
    row[target] -= scale;
  });
  CrossEntropy result;
  for (int64_t t = 0; t < inout.rows; ++t) {
    result.loss += losses[t];
    result.count += targets[static_cast<size_t>(t)] != -1;
  }
  return result;
}

void log_prob_entropy(Context& ctx, std::span<const int32_t> targets, ConstRows logits,
                      std::span<float> log_prob, std::span<float> entropy) {
  FATHOM_CHECK(std::ssize(targets) == logits.rows && log_prob.size() == targets.size() &&
                   entropy.size() == targets.size(),
               targets.size(), logits.rows, log_prob.size(), entropy.size());
  for_rows(ctx, logits.rows, logits.cols, [&](int64_t t, int) {
    const auto i = static_cast<size_t>(t);
    log_prob[i] = entropy[i] = 0;
    if (targets[i] == -1) return;
    FATHOM_CHECK(targets[i] >= 0 && targets[i] < logits.cols, t, targets[i], logits.cols);
    const float* const row = logits.row(t);
    float shift = 0;
    const double sum = FATHOM_SIMD_CALL(ctx.isa(), shifted_sum_exp)(row, logits.cols, &shift);
    const auto log_sum_exp = static_cast<float>(std::log(sum) + shift);
    log_prob[i] = static_cast<float>(static_cast<double>(row[targets[i]]) - log_sum_exp);
    entropy[i] = static_cast<float>(
        std::log(sum) -
        FATHOM_SIMD_CALL(ctx.isa(), shifted_sum_x_exp)(row, shift, logits.cols) / sum);
  });
}

void log_prob_entropy_backward(Context& ctx, std::span<const int32_t> targets,
                               std::span<const float> entropy, std::span<const float> d_log_prob,
                               std::span<const float> d_entropy, Rows inout) {
  FATHOM_CHECK(std::ssize(targets) == inout.rows && entropy.size() == targets.size() &&
                   d_log_prob.size() == targets.size() && d_entropy.size() == targets.size(),
               targets.size(), inout.rows, entropy.size(), d_log_prob.size(), d_entropy.size());
  for_rows(ctx, inout.rows, inout.cols, [&](int64_t t, int) {
    const auto i = static_cast<size_t>(t);
    float* const row = inout.row(t);
    if (targets[i] == -1) {
      std::fill_n(row, inout.cols, 0.0f);
      return;
    }
    FATHOM_CHECK(targets[i] >= 0 && targets[i] < inout.cols, t, targets[i], inout.cols);
    float shift = 0;
    const double sum = FATHOM_SIMD_CALL(ctx.isa(), shifted_sum_exp)(row, inout.cols, &shift);
    // log p = y - log sum with y = x - shift.
    const double a = -static_cast<double>(d_log_prob[i]) -
                     d_entropy[i] * (static_cast<double>(entropy[i]) - std::log(sum));
    FATHOM_SIMD_CALL(ctx.isa(), scaled_exp_times_line)
    (shift, static_cast<float>(1 / sum), static_cast<float>(a), -d_entropy[i], inout.cols, row);
    row[targets[i]] += d_log_prob[i];
  });
}

}  // namespace fathom
