// SwiGLU feed-forward and DeepSeekMoE (V2 §2.2, V3 §2.1.2), and their gradients.
#pragma once

#include "model/activations.h"
#include "model/weights.h"
#include "tensor/context.h"

namespace fathom {

// out = W_down (silu(W_gate x) * W_up x). Fills `a`; x stays as it is.
void mlp_forward(Context& ctx, const MlpWeights& weights, ConstRows x, const MlpActivations& a,
                 Rows out);

// dx is assigned, parameter gradients are added to. `a` was kept; its gate and up are overwritten.
void mlp_backward(Context& ctx, const MlpWeights& weights, ConstRows x, const MlpActivations& a,
                  ConstRows dout, const MlpGradients& g, Rows dx);

// out = sum over the chosen experts of weight * expert(x), plus the shared experts' MLP unscaled.
void moe_forward(Context& ctx, const ModelConfig& config, const MoeWeights& weights, ConstRows x,
                 const MoeActivations& a, Rows out);

// The balance losses that act on the router's scores (V2 §2.2.3, V3 §2.1.2).
struct BalanceObjective {
  std::span<const int64_t> document_lengths;
  BalanceAlpha alpha;  // of these documents together: times their share of the step's documents
};

// As mlp_backward; the router is reached through the weights of the chosen experts and through the
// balance loss, whose value is returned. The choice itself and the bias have no gradient.
double moe_backward(Context& ctx, const ModelConfig& config, const MoeWeights& weights, ConstRows x,
                    const MoeActivations& a, const BalanceObjective& balance, ConstRows dout,
                    const MoeGradients& g, Rows dx);

}  // namespace fathom
