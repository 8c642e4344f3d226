// Moving rows of f32 between a step's activations and the cache, in the cache's dtype.
#pragma once

#include "model/batch.h"
#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

// Stores x[t, :], row_width values, as the cache row of batch row t.
void store_cache_rows(Context& ctx, const InferBatch& batch, int64_t layer, ConstRows x);

// out[j, :] = columns [column, column + out.cols) of the cache rows of positions first + j, j = 0
// .. out.rows - 1, of one sequence.
void load_cache_rows(Context& ctx, const KvCacheView& cache, int64_t layer,
                     const SequenceRows& sequence, int64_t first, int64_t column, Rows out);

}  // namespace fathom
