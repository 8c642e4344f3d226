// The loss of language models and its gradient, in one pass over logits that nobody needs
// afterwards; and for policy gradients the log-probability of each target and the entropy, with the
// gradient of any function of them.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

struct CrossEntropy {
  double loss = 0;    // sum over the rows with a target of log sum_j e^x[t, j] - x[t, target]
  int64_t count = 0;  // rows with a target
};

// inout: logits [T, vocab_size], becomes (softmax - onehot(target)) * scale, 0 in rows whose target
// is -1 (not even read). targets [T], each -1 or in [0, vocab_size).
// The loss of a row has the error of log_sum_exp() before its last rounding, (264 + max - min) u,
// and rows are added in order in double;
// the gradient: p scale (280 + max - min) u, u scale more at the target, 2^-120 scale below that.
// NaN or +inf gives NaN in its row and in the loss. Each row of the gradient depends on nothing but
// itself. Uses ctx.scratch(); call from one thread.
CrossEntropy softmax_cross_entropy(Context& ctx, std::span<const int32_t> targets, float scale,
                                   Rows inout);

// log_prob[t] = x[t, target] - log sum_j e^x[t, j], to the bit what a sampler reports
// (log_sum_exp() in f32, the difference in double);
// entropy[t] = -sum_j p_j log p_j in nats. Both [T]; 0 in rows whose target is -1. Error of the
// entropy: (280 + max - min) (1 + H) u.
void log_prob_entropy(Context& ctx, std::span<const int32_t> targets, ConstRows logits,
                      std::span<float> log_prob, std::span<float> entropy);

// The gradient of sum_t d_log_prob[t] log_prob[t] + d_entropy[t] entropy[t]. inout: the same
// logits, becomes
//   d_log_prob (onehot(target) - p) - d_entropy p (log p + entropy),
// 0 in rows whose target is -1. entropy: as above.
void log_prob_entropy_backward(Context& ctx, std::span<const int32_t> targets,
                               std::span<const float> entropy, std::span<const float> d_log_prob,
                               std::span<const float> d_entropy, Rows inout);

}  // namespace fathom
