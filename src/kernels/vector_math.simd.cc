#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {

void vector_exp(const float* x, int64_t n, float* out) {
  for (; n >= kLanes; n -= kLanes, x += kLanes, out += kLanes) store(exp(load(x)), out);
  store_n(exp(load_n(x, n)), out, n);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
