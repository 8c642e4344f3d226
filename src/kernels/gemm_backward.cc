#include "kernels/gemm_backward.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/gemm.h"
#include "kernels/quantize.h"
#include "kernels/row_blocks.h"

namespace fathom {

// Up to kStripRows rows of `cols` columns into the columns of out.
FATHOM_SIMD_DECLARE(void transpose_f32(const float* in, int64_t in_stride, int64_t rows,
                                       int64_t cols, float* out, int64_t out_stride);
                    void transpose_bf16(const uint16_t* in, int64_t in_stride, int64_t rows,
                                        int64_t cols, uint16_t* out, int64_t out_stride))
FATHOM_SIMD_DECLARE(void add_outer_products(const float* dy, int64_t dy_stride, const float* x,
                                            int64_t x_stride, int64_t m, int64_t n, int64_t k,
                                            float* scratch, float* dw, int64_t dw_stride))
FATHOM_SIMD_DECLARE(void add_outer_products_bf16(const float* dy, int64_t dy_stride, const float* x,
                                                 int64_t x_stride, int64_t m, int64_t n, int64_t k,
                                                 float* scratch, float* dw, int64_t dw_stride))
#if defined(__x86_64__)
namespace avx512 {
void add_outer_products_native_bf16(const float* dy, int64_t dy_stride, const float* x,
                                    int64_t x_stride, int64_t m, int64_t n, int64_t k,
                                    float* scratch, float* dw, int64_t dw_stride);
}
#endif
FATHOM_SIMD_DECLARE(void column_sums(const float* x, int64_t stride, int64_t rows, int64_t cols,
                                     float* inout))

namespace {

constexpr int64_t kStripRows = 16;
constexpr int64_t kStripCols = 256;  // the largest block of a weight format
constexpr int64_t kTileN = 192, kTileK = 256;
// both operands of one block of tokens (gemm_backward.simd.cc)
constexpr int64_t kOuterScratch = 256 * (kTileN + 64);

using OuterProducts = void (*)(const float*, int64_t, const float*, int64_t, int64_t, int64_t,
                               int64_t, float*, float*, int64_t);

OuterProducts choose_outer_products(const Context& ctx, DType operands) {
  if (operands != DType::kBF16 || ctx.precision() == Precision::kF32)
    return FATHOM_SIMD_CALL(ctx.isa(), add_outer_products);
#if defined(__x86_64__)
  if (native_bf16(ctx.isa())) return avx512::add_outer_products_native_bf16;
#endif
  return FATHOM_SIMD_CALL(ctx.isa(), add_outer_products_bf16);
}

// One item of work: kStripRows rows by kStripCols columns of w, from (r, c) on.
void transpose_strip(Context& ctx, const WeightView& w, int64_t r, int64_t c, std::byte* out,
                     int worker) {
  const int64_t rows = std::min(kStripRows, w.rows - r), cols = std::min(kStripCols, w.cols - c);
  if (w.dtype == DType::kBF16) {
    const auto* in = reinterpret_cast<const bf16*>(w.row(r)) + c;
    return FATHOM_SIMD_CALL(ctx.isa(), transpose_bf16)(
        in, w.cols, rows, cols, reinterpret_cast<bf16*>(out) + c * w.rows + r, w.rows);
  }
  ArenaScope scope(ctx.worker_scratch(worker));
  const Rows wide = scope.rows(kStripRows, kStripCols);
  for (int64_t i = 0; i < rows; ++i) dequantize_weight(ctx.isa(), w, r + i, c, cols, wide.row(i));
  FATHOM_SIMD_CALL(ctx.isa(), transpose_f32)
  (wide.data, wide.stride, rows, cols, reinterpret_cast<float*>(out) + c * w.rows + r, w.rows);
}

WeightView transposed(Context& ctx, const WeightView& w, ArenaScope& scope) {
  const DType dtype = w.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
  std::byte* const out = scope.array<std::byte>(w.cols * row_bytes(dtype, w.rows));
  const int64_t across = ceil_div(w.cols, kStripCols);
  ctx.pool().run(ceil_div(w.rows, kStripRows) * across, [&](int64_t item, int worker) {
    transpose_strip(ctx, w, item / across * kStripRows, item % across * kStripCols, out, worker);
  });
  return {.dtype = dtype, .rows = w.cols, .cols = w.rows, .data = out};
}

}  // namespace

void linear_backward_input(Context& ctx, ConstRows dy, const WeightView& w, Rows dx) {
  const int64_t offsets[] = {0, dy.rows};
  grouped_linear_backward_input(ctx, dy, offsets, {&w, 1}, dx);
}

void grouped_linear_backward_input(Context& ctx, ConstRows dy, std::span<const int64_t> offsets,
                                   std::span<const WeightView> experts, Rows dx) {
  FATHOM_CHECK(offsets.size() == experts.size() + 1, offsets.size(), experts.size());
  if (experts.empty() || dy.rows == 0) return;
  ArenaScope scope(ctx.scratch());
  const WeightView& shape = experts[0];
  FATHOM_CHECK(dtype_info(shape.dtype).computable, dtype_name(shape.dtype));
  const std::span turned(scope.array<WeightView>(static_cast<int64_t>(experts.size())),
                         experts.size());
  for (size_t e = 0; e < experts.size(); ++e) {
    FATHOM_CHECK(experts[e].rows == shape.rows && experts[e].cols == shape.cols &&
                     experts[e].dtype == shape.dtype,
                 e);
    // Without rows only the shape counts.
    turned[e] = {.dtype = shape.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32,
                 .rows = shape.cols,
                 .cols = shape.rows};
    if (offsets[e] < offsets[e + 1]) turned[e] = transposed(ctx, experts[e], scope);
  }
  grouped_linear(ctx, dy, offsets, turned, dx);
}

void linear_backward_weight(Context& ctx, ConstRows dy, ConstRows x, DType operands, Rows dw) {
  const int64_t offsets[] = {0, dy.rows};
  grouped_linear_backward_weight(ctx, dy, x, offsets, operands, {&dw, 1});
}

void grouped_linear_backward_weight(Context& ctx, ConstRows dy, ConstRows x,
                                    std::span<const int64_t> offsets, DType operands,
                                    std::span<const Rows> dw) {
  FATHOM_CHECK(offsets.size() == dw.size() + 1 && offsets.front() == 0 && offsets.back() == x.rows,
               x.rows);
  FATHOM_CHECK(dy.rows == x.rows, dy.rows, x.rows);
  for (const Rows& d : dw)
    FATHOM_CHECK(d.rows == dy.cols && d.cols == x.cols, d.rows, dy.cols, d.cols, x.cols);
  const OuterProducts add_outer = choose_outer_products(ctx, operands);
  const int64_t across = ceil_div(x.cols, kTileK), items = ceil_div(dy.cols, kTileN) * across;
  ctx.pool().run(static_cast<int64_t>(dw.size()) * items, [&](int64_t i, int worker) {
    const auto e = static_cast<size_t>(i / items);
    const int64_t begin = offsets[e], m = offsets[e + 1] - begin;
    if (m == 0) return;
    const int64_t n0 = i % items / across * kTileN, k0 = i % across * kTileK;
    ArenaScope scope(ctx.worker_scratch(worker));
    add_outer(dy.row(begin) + n0, dy.stride, x.row(begin) + k0, x.stride, m,
              std::min(kTileN, dy.cols - n0), std::min(kTileK, x.cols - k0),
              scope.array<float>(kOuterScratch), dw[e].row(n0) + k0, dw[e].stride);
  });
}

void bias_backward(Context& ctx, ConstRows dy, float* db) {
  if (dy.rows == 0) return;
  constexpr int64_t kColumns = 128;
  ctx.pool().run(ceil_div(dy.cols, kColumns), [&](int64_t item, int) {
    const int64_t begin = item * kColumns;
    FATHOM_SIMD_CALL(ctx.isa(), column_sums)
    (dy.data + begin, dy.stride, dy.rows, std::min(kColumns, dy.cols - begin), db + begin);
  });
}

}  // namespace fathom
