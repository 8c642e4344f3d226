#include "kernels/rms_norm.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void rms_norm_row(const float* x, const float* weight, float eps, int64_t n,
                                      float* out))
FATHOM_SIMD_DECLARE(void rms_norm_backward_factors(const float* x, const float* weight, float eps,
                                                   const float* dy, int64_t n, float* r, float* c);
                    void rms_norm_backward_columns(const float* x, int64_t x_stride,
                                                   const float* weight, const float* dy,
                                                   int64_t dy_stride, const float* factors,
                                                   int64_t rows, int64_t cols, float* dx,
                                                   int64_t dx_stride, float* dweight))

void rms_norm(Context& ctx, ConstRows x, const float* weight, float eps, Rows out) {
  FATHOM_CHECK(out.rows == x.rows && out.cols == x.cols, out.rows, x.rows, out.cols, x.cols);
  const auto row = FATHOM_SIMD_CALL(ctx.isa(), rms_norm_row);
  for_rows(ctx, x.rows, x.cols,
           [&](int64_t t, int) { row(x.row(t), weight, eps, x.cols, out.row(t)); });
}

void rms_norm_backward(Context& ctx, ConstRows x, const float* weight, float eps, ConstRows dy,
                       Rows dx, float* dweight) {
  FATHOM_CHECK(dy.rows == x.rows && dy.cols == x.cols, dy.rows, x.rows, dy.cols, x.cols);
  FATHOM_CHECK(dx.rows == x.rows && dx.cols == x.cols, dx.rows, x.rows, dx.cols, x.cols);
  if (x.rows == 0) return;
  ArenaScope scope(ctx.scratch());
  const Rows factors = scope.rows(x.rows, 2);  // r and r^2 mean(g x) of each row
  for_rows(ctx, x.rows, x.cols, [&](int64_t t, int) {
    FATHOM_SIMD_CALL(ctx.isa(), rms_norm_backward_factors)
    (x.row(t), weight, eps, dy.row(t), x.cols, factors.row(t), factors.row(t) + 1);
  });
  // By columns, so that dweight has one order of sums and dx may overwrite what it was made from.
  constexpr int64_t kColumns = 128;
  ctx.pool().run((x.cols + kColumns - 1) / kColumns, [&](int64_t item, int) {
    const int64_t begin = item * kColumns, count = std::min(kColumns, x.cols - begin);
    FATHOM_SIMD_CALL(ctx.isa(), rms_norm_backward_columns)
    (x.data + begin, x.stride, weight + begin, dy.data + begin, dy.stride, factors.data, x.rows,
     count, dx.data + begin, dx.stride, dweight != nullptr ? dweight + begin : nullptr);
  });
}

}  // namespace fathom
