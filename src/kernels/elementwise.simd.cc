#include "kernels/bf16-inl.h"
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
void swiglu_row(const float* gate, const float* up, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(silu_times(load(gate + i), load(up + i)), out + i);
  store_n(silu_times(load_n(gate + i, n - i), load_n(up + i, n - i)), out + i, n - i);
}

void swiglu_backward_row(const float* gate, const float* up, const float* dy, int64_t n,
                         float* dgate, float* dup) {
  const F32x16 one = set(1.0f);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    const F32x16 g = load_n(gate + i, count), u = load_n(up + i, count), d = load_n(dy + i, count);
    const F32x16 s = one / (one + exp(zero() - g));
    // What 1 - s loses g multiplies by less than 17: above that s is 1.
    store_n(d * u * (s * fma(g, one - s, one)), dgate + i, count);
    store_n(g * s * d, dup + i, count);
  }
}

void add_row(const float* x, int64_t n, float* inout) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(load(inout + i) + load(x + i), inout + i);
  store_n(load_n(inout + i, n - i) + load_n(x + i, n - i), inout + i, n - i);
}

// vcvtneps2bf16 is no help, it flushes subnormals.
void to_bf16_row(const float* __restrict x, int64_t n, uint16_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = to_bf16(x[i]);
}

void from_bf16_row(const uint16_t* __restrict x, int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i)
    out[i] = __builtin_bit_cast(float, static_cast<uint32_t>(x[i]) << 16);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
