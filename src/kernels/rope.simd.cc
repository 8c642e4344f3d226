// Plain loops: compilers vectorise them, and without contraction every target rounds alike.
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {

void rope_interleaved(const float* __restrict cos_sin, int64_t pairs, float* __restrict x) {
  for (int64_t p = 0; p < pairs; ++p) {
    const float a = x[2 * p], b = x[2 * p + 1], c = cos_sin[2 * p], s = cos_sin[2 * p + 1];
    x[2 * p] = a * c - b * s;
    x[2 * p + 1] = a * s + b * c;
  }
}

void rope_half_split(const float* __restrict cos_sin, int64_t pairs, float* __restrict x) {
  float* __restrict y = x + pairs;
  for (int64_t p = 0; p < pairs; ++p) {
    const float a = x[p], b = y[p], c = cos_sin[2 * p], s = cos_sin[2 * p + 1];
    x[p] = a * c - b * s;
    y[p] = a * s + b * c;
  }
}

}  // namespace fathom::FATHOM_SIMD_TARGET
