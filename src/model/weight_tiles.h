// The tiles (kernels/gemm.h) of a model's weights: memory of its own as large as the blocks in the
// files, which are then only read for what needs rows (embedding, export).
#pragma once

#include <cstdint>
#include <functional>

#include "model/weights.h"
#include "tensor/context.h"

namespace fathom {

// Bytes of all tiles.
uint64_t bytes_of_tiles(ModelWeights& w, const ModelConfig& config);

// Makes them, in w.tiles; `progress` is told the bytes done so far and may throw (the weights are
// then as before). Throws std::bad_alloc. REQUIRES: experts are not streamed, and the weights
// change no more: products read the tiles, all else the rows.
void make_tiles(Context& ctx, ModelWeights& w, const ModelConfig& config,
                const std::function<void(uint64_t)>& progress = {});

}  // namespace fathom
