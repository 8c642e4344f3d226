#include "kernels/elementwise.h"

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void swiglu_row(const float* gate, const float* up, int64_t n, float* out))
FATHOM_SIMD_DECLARE(void swiglu_backward_row(const float* gate, const float* up, const float* dy,
                                             int64_t n, float* dgate, float* dup))
FATHOM_SIMD_DECLARE(void add_row(const float* x, int64_t n, float* inout))
FATHOM_SIMD_DECLARE(void to_bf16_row(const float* x, int64_t n, uint16_t* out))
FATHOM_SIMD_DECLARE(void from_bf16_row(const uint16_t* x, int64_t n, float* out))

void swiglu(Context& ctx, ConstRows gate, ConstRows up, Rows out) {
  FATHOM_CHECK(gate.rows == out.rows && up.rows == out.rows, gate.rows, up.rows, out.rows);
  FATHOM_CHECK(gate.cols == out.cols && up.cols == out.cols, gate.cols, up.cols, out.cols);
  const auto row = FATHOM_SIMD_CALL(ctx.isa(), swiglu_row);
  for_row_pieces(ctx, out.rows, out.cols, [&](int64_t t, int64_t begin, int64_t count) {
    row(gate.row(t) + begin, up.row(t) + begin, count, out.row(t) + begin);
  });
}

void swiglu_backward(Context& ctx, ConstRows gate, ConstRows up, ConstRows dy, Rows dgate,
                     Rows dup) {
  for (const ConstRows& r : {gate, up, ConstRows(dgate), ConstRows(dup)}) {
    FATHOM_CHECK(r.rows == dy.rows && r.cols == dy.cols, r.rows, dy.rows, r.cols, dy.cols);
  }
  const auto row = FATHOM_SIMD_CALL(ctx.isa(), swiglu_backward_row);
  for_row_pieces(ctx, dy.rows, dy.cols, [&](int64_t t, int64_t begin, int64_t count) {
    row(gate.row(t) + begin, up.row(t) + begin, dy.row(t) + begin, count, dgate.row(t) + begin,
        dup.row(t) + begin);
  });
}

void add(Context& ctx, ConstRows x, Rows inout) {
  FATHOM_CHECK(x.rows == inout.rows && x.cols == inout.cols, x.rows, inout.rows, x.cols,
               inout.cols);
  const auto row = FATHOM_SIMD_CALL(ctx.isa(), add_row);
  for_row_pieces(ctx, x.rows, x.cols, [&](int64_t t, int64_t begin, int64_t count) {
    row(x.row(t) + begin, count, inout.row(t) + begin);
  });
}

void to_bf16(Isa isa, const float* x, int64_t n, bf16* out) {
  FATHOM_SIMD_CALL(isa, to_bf16_row)(x, n, out);
}

void from_bf16(Isa isa, const bf16* x, int64_t n, float* out) {
  FATHOM_SIMD_CALL(isa, from_bf16_row)(x, n, out);
}

}  // namespace fathom
