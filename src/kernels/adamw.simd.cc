#include "kernels/bf16-inl.h"
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {

// Plain loops vectorise well here and have no reduction; the root and the quotient are the
// processor's own, rounded correctly, so all targets agree but for FMA.
void adamw_range(float lr, float beta1, float beta2, float eps, float decay, float bias2,
                 float gradient_scale, int64_t n, float* __restrict w, float* __restrict gradient,
                 float* __restrict m, float* __restrict v, uint16_t* __restrict compute) {
  const float keep = 1.0f - decay, new1 = 1.0f - beta1, new2 = 1.0f - beta2,
              correct2 = 1.0f / bias2;
  for (int64_t i = 0; i < n; ++i) {
    const float g = gradient_scale * gradient[i];
    const float m_i = beta1 * m[i] + new1 * g;
    const float v_i = beta2 * v[i] + new2 * g * g;
    const float w_i = keep * w[i] - lr * m_i / (__builtin_sqrtf(v_i * correct2) + eps);
    m[i] = m_i;
    v[i] = v_i;
    w[i] = w_i;
    gradient[i] = 0.0f;
  }
  if (compute == nullptr) return;
  for (int64_t i = 0; i < n; ++i) compute[i] = to_bf16(w[i]);
}

double sum_of_squares_range(const float* x, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) {
      const double value = x[i + k];
      lanes[k] += value * value;
    }
  }
  for (int64_t k = 0; i + k < n; ++k) {
    const double value = x[i + k];
    lanes[k] += value * value;
  }
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t k = 0; k < width; ++k) lanes[k] += lanes[k + width];
  }
  return lanes[0];
}

}  // namespace fathom::FATHOM_SIMD_TARGET
