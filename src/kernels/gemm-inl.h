// What gemm.cc hands to the per-target code in gemm.simd.cc. Plain types only.
#pragma once

#include <stdint.h>

namespace fathom {

// Rows of w that are multiplied together: the width of every target's register tile.
inline constexpr int64_t kPanelRows = 8;
// Rows of x in one register tile.
inline constexpr int64_t kTileRows = 3;

// One block of the product: y[m, n] = sum_k x[m, k] * w[n, k] + bias[n], or a part of the sum over k. Strides in elements of the operand.
struct GemmBlock {
  const void* x = nullptr;
  const void* w = nullptr;
  int64_t x_stride = 0, w_stride = 0;
  int64_t m = 0, n = 0, k = 0;
  // The 16 partial sums of each output between two blocks of k, [m][kPanelRows][16]; then n <= kPanelRows. Unused when first && last.
  float* partial = nullptr;
  bool first = true, last = true;
  // Memory that is needed next: fetched into L2 while this block computes.
  const void* next = nullptr;
  int64_t next_bytes = 0;
  const float* bias = nullptr;  // [n] or null
  float* y = nullptr;
  int64_t y_stride = 0;
};

}  // namespace fathom
