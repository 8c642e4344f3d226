// out[t, i] = x[t, i] / sqrt(mean_j x[t, j]^2 + eps) * weight[i]      (V2 §2.1; f32 throughout, 16 partial sums)
#pragma once

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

// weight: [x.cols]. out may be x itself. Each row depends on nothing but itself. Error: (cols / 32 + 9) u |out|, u = 2^-24, as long
// as the squares neither overflow nor vanish. Call from one thread.
void rms_norm(Context& ctx, ConstRows x, const float* weight, float eps, Rows out);

}  // namespace fathom
