#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {

void rms_norm_row(const float* x, const float* weight, float eps, int64_t n, float* out) {
  F32x16 squares = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32x16 v = load(x + i);
    squares = fma(v, v, squares);
  }
  const int64_t whole = i, tail = n - i;
  const F32x16 last = load_n(x + whole, tail);
  squares = fma(last, last, squares);
  const float mean = reduce_add(squares) / static_cast<float>(n);
  const F32x16 factor = set(1.0f / __builtin_sqrtf(mean + eps));
  for (i = 0; i < whole; i += kLanes) store(load(x + i) * factor * load(weight + i), out + i);
  store_n(last * factor * load_n(weight + whole, tail), out + whole, tail);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
