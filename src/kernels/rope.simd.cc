// The arithmetic is in F32x16, not in a plain loop over pairs: gcc 12 makes fused multiply-adds of
// that one, against
// -ffp-contract=off, and the targets would then round differently.
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// Pair p is (x[p * kStep], x[p * kStep + second]); direction 1 or -1.
template <int64_t kStep>
void rotate(const float* cos_sin, int64_t pairs, int64_t second, float direction, float* x) {
  for (int64_t p = 0; p < pairs; p += kLanes, x += kLanes * kStep, cos_sin += 2 * kLanes) {
    const int64_t n = pairs - p < kLanes ? pairs - p : kLanes;
    float a[kLanes] = {}, b[kLanes] = {}, cosine[kLanes] = {}, sine[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) {
      a[i] = x[i * kStep];
      b[i] = x[i * kStep + second];
      cosine[i] = cos_sin[2 * i];
      sine[i] = cos_sin[2 * i + 1];
    }
    const F32x16 va = load(a), vb = load(b), c = load(cosine), s = load(sine) * set(direction);
    store(va * c - vb * s, a);
    store(va * s + vb * c, b);
    for (int64_t i = 0; i < n; ++i) {
      x[i * kStep] = a[i];
      x[i * kStep + second] = b[i];
    }
  }
}

}  // namespace

void rope_interleaved(const float* cos_sin, int64_t pairs, float direction, float* x) {
  rotate<2>(cos_sin, pairs, 1, direction, x);
}
void rope_half_split(const float* cos_sin, int64_t pairs, float direction, float* x) {
  rotate<1>(cos_sin, pairs, pairs, direction, x);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
