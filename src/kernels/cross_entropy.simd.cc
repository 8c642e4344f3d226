#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {

// inout = e^(inout - shift) * factor.
void scaled_exp(float shift, float factor, int64_t n, float* inout) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    store_n(exp(load_n(inout + i, count) - set(shift)) * set(factor), inout + i, count);
  }
}

}  // namespace fathom::FATHOM_SIMD_TARGET
