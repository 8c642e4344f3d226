// The loss of language models and its gradient, in one pass over logits that nobody needs afterwards.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

struct CrossEntropy {
  double loss = 0;    // sum over the rows with a target of log sum_j e^x[t, j] - x[t, target]
  int64_t count = 0;  // rows with a target
};

// inout: logits [T, vocab_size], becomes (softmax - onehot(target)) * scale, 0 in rows whose target is -1 (not even read). targets [T],
// each -1 or in [0, vocab_size).
// The loss of a row has the error of log_sum_exp() before its last rounding, (264 + max - min) u, and rows are added in order in double;
// the gradient: p scale (280 + max - min) u, u scale more at the target, 2^-120 scale below that. NaN or +inf gives NaN in its row
// and in the loss. Each row of the gradient depends on nothing but itself. Uses ctx.scratch(); call from one thread.
CrossEntropy softmax_cross_entropy(Context& ctx, std::span<const int32_t> targets, float scale, Rows inout);

}  // namespace fathom
