// out[t, i] = x[t, i] / sqrt(mean_j x[t, j]^2 + eps) * weight[i]      (V2 §2.1; f32 throughout, 16
// partial sums)
#pragma once

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

// weight: [x.cols]. out may be x itself. Each row depends on nothing but itself. Error: (cols / 32
// + 9) u |out|, u = 2^-24, as long as the squares neither overflow nor vanish. Call from one
// thread.
void rms_norm(Context& ctx, ConstRows x, const float* weight, float eps, Rows out);

// With r[t] = 1 / sqrt(mean_j x[t, j]^2 + eps) and g = dy * weight:
//   dx[t, i] = r (g[t, i] - x[t, i] r^2 mean_j(g[t, j] x[t, j])),   dweight[i] += sum_t dy[t, i] x[t, i] r[t]
// dweight [x.cols] is summed over t in order, in double, and rounded once; null = not wanted. dx
// may be dy or x. A row of dx depends on nothing but
// itself. Error, n = cols: of dx (n / 6 + 40) u r (|g| + |x| r^2 mean|g x|), of dweight (n / 32 +
// 11) u sum|dy x r| + u |dweight|.
void rms_norm_backward(Context& ctx, ConstRows x, const float* weight, float eps, ConstRows dy,
                       Rows dx, float* dweight);

}  // namespace fathom
