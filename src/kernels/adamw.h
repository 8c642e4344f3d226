// AdamW (arXiv 1711.05101) over flat arrays, and the norm that clips it. One pass over memory a
// step.
//
//   g = gradient_scale * gradient;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   w = w (1 - lr weight_decay) - lr / bias1 * m / (sqrt(v / bias2) + eps)
//   compute = bf16(w), nearest even;  gradient = 0
//
// with bias1 = 1 - beta1^t, bias2 = 1 - beta2^t at step t >= 1. f32 throughout, each element on its
// own: no order, no threads in the result; portable, AVX2 and AVX-512 differ by the rounding of the
// products that FMA leaves out. Error of one step against exact arithmetic on the same inputs: 8 u
// |w| + 16 u |update|.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/dtype.h"

namespace fathom {

struct AdamWStep {
  float lr = 0, beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f, weight_decay = 0;
  float bias1 = 1, bias2 = 1;
  float gradient_scale = 1;
};

// All of one length; compute may be empty. Arrays overlap nothing. Call from one thread.
void adamw(Context& ctx, const AdamWStep& step, std::span<float> w, std::span<float> gradient,
           std::span<float> m, std::span<float> v, std::span<bf16> compute);

// sum x^2 in double: 16 lanes over 65536 elements, these sums added in order. Inf or NaN if an
// element is.
double sum_of_squares(Context& ctx, std::span<const float> x);

}  // namespace fathom
