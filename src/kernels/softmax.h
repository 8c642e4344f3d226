// Softmax statistics of logit rows, for log-probabilities and perplexity.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

// out[t] = log sum_j e^x[t, j], max subtracted first; f32 lanes over 4096 columns at a time,
// everything across in double.
// Error: at most (264 + max - min) u, u = 2^-24, plus the rounding of the result. No columns: -inf.
// A row with NaN or +inf gives NaN; a row of -inf only gives -inf.
void log_sum_exp(Context& ctx, ConstRows x, std::span<float> out);

}  // namespace fathom
