// One decoder layer: m = x + attention(norm(x)); y = m + mlp(norm(m)); and its gradient.
#pragma once

#include "model/activations.h"
#include "model/batch.h"
#include "model/mlp.h"
#include "model/weights.h"
#include "tensor/context.h"

namespace fathom {

// y [tokens, hidden_size] = block(x); y may be x. Fills `a`.
void block_forward(Context& ctx, const ModelConfig& config, const BlockWeights& weights,
                   const KeySource& keys, ConstRows cos_sin, ConstRows x, const BlockActivations& a,
                   Rows y);

// Only writes the cache rows that block_forward() writes: of tokens whose y nobody wants.
void block_keys(Context& ctx, const ModelConfig& config, const BlockWeights& weights,
                const KeySource& keys, ConstRows cos_sin, ConstRows x);

// inout: the gradient of y becomes that of x. Parameter gradients are added to; `a` was kept, and
// is used up. Returns the value of the balance loss.
double block_backward(Context& ctx, const ModelConfig& config, const BlockWeights& weights,
                      const KeySource& keys, ConstRows cos_sin, ConstRows x,
                      const BlockActivations& a, const BalanceObjective& balance,
                      const BlockGradients& g, Rows inout);

}  // namespace fathom
