// SwiGLU feed-forward and DeepSeekMoE (V2 §2.2, V3 §2.1.2).
#pragma once

#include "model/weights.h"
#include "tensor/context.h"

namespace fathom {

// out = W_down (silu(W_gate x) * W_up x)
void mlp_forward(Context& ctx, const MlpWeights& weights, ConstRows x, Rows out);

// out = sum over the chosen experts of weight * expert(x), plus the shared experts' MLP unscaled.
// experts, if not null, receives the choice [tokens, num_experts_per_tok].
void moe_forward(Context& ctx, const ModelConfig& config, const MoeWeights& weights, ConstRows x,
                 Rows out, int32_t* experts);

}  // namespace fathom
