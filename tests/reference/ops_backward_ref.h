// Plain twins of the backward kernels: analytic gradients in double, and beside each the value it
// differentiates, in double from double inputs, so that central differences can judge it
// (ops_backward_ref_test.cc). Dense [rows, cols]; loops only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/rope.h"
#include "kernels/router.h"
#include "tensor/view.h"

namespace fathom::reference {

using Doubles = std::vector<double>;

Doubles dense(ConstRows x);

// y [M, N] = x [M, K] · wᵀ + bias, w [N, K], N = bias.size().
Doubles linear_value(const Doubles& x, const Doubles& w, const Doubles& bias);
struct LinearGradient {
  Doubles dx, dw, db;
  Doubles dw_terms;  // sum |dy x| of each element of dw
};
LinearGradient linear_gradient(const Doubles& x, const Doubles& w, int64_t n, const Doubles& dy);

// cols = weight.size()
Doubles rms_norm_value(const Doubles& x, const Doubles& weight, double eps);
struct RmsNormGradient {
  Doubles dx, dweight;
  Doubles dx_terms, dweight_terms;  // r (|g| + |x| r^2 mean|g x|) and sum |dy x r|
};
RmsNormGradient rms_norm_gradient(const Doubles& x, const Doubles& weight, double eps,
                                  const Doubles& dy);

Doubles swiglu_value(const Doubles& gate, const Doubles& up);
struct SwigluGradient {
  Doubles dgate, dup;
};
SwigluGradient swiglu_gradient(const Doubles& gate, const Doubles& up, const Doubles& dy);

// One head per row: x [T, cos_sin.cols].
Doubles rope_value(ConstRows cos_sin, RopeLayout layout, const Doubles& x);
Doubles rope_gradient(ConstRows cos_sin, RopeLayout layout, const Doubles& dy);

// x [T, cols] to its k rows at position [T * k], and back.
Doubles gather_value(const Doubles& x, std::span<const int64_t> position, int64_t cols);
Doubles gather_gradient(const Doubles& dout, std::span<const int64_t> position, int64_t k,
                        int64_t cols);
// The weighted sum of each token's k rows of y.
Doubles scatter_value(const Doubles& y, std::span<const int64_t> position, const Doubles& weights,
                      int64_t k, int64_t cols);
struct ScatterGradient {
  Doubles dy, dweights;
};
ScatterGradient scatter_gradient(const Doubles& y, std::span<const int64_t> position,
                                 const Doubles& weights, int64_t k, int64_t cols,
                                 const Doubles& dout);

// Weights [T, k] of given experts, all from groups that were kept.
Doubles route_value(const RouterRule& rule, const Doubles& logits,
                    std::span<const int32_t> experts);
Doubles route_gradient(const RouterRule& rule, const Doubles& logits,
                       std::span<const int32_t> experts, const Doubles& dweights);

double balance_value(const RouterRule& rule, const Doubles& logits,
                     std::span<const int32_t> experts, std::span<const int64_t> document_lengths,
                     const BalanceAlpha& alpha);
Doubles balance_gradient(const RouterRule& rule, const Doubles& logits,
                         std::span<const int32_t> experts,
                         std::span<const int64_t> document_lengths, const BalanceAlpha& alpha);

// Sum over the rows with a target; its gradient.
double cross_entropy_value(const Doubles& logits, std::span<const int32_t> targets,
                           int64_t vocab_size);
Doubles cross_entropy_gradient(const Doubles& logits, std::span<const int32_t> targets,
                               int64_t vocab_size);

// Of one row: log p(target) and -sum_j p_j log p_j; and the gradient of d_log_prob times the one
// plus d_entropy times the other.
std::pair<double, double> log_prob_entropy_value(std::span<const double> logits, int32_t target);
Doubles log_prob_entropy_gradient(std::span<const double> logits, int32_t target, double d_log_prob,
                                  double d_entropy);

Doubles embedding_value(const Doubles& table, std::span<const int32_t> ids, int64_t cols);
Doubles embedding_gradient(const Doubles& dy, std::span<const int32_t> ids, int64_t vocab_size,
                           int64_t cols);

}  // namespace fathom::reference
