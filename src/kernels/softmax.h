// Softmax statistics of logit rows, for log-probabilities and perplexity.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

// out[t] = log sum_j e^x[t, j], max subtracted first; f32 lanes inside a row, sum of the 16 lanes in double.
// A row with NaN or +inf gives NaN; a row of -inf only gives -inf.
void log_sum_exp(Context& ctx, ConstRows x, std::span<float> out);

}  // namespace fathom
