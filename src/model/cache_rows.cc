#include "model/cache_rows.h"

#include <algorithm>

#include "kernels/cached_rows.h"

namespace fathom {
namespace {

constexpr int64_t kRowsPerItem = 16;

std::byte* cache_row(const KvCacheView& cache, int64_t layer, const SequenceRows& sequence,
                     int64_t position) {
  const int64_t row =
      sequence.block_rows[static_cast<size_t>(position / kKeyBlock)] + position % kKeyBlock;
  return cache.layers[static_cast<size_t>(layer)] +
         row * cached_row_bytes(cache.dtype, cache.row_width);
}

}  // namespace

void store_cache_rows(Context& ctx, const InferBatch& batch, int64_t layer, ConstRows x) {
  const KvCacheView& cache = *batch.cache;
  int64_t first = 0;
  for (const SequenceRows& sequence : batch.sequences) {
    ctx.pool().run((sequence.rows + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int) {
      for (int64_t i = item * kRowsPerItem; i < std::min(sequence.rows, (item + 1) * kRowsPerItem);
           ++i) {
        store_cached_row(ctx.isa(), cache.dtype, x.row(first + i), cache.row_width,
                         cache_row(cache, layer, sequence, sequence.position + i));
      }
    });
    first += sequence.rows;
  }
}

void load_cache_rows(Context& ctx, const KvCacheView& cache, int64_t layer,
                     const SequenceRows& sequence, int64_t first, int64_t column, Rows out) {
  ctx.pool().run((out.rows + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int) {
    for (int64_t j = item * kRowsPerItem; j < std::min(out.rows, (item + 1) * kRowsPerItem); ++j) {
      load_cached_row(ctx.isa(), cache.dtype, cache_row(cache, layer, sequence, first + j),
                      cache.row_width, column, out.cols, out.row(j));
    }
  });
}

}  // namespace fathom
