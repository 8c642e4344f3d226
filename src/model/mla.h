// Multi-head latent attention (V2 §2.1, V3 §2.1.1), in its expanded and its absorbed form.
#pragma once

#include "model/batch.h"
#include "model/weights.h"
#include "tensor/context.h"

namespace fathom {

// out [tokens, hidden_size] = attention of x (already normed) over the cache, whose rows of these
// tokens it writes first. cos_sin: rope_angles of the batch's positions. `layer` indexes
// cache.layers.
void mla_forward_infer(Context& ctx, const ModelConfig& config, const MlaWeights& weights,
                       const InferBatch& batch, int64_t layer, ConstRows cos_sin, ConstRows x,
                       Rows out);

}  // namespace fathom
