// Grouped-query attention of the Qwen2 and Llama-3 distillations (formula in gqa.cc).
#pragma once

#include "model/batch.h"
#include "model/weights.h"
#include "tensor/context.h"

namespace fathom {

// As mla_forward_infer; cache rows hold [k of all kv heads | v of all kv heads].
void gqa_forward_infer(Context& ctx, const ModelConfig& config, const GqaWeights& weights,
                       const InferBatch& batch, int64_t layer, ConstRows cos_sin, ConstRows x,
                       Rows out);

}  // namespace fathom
