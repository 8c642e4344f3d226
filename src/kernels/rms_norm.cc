#include "kernels/rms_norm.h"

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void rms_norm_row(const float* x, const float* weight, float eps, int64_t n, float* out))

void rms_norm(Context& ctx, ConstRows x, const float* weight, float eps, Rows out) {
  FATHOM_CHECK(out.rows == x.rows && out.cols == x.cols, out.rows, x.rows, out.cols, x.cols);
  const auto row = FATHOM_SIMD_CALL(ctx.isa(), rms_norm_row);
  for_rows(ctx, x.rows, x.cols, [&](int64_t t, int) { row(x.row(t), weight, eps, x.cols, out.row(t)); });
}

}  // namespace fathom
