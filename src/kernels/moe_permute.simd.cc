#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {

void add_weighted_rows(const float* y, int64_t stride, const int64_t* position,
                       const float* weights, int64_t k, int64_t n, float* inout) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    F32x16 sum = zero();
    for (int64_t j = 0; j < k; ++j)
      sum = fma(set(weights[j]), load_n(y + position[j] * stride + i, count), sum);
    store_n(load_n(inout + i, count) + sum, inout + i, count);
  }
}

void sum_rows(const float* y, int64_t stride, const int64_t* position, int64_t k, int64_t n,
              float* out) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    F32x16 sum = zero();
    for (int64_t j = 0; j < k; ++j) sum = sum + load_n(y + position[j] * stride + i, count);
    store_n(sum, out + i, count);
  }
}

// dout · y, and dy = weight * dout, which may overwrite y.
float dot_and_scale(const float* dout, const float* y, float weight, int64_t n, float* dy) {
  F32x16 sum = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    const F32x16 d = load_n(dout + i, count);
    sum = fma(d, load_n(y + i, count), sum);
    store_n(set(weight) * d, dy + i, count);
  }
  return reduce_add(sum);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
