// Backward of the linear layers of gemm.h, y = x · Wᵀ + bias:
//
//   dx = dy · W        assigned            dy [M, N], W [N, K], dx [M, K]
//   dW += dyᵀ · x      accumulated         x [M, K], dW [N, K]
//   db += sum_m dy[m]  accumulated         db [N]
//
// Everything but W is f32. One order of sums whatever the threads; one row of dx depends on nothing
// but its row of dy and W.
// REQUIRES: shapes as above; outputs overlap no input. Empty M, N or K is fine (dx = 0, dW and db
// unchanged). Uses ctx.scratch() and worker scratch; call from one thread.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

// Linear layers over Wᵀ: the order of sums and the error bound are those of linear() with K := N.
// BF16 weights stay BF16, so dy is rounded to bf16 as x is, and exact under Precision::kF32; all
// types but F32 and these are widened to f32, in scratch.
void linear_backward_input(Context& ctx, ConstRows dy, const WeightView& w, Rows dx);
// Rows [offsets[e], offsets[e+1]) belong to experts[e], as in grouped_linear(). An expert without
// rows is not read.
void grouped_linear_backward_input(Context& ctx, ConstRows dy, std::span<const int64_t> offsets,
                                   std::span<const WeightView> experts, Rows dx);

// operands kF32: dy and x as they are. kBF16: both rounded to bf16 (nearest even), the products
// summed in f32 (Precision::kF32: as kF32).
// Tokens are cut into blocks of 256, each summed in order by one chain of FMAs (kBF16: of each pair
// the second token first, subnormals as 0, as vdpbf16ps does it) and then added to dW. AVX2 and
// AVX-512 give the same bits, with that instruction and without. Error bound: (min(M, 256) + M/256
// + 1) u (|dW before| + sum|dy x|), u = 2^-24, plus (2^-8 + 2^-18) sum|dy x| for kBF16.
void linear_backward_weight(Context& ctx, ConstRows dy, ConstRows x, DType operands, Rows dw);
// One dw per expert, all of one shape; an expert without rows adds nothing and its dw is not
// touched.
void grouped_linear_backward_weight(Context& ctx, ConstRows dy, ConstRows x,
                                    std::span<const int64_t> offsets, DType operands,
                                    std::span<const Rows> dw);

// Summed in double in order of m, rounded once: error u |result|.
void bias_backward(Context& ctx, ConstRows dy, float* db);

}  // namespace fathom
