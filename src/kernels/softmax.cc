#include "kernels/softmax.h"

#include <cmath>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(double shifted_sum_exp(const float* x, int64_t n, float* shift))

void log_sum_exp(Context& ctx, ConstRows x, std::span<float> out) {
  FATHOM_CHECK(static_cast<int64_t>(out.size()) == x.rows, out.size(), x.rows);
  const auto sum_exp = FATHOM_SIMD_CALL(ctx.isa(), shifted_sum_exp);
  for_rows(ctx, x.rows, x.cols, [&](int64_t t, int) {
    float shift = 0;
    const double sum = sum_exp(x.row(t), x.cols, &shift);
    out[static_cast<size_t>(t)] = static_cast<float>(std::log(sum) + shift);
  });
}

}  // namespace fathom
