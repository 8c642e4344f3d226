// Linear layers: operands, blocks and threads. x is brought into the operand form once; an item of work is a block of rows of x against a
// panel walk over rows of w. F32 and native BF16 weights meeting few rows are read where they lie; else a panel of kPanelRows rows is
// widened (or copied) into L1 and serves all rows of the block.
#include "kernels/gemm.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/gemm-inl.h"
#include "kernels/quantize.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void gemm_f32(const GemmBlock& b))
FATHOM_SIMD_DECLARE(void gemm_bf16(const GemmBlock& b))
FATHOM_SIMD_DECLARE(void bf16_operand(const uint16_t* in, int64_t n, void* out))
FATHOM_SIMD_DECLARE(void bf16_operand_from_f32(const float* in, int64_t n, void* out))

namespace {

constexpr int64_t kBlockK = 1024;       // a panel of w (6 x 4 KiB) stays in L1
constexpr int64_t kRowsBytes = 512 << 10;  // rows of x in one item: half of a small L2
constexpr int64_t kItemRows = 24;       // rows of w in one item
constexpr int64_t kFewRows = 4;         // up to here a panel is not worth copying

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of x in operand form.
struct Operand {
  const std::byte* data;
  int64_t stride;  // elements
  int64_t element_bytes;
  const std::byte* at(int64_t row, int64_t k) const { return data + (row * stride + k) * element_bytes; }
};

struct Problem {
  Context& ctx;
  bool bf16;            // w is BF16: both operands in the target's bf16 form
  bool native;          // ... which is plain bf16
  int64_t k;            // columns, rounded up where the split form needs it
  Operand x;
  const float* bias;
  Rows y;
};

// Rows [m0, m0 + m) times rows [n0, n0 + n) of w.
void multiply(const Problem& p, const WeightView& w, int64_t m0, int64_t m, int64_t n0, int64_t n, int worker) {
  GemmBlock b;
  b.x_stride = p.x.stride;
  b.y_stride = p.y.stride;
  b.m = m;
  const auto kernel = p.bf16 ? FATHOM_SIMD_CALL(p.ctx.isa(), gemm_bf16) : FATHOM_SIMD_CALL(p.ctx.isa(), gemm_f32);
  if (m <= kFewRows && (w.dtype == DType::kF32 || (p.bf16 && p.native))) {
    b.x = p.x.at(m0, 0);
    b.w = w.row(n0);
    b.w_stride = w.cols;
    b.n = n;
    b.k = w.cols;
    b.bias = p.bias != nullptr ? p.bias + n0 : nullptr;
    b.y = p.y.row(m0) + n0;
    return kernel(b);
  }
  ArenaScope scope(p.ctx.worker_scratch(worker));
  b.w_stride = std::min(kBlockK, p.k) + 16;  // rows of a panel fall into different L1 sets
  std::byte* panel = scope.array<std::byte>(kPanelRows * b.w_stride * p.x.element_bytes);
  b.partial = scope.array<float>(p.k > kBlockK ? m * kPanelRows * 16 : 0);
  b.w = panel;
  for (int64_t r0 = n0; r0 < n0 + n; r0 += kPanelRows) {
    b.n = std::min(kPanelRows, n0 + n - r0);
    b.bias = p.bias != nullptr ? p.bias + r0 : nullptr;
    b.y = p.y.row(m0) + r0;
    for (int64_t k0 = 0; k0 < p.k; k0 += kBlockK) {
      b.k = std::min(kBlockK, p.k - k0);
      const int64_t columns = std::min(b.k, w.cols - k0);
      for (int64_t r = 0; r < b.n; ++r) {
        std::byte* out = panel + r * b.w_stride * p.x.element_bytes;
        if (columns < b.k) std::memset(out, 0, static_cast<size_t>(b.k * p.x.element_bytes));
        if (p.bf16) {
          const auto* row = reinterpret_cast<const bf16*>(w.row(r0 + r));
          FATHOM_SIMD_CALL(p.ctx.isa(), bf16_operand)(row + k0, columns, out);
        } else {
          dequantize_weight(p.ctx.isa(), w, r0 + r, k0, columns, reinterpret_cast<float*>(out));
        }
      }
      b.x = p.x.at(m0, k0);
      b.first = k0 == 0;
      b.last = k0 + b.k == p.k;
      kernel(b);
    }
  }
}

// x, in place or converted.
Operand prepare(Context& ctx, ArenaScope& scope, ConstRows x, bool is_bf16, int64_t k) {
  if (!is_bf16) return {reinterpret_cast<const std::byte*>(x.data), x.stride, 4};
  const int64_t element_bytes = ctx.isa() == Isa::kAvx512 ? 2 : 4;
  const int64_t row_bytes = k * element_bytes;
  std::byte* out = scope.array<std::byte>(x.rows * row_bytes);
  const auto convert = FATHOM_SIMD_CALL(ctx.isa(), bf16_operand_from_f32);
  ctx.pool().run(ceil_div(x.rows, 16), [&](int64_t item, int) {
    for (int64_t r = item * 16; r < std::min(x.rows, item * 16 + 16); ++r) {
      if (x.cols < k) std::memset(out + r * row_bytes, 0, static_cast<size_t>(row_bytes));
      convert(x.row(r), x.cols, out + r * row_bytes);
    }
  });
  return {out, k, element_bytes};
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
  const bool is_bf16 = shape.dtype == DType::kBF16;
  const bool native = ctx.isa() == Isa::kAvx512;
  const int64_t k = is_bf16 && !native ? ceil_div(x.cols, 32) * 32 : x.cols;
  const Problem p{ctx, is_bf16, native, k, prepare(ctx, scope, x, is_bf16, k), bias, y};

  // Items of expert e: first[e] .. first[e + 1], blocks of rows of x outermost.
  const int64_t block_m = std::clamp<int64_t>(kRowsBytes / (k * p.x.element_bytes) / 4 * 4, 16, 256);
  const int64_t blocks_n = ceil_div(y.cols, kItemRows);
  const auto count = static_cast<int64_t>(experts.size());
  int64_t* first = scope.array<int64_t>(count + 1);
  first[0] = 0;
  for (int64_t e = 0; e < count; ++e) {
    const int64_t rows = offsets[static_cast<size_t>(e) + 1] - offsets[static_cast<size_t>(e)];
    first[e + 1] = first[e] + ceil_div(rows, block_m) * blocks_n;
  }
  ctx.pool().run(first[count], [&](int64_t item, int worker) {
    const auto e = static_cast<size_t>(std::upper_bound(first, first + count, item) - first - 1);
    const int64_t m0 = offsets[e] + (item - first[e]) / blocks_n * block_m;
    const int64_t n0 = (item - first[e]) % blocks_n * kItemRows;
    multiply(p, experts[e], m0, std::min(block_m, offsets[e + 1] - m0), n0, std::min(kItemRows, y.cols - n0), worker);
  });
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
