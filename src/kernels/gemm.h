// Linear layers: y = x · Wᵀ, and the same for rows grouped by expert.
//
//   y[m, n] = sum_k x[m, k] * w[n, k]  (+ bias[n])
//
// x [M, K] f32, w [N, K] in any computable dtype, y [M, N] f32, f32 accumulation.
//   F32, F16: w is widened to f32 exactly, x stays f32.
//   BF16: x is rounded to bf16 (nearest even), products are exact in f32, sums in f32: fma(even,
//   fma(odd, sum)) on each pair of k. That is `vdpbf16ps`, or f32 FMAs where these are faster; AVX2
//   and AVX-512 treat subnormal operands (x before it is rounded) and sums as 0, as it does.
//   FP8: as BF16 with the codes for weights, which bf16 holds exactly; each lane's sum of a run of
//   128 of k enters its sum of runs as fma(sum, scale, sum of runs). So a run must not overflow
//   before its scale: |x| < 2^110 will do.
//   GGUF blocks: w = d q + m with integers q; x is rounded to x' = s c for each 32 elements of k,
//   s = max|x| / 127 and integers c (nearest even; none of them if max|x| < 2^-100), so that sums
//   of q c over a run of 16 or 32 elements that share d and m are exact in 32 bits. A run enters
//   its output as fma(sum of q c, d s, y), then, in formats that have one, fma(m, s sum of c, y).
//   Under Precision::kF32 BF16, FP8 and blocks are widened like the others and x stays f32.
//
// One order per output element, whatever M, N, the other rows, the threads or the packing: 16
// partial sums (lane k mod 16 for f32; k/2 mod 16 for bf16, pairs together) walked in increasing k,
// then the tree of reduce_add (simd-inl.h), then + bias; blocks in increasing k, then + bias. So a
// token's result is the same bits alone, in any chunk and in any batch.
// AVX2 and AVX-512 give the same bits (but for the payload of a NaN); the portable target rounds
// products before it adds.
// Error bound: |y - exact| <= (K/16 + 5) u sum|x w|, u = 2^-24 (FP8: K/16 + 7); BF16 and FP8: plus
// 2^-9 sum|x w| for the rounding of x; blocks: (K/8 + 5) u (sum|x' d q| + sum|x' m|) plus
// sum|w| s / 2 for that of x, or 2^-100 sum|w| where nothing is left of x; no d s may overflow (d
// <= 65504 but in MXFP4).
//
// REQUIRES: x.cols == w.cols, y.rows == x.rows, y.cols == w.rows; y does not overlap x or w. Empty
// M, N or K (y = bias or 0) is fine. Uses ctx.scratch() and worker scratch; call from one thread.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

// Scratch: x is packed by so many rows of one expert at most, each row at most so many floats
// longer.
inline constexpr int64_t kMostPackedRows = 12, kMostPackedPadding = 48;

// Whether x is rounded to bf16 beside such weights, under Precision::kNative.
bool rounds_x_to_bf16(DType dtype);

// bias: [N] or null.
void linear(Context& ctx, ConstRows x, const WeightView& w, const float* bias, Rows y);

// Rows [offsets[e], offsets[e+1]) of x go through experts[e]: offsets has experts.size() + 1
// entries, offsets[0] = 0, the last one = x.rows. All experts have one shape and dtype. The cost
// follows the rows: an expert without rows is not read.
void grouped_linear(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                    std::span<const WeightView> experts, Rows y);

// y = x · W with W [K, N], the linear layer of Wᵀ to the bit: what the backward pass needs. F32, or
// BF16 but for Precision::kF32.
void grouped_linear_turned(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                           std::span<const WeightView> experts, Rows y);

// Several layers of one x, each as grouped_linear() (plus bias [N], if not null) computes it, to
// the bit; but blocks of one dtype round x once and share a loop over the threads, which is what
// counts at few rows.
struct LinearPart {
  std::span<const WeightView> experts;
  const float* bias = nullptr;
  Rows y;
};
void grouped_linears(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                     std::span<const LinearPart> parts);

// One layer for each head, where heads lie side by side in the rows of x and y:
//   y[t, h y_head + n] = sum_k x[t, h x_head + k] w_h[n, k],   as linear() computes it.
// x [T, K] and y [T, N] are the first head's columns. REQUIRES: heads of one shape and dtype.
void head_linears(Context& ctx, ConstRows x, int64_t x_head, std::span<const WeightView> heads,
                  Rows y, int64_t y_head);

// SwiGLU MLPs of GGUF blocks, one for each group of rows (gate and up [I, K], down [N, I]):
//   y = down (silu(gate x) * (up x))
// with the very bits of grouped_linears(), swiglu() and grouped_linear() one after the other, but x
// is rounded once for all experts of a token and the inner rows exist only rounded. position: where
// the rows of x go, as for gather_by_expert(); empty: x is grouped already.
struct SwigluExperts {
  std::span<const WeightView> gate, up, down;
};
// Whether all are in blocks, gate and up in the same, and computed in integers.
bool has_swiglu_mlp(const Context& ctx, const SwigluExperts& w);
// REQUIRES: has_swiglu_mlp(); position as sort_by_expert() makes it; experts of one shape and
// dtype.
void swiglu_mlp(Context& ctx, ConstRows x, std::span<const int64_t> position,
                std::span<const int64_t> offsets, const SwigluExperts& w, Rows y);

// Tiles: GGUF blocks in the order in which one product after the other reads them, 16 rows of w
// beside each other, so that a token's weights come from memory as one stream and need no
// rearranging. The same values and, through WeightView::tiles, the same bits of y, sooner.
// bytes_of_tiles: memory that w's take, a multiple of 64; 0 = blocks of this type have none.
int64_t bytes_of_tiles(const WeightView& w);
// Those of weights of one shape and type, one behind the other from `out` on, 64-byte aligned. Each
// thread begins with its own stretch of them, as in products: so the memory of one large matrix is
// first touched by the threads that will read it first.
void make_tiles(Context& ctx, std::span<const WeightView> weights, std::byte* out);

}  // namespace fathom
