// Plain twin of kernels/gemm.h: double, three loops.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/view.h"

namespace fathom::reference {

struct LinearRef {
  std::vector<double> y;  // [M, N]
  // [M, N]: (K/16 + 5) u sum|x w| + u |y|, the error that gemm.h allows for exact operands
  std::vector<double> bounds;
};

// w: [N, K] as exact values; bias: [N] or null. With round_x, x is first rounded to bf16 (what BF16
// weights do).
LinearRef linear_ref(ConstRows x, const std::vector<double>& w, int64_t n, const float* bias,
                     bool round_x);

}  // namespace fathom::reference
