// Grouped-query attention of the Qwen2 and Llama-3 distillations (formula in gqa.cc), and its
// gradient.
#pragma once

#include "model/activations.h"
#include "model/batch.h"
#include "model/weights.h"
#include "tensor/context.h"

namespace fathom {

// As mla_forward; cache rows hold [k of all kv heads | v of all kv heads].
void gqa_forward(Context& ctx, const ModelConfig& config, const GqaWeights& weights,
                 const KeySource& keys, ConstRows cos_sin, ConstRows x, const GqaActivations& a,
                 Rows out);

// As mla_keys.
void gqa_keys(Context& ctx, const ModelConfig& config, const GqaWeights& weights,
              const KeySource& keys, ConstRows cos_sin, ConstRows x);

// As mla_backward.
void gqa_backward(Context& ctx, const ModelConfig& config, const GqaWeights& weights,
                  const KeySource& keys, ConstRows cos_sin, ConstRows x, const GqaActivations& a,
                  ConstRows dout, const GqaGradients& g, Rows dx);

}  // namespace fathom
