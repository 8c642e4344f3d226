// Linear layers: operands, blocks and threads. x is brought into the operand form once; an item of work is a block of rows of x against a
// panel walk over rows of w. F32 and native BF16 weights meeting few rows are read where they lie; else a panel of kPanelRows rows is
// widened (or copied) into L1 and serves all rows of the block.
#include "kernels/gemm.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/gemm-inl.h"
#include "kernels/quantize.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void gemm_f32(const GemmBlock& b))
FATHOM_SIMD_DECLARE(void gemm_split_bf16(const GemmBlock& b))
FATHOM_SIMD_DECLARE(void gemm_split_bf16_in_place(const GemmBlock& b))
FATHOM_SIMD_DECLARE(void split_bf16(const uint16_t* in, int64_t n, float* out))
FATHOM_SIMD_DECLARE(void round_to_bf16(const float* in, int64_t n, uint16_t* out))
#if defined(__x86_64__)
namespace avx512 {
void gemm_native_bf16(const GemmBlock& b);
}
#endif

bool native_bf16(Isa isa) {
#if defined(__x86_64__)
  // Intel's cores take four times as long for vdpbf16ps as for an FMA on two halves of its work.
  return isa == Isa::kAvx512 && __builtin_cpu_is("amd");
#else
  static_cast<void>(isa);
  return false;
#endif
}

namespace {

constexpr int64_t kPanelBytes = 4096;      // one row of a panel: 8 rows fit L1 beside the rows of x
constexpr int64_t kBlockBytes = 1 << 20;  // rows of x in one item: they stay in L2 while w passes by
constexpr int64_t kItemRows = 48;          // rows of w in one item, fewer while there are not
constexpr int64_t kItems = 256;            // that many items to balance
constexpr int64_t kSmall = 1 << 16;        // multiply-adds that other threads are not woken for
constexpr int64_t kFewRows = 6;            // up to here BF16 is widened in registers, not in a panel

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the operands are brought into, and by which tiles they are multiplied (gemm.simd.cc).
enum class Form { kF32, kSplitBf16, kNativeBf16 };

Form choose_form(Isa isa, DType dtype, Precision precision) {
  if (dtype != DType::kBF16 || precision == Precision::kF32) return Form::kF32;
  return native_bf16(isa) ? Form::kNativeBf16 : Form::kSplitBf16;
}

struct Problem {
  Context& ctx;
  Form form;
  const std::byte* x;  // in its form
  int64_t x_stride;    // elements
  int64_t element_bytes;
  const float* bias;
  Rows y;
};

void run_block(Isa isa, Form form, bool in_place, const GemmBlock& block) {
  switch (form) {
    case Form::kF32: return FATHOM_SIMD_CALL(isa, gemm_f32)(block);
    case Form::kSplitBf16:
      return in_place ? FATHOM_SIMD_CALL(isa, gemm_split_bf16_in_place)(block) : FATHOM_SIMD_CALL(isa, gemm_split_bf16)(block);
    case Form::kNativeBf16:
#if defined(__x86_64__)
      return avx512::gemm_native_bf16(block);
#endif
      break;
  }
}

// Columns [k0, k0 + k) of row r of w as f32, or in split form.
void widen(const Problem& p, const WeightView& w, int64_t r, int64_t k0, int64_t k, float* out) {
  if (p.form == Form::kF32) return dequantize_weight(p.ctx.isa(), w, r, k0, k, out);
  FATHOM_SIMD_CALL(p.ctx.isa(), split_bf16)(reinterpret_cast<const bf16*>(w.row(r)) + k0, k, out);
}

// Rows [m0, m0 + m) times rows [n0, n0 + n) of w, eight of these at a time.
void multiply(const Problem& p, const WeightView& w, int64_t m0, int64_t m, int64_t n0, int64_t n, int worker) {
  const bool in_place = w.dtype == DType::kF32 || p.form == Form::kNativeBf16 || (p.form == Form::kSplitBf16 && m <= kFewRows);
  const bool one_tile = in_place && m <= kTileRows;
  const int64_t block_k = one_tile ? w.cols : kPanelBytes / p.element_bytes;
  ArenaScope scope(p.ctx.worker_scratch(worker));
  GemmBlock b;
  b.m = m;
  b.x_stride = p.x_stride;
  b.y_stride = p.y.stride;
  b.w_stride = in_place ? w.cols : block_k + 16;  // rows of a panel fall into different sets of L1
  float* const panel = scope.array<float>(in_place ? 0 : kPanelRows * b.w_stride);
  b.partial = scope.array<float>(w.cols > block_k ? m * kPanelRows * 16 : 0);
  for (int64_t r0 = n0; r0 < n0 + n; r0 += kPanelRows) {
    b.n = std::min(kPanelRows, n0 + n - r0);
    b.bias = p.bias != nullptr ? p.bias + r0 : nullptr;
    b.y = p.y.row(m0) + r0;
    for (int64_t k0 = 0; k0 < w.cols; k0 += block_k) {
      const int64_t k = std::min(block_k, w.cols - k0);
      b.x = p.x + (m0 * p.x_stride + k0) * p.element_bytes;
      b.w = w.row(r0) + row_bytes(w.dtype, k0);
      if (!in_place) {
        for (int64_t r = 0; r < b.n; ++r) widen(p, w, r0 + r, k0, k, panel + r * b.w_stride);
        b.w = panel;
      }
      const int64_t next_bytes = std::min(kPanelRows, w.rows - r0 - b.n) * row_bytes(w.dtype, w.cols);
      b.next = w.row(r0 + b.n) + next_bytes * k0 / w.cols;
      b.next_bytes = m > kTileRows ? next_bytes * k / w.cols : 0;
      b.k = !in_place && p.form == Form::kSplitBf16 ? ceil_div(k, 32) * 32 : k;
      b.first = k0 == 0;
      b.last = k0 + k == w.cols;
      run_block(p.ctx.isa(), p.form, in_place, b);
    }
  }
}

// x in its form; converted rows are memory of `scope`.
void prepare_rows(ConstRows x, ArenaScope& scope, Problem& p) {
  p.element_bytes = p.form == Form::kNativeBf16 ? 2 : 4;
  p.x_stride = x.stride;
  p.x = reinterpret_cast<const std::byte*>(x.data);
  if (p.form == Form::kF32) return;
  p.x_stride = ceil_div(x.cols, 32) * 32;
  std::byte* const out = scope.array<std::byte>(x.rows * p.x_stride * p.element_bytes);
  p.x = out;
  for_rows(p.ctx, x.rows, x.cols, [&](int64_t r, int worker) {
    ArenaScope row_scope(p.ctx.worker_scratch(worker));
    std::byte* const row = out + r * p.x_stride * p.element_bytes;
    const bool split = p.form == Form::kSplitBf16;
    bf16* const rounded = split ? row_scope.array<bf16>(x.cols) : reinterpret_cast<bf16*>(row);
    FATHOM_SIMD_CALL(p.ctx.isa(), round_to_bf16)(x.row(r), x.cols, rounded);
    if (split) FATHOM_SIMD_CALL(p.ctx.isa(), split_bf16)(rounded, x.cols, reinterpret_cast<float*>(row));
  });
}

void multiply_groups(Context& ctx, ConstRows x, std::span<const int64_t> offsets, std::span<const WeightView> experts,
                     const float* bias, Rows y) {
  const WeightView& shape = experts[0];
  FATHOM_CHECK(x.cols == shape.cols && y.rows == x.rows && y.cols == shape.rows, x.cols, shape.cols, y.cols, shape.rows);
  FATHOM_CHECK(dtype_info(shape.dtype).computable, dtype_name(shape.dtype));
  if (x.rows == 0 || y.cols == 0) return;
  if (x.cols == 0) {
    for (int64_t r = 0; r < y.rows; ++r) {
      for (int64_t c = 0; c < y.cols; ++c) y.row(r)[c] = bias != nullptr ? bias[c] : 0.0f;
    }
    return;
  }
  ArenaScope scope(ctx.scratch());
  Problem p{ctx, choose_form(ctx.isa(), shape.dtype, ctx.precision()), nullptr, 0, 0, bias, y};
  prepare_rows(x, scope, p);

  // Items of expert e are first[e] .. first[e + 1]: blocks of block_m(rows) rows of x, outermost, by item_rows rows of w.
  const auto block_m = [&](int64_t rows) {
    const int64_t most = std::clamp<int64_t>(kBlockBytes / (x.cols * p.element_bytes), 24, 240);
    return ceil_div(ceil_div(rows, ceil_div(rows, most)), kTileRows) * kTileRows;
  };
  const auto rows_of = [&](int64_t e) { return offsets[static_cast<size_t>(e) + 1] - offsets[static_cast<size_t>(e)]; };
  const auto count = static_cast<int64_t>(experts.size());
  int64_t blocks = 0;
  for (int64_t e = 0; e < count; ++e) blocks += rows_of(e) == 0 ? 0 : ceil_div(rows_of(e), block_m(rows_of(e)));
  const int64_t item_rows = std::clamp(ceil_div(ceil_div(y.cols * blocks, kItems), kPanelRows) * kPanelRows, kPanelRows, kItemRows);
  const int64_t items_per_block = ceil_div(y.cols, item_rows);
  int64_t* const first = scope.array<int64_t>(count + 1);
  first[0] = 0;
  for (int64_t e = 0; e < count; ++e) {
    first[e + 1] = first[e] + (rows_of(e) == 0 ? 0 : ceil_div(rows_of(e), block_m(rows_of(e))) * items_per_block);
  }
  const auto run_item = [&](int64_t item, int worker) {
    const int64_t e = std::upper_bound(first, first + count, item) - first - 1;
    const int64_t step = block_m(rows_of(e)), end = offsets[static_cast<size_t>(e) + 1];
    const int64_t m0 = offsets[static_cast<size_t>(e)] + (item - first[e]) / items_per_block * step;
    const int64_t n0 = (item - first[e]) % items_per_block * item_rows;
    multiply(p, experts[static_cast<size_t>(e)], m0, std::min(step, end - m0), n0, std::min(item_rows, y.cols - n0), worker);
  };
  if (x.rows * y.cols * x.cols <= kSmall) {
    for (int64_t item = 0; item < first[count]; ++item) run_item(item, 0);
  } else {
    ctx.pool().run(first[count], run_item);
  }
}

}  // namespace

void linear(Context& ctx, ConstRows x, const WeightView& w, const float* bias, Rows y) {
  const int64_t offsets[] = {0, x.rows};
  multiply_groups(ctx, x, offsets, {&w, 1}, bias, y);
}

void grouped_linear(Context& ctx, ConstRows x, std::span<const int64_t> offsets, std::span<const WeightView> experts,
                    Rows y) {
  FATHOM_CHECK(offsets.size() == experts.size() + 1 && offsets.front() == 0 && offsets.back() == x.rows, x.rows);
  if (!experts.empty()) multiply_groups(ctx, x, offsets, experts, nullptr, y);
}

}  // namespace fathom
