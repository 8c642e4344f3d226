#include "kernels/cross_entropy.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(double shifted_sum_exp(const float* x, int64_t n, float* shift))  // softmax.simd.cc
FATHOM_SIMD_DECLARE(void scaled_exp(float shift, float factor, int64_t n, float* inout))

CrossEntropy softmax_cross_entropy(Context& ctx, std::span<const int32_t> targets, float scale, Rows inout) {
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
    FATHOM_SIMD_CALL(ctx.isa(), scaled_exp)(shift, static_cast<float>(scale / sum), inout.cols, row);
    row[target] -= scale;
  });
  CrossEntropy result;
  for (int64_t t = 0; t < inout.rows; ++t) {
    result.loss += losses[t];
    result.count += targets[static_cast<size_t>(t)] != -1;
  }
  return result;
}

}  // namespace fathom
