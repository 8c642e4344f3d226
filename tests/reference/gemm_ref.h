// Plain twin of kernels/gemm.h: double, three loops.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/view.h"

namespace fathom::reference {

// What linear() does to x first: nothing; to bf16 (BF16 weights; FP8, whose bound is its own); to
// bytes, 32 at a time, for GGUF blocks.
enum class Rounding { kNone, kBf16, kBf16ForF8, kInt8 };

struct LinearRef {
  std::vector<double> y;       // [M, N], of the rounded x
  std::vector<double> bounds;  // [M, N]: the error that gemm.h allows for exact operands
};

// w: [N, K] as exact values; bias: [N] or null. For kInt8 the parts d q and m of a weight are taken
// to be at most three times the largest weight of their 32: true where q = 0 occurs among them.
LinearRef linear_ref(ConstRows x, const std::vector<double>& w, int64_t n, const float* bias,
                     Rounding rounding);

}  // namespace fathom::reference
