// Multi-head latent attention (V2 §2.1, V3 §2.1.1), in its expanded and its absorbed form, and the
// gradient of the expanded one.
#pragma once

#include "model/activations.h"
#include "model/batch.h"
#include "model/weights.h"
#include "tensor/context.h"

namespace fathom {

// Scratch that the expanded form takes at most besides MlaActivations, over a sequence of `keys`
// cached tokens. 0 without MLA.
uint64_t expanded_bytes(const ModelConfig& config, int64_t keys);

// out [tokens, hidden_size] = attention of x (already normed) over the keys: the cache, whose rows
// of these tokens it writes first, or the batch itself. cos_sin: rope_angles of the batch's
// positions. Fills `a` (activations.h).
void mla_forward(Context& ctx, const ModelConfig& config, const MlaWeights& weights,
                 const KeySource& keys, ConstRows cos_sin, ConstRows x, const MlaActivations& a,
                 Rows out);

// The same rows of the cache and nothing else.
void mla_keys(Context& ctx, const ModelConfig& config, const MlaWeights& weights,
              const KeySource& keys, ConstRows cos_sin, ConstRows x);

// dx is assigned, parameter gradients are added to. x and `a` as mla_forward had them, with keys of
// the batch itself and `keep`. dx overlaps nothing.
void mla_backward(Context& ctx, const ModelConfig& config, const MlaWeights& weights,
                  const KeySource& keys, ConstRows cos_sin, ConstRows x, const MlaActivations& a,
                  ConstRows dout, const MlaGradients& g, Rows dx);

}  // namespace fathom
