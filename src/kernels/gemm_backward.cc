#include "kernels/gemm_backward.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/gemm.h"
#include "kernels/quantize.h"
#include "kernels/row_blocks.h"

namespace fathom {

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

constexpr int64_t kTileN = 256, kTileK = 256;
// both operands of one block of tokens (gemm_backward.simd.cc)
constexpr int64_t kOuterScratch = 256 * (kTileN + 16 + kTileK);

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

// w as the products take it: F32 and BF16 as they lie, all else widened.
WeightView widened(Context& ctx, const WeightView& w, ArenaScope& scope) {
  if (w.dtype == DType::kF32 || (w.dtype == DType::kBF16 && ctx.precision() == Precision::kNative))
    return w;
  WeightView wide{.dtype = DType::kF32, .rows = w.rows, .cols = w.cols};
  if (w.data == nullptr) return wide;
  const Rows out = scope.rows(w.rows, w.cols);
  for_rows(ctx, w.rows, w.cols,
           [&](int64_t r, int) { dequantize_weight(ctx.isa(), w, r, 0, w.cols, out.row(r)); });
  wide.data = reinterpret_cast<const std::byte*>(out.data);
  return wide;
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
  const std::span wide(scope.array<WeightView>(static_cast<int64_t>(experts.size())),
                       experts.size());
  for (size_t e = 0; e < experts.size(); ++e) {
    FATHOM_CHECK(experts[e].rows == shape.rows && experts[e].cols == shape.cols &&
                     experts[e].dtype == shape.dtype,
                 e);
    // Without rows only the shape counts.
    WeightView w = experts[e];
    if (offsets[e] == offsets[e + 1]) w.data = nullptr;
    wide[e] = widened(ctx, w, scope);
  }
  grouped_linear_turned(ctx, dy, offsets, wide, dx);
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
  // Enough items for all threads. An element of dw is one chain of sums whatever tile it is in.
  const auto count = static_cast<int64_t>(dw.size());
  const int64_t across = ceil_div(x.cols, kTileK), threads = ctx.pool().threads();
  const int64_t down =
      threads == 1 ? 1 : ceil_div(2 * threads, std::max<int64_t>(1, count * across));
  const int64_t tile_n =
      std::clamp(ceil_div(ceil_div(dy.cols, down), 16) * 16, int64_t{32}, kTileN);
  const int64_t items = ceil_div(dy.cols, tile_n) * across;
  ctx.pool().run(count * items, [&](int64_t i, int worker) {
    const auto e = static_cast<size_t>(i / items);
    const int64_t begin = offsets[e], m = offsets[e + 1] - begin;
    if (m == 0) return;
    const int64_t n0 = i % items / across * tile_n, k0 = i % across * kTileK;
    ArenaScope scope(ctx.worker_scratch(worker));
    add_outer(dy.row(begin) + n0, dy.stride, x.row(begin) + k0, x.stride, m,
              std::min(tile_n, dy.cols - n0), std::min(kTileK, x.cols - k0),
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
