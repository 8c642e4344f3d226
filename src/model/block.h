// One decoder layer: x += attention(norm(x)); x += mlp(norm(x)).
#pragma once

#include "model/batch.h"
#include "model/weights.h"
#include "tensor/context.h"

namespace fathom {

// x [tokens, hidden_size] in place. `layer` indexes the cache. experts: see moe_forward.
void block_forward_infer(Context& ctx, const ModelConfig& config, const BlockWeights& weights,
                         const InferBatch& batch, int64_t layer, ConstRows cos_sin, Rows x,
                         int32_t* experts);

}  // namespace fathom
