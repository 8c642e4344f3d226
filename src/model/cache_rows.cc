#include "model/cache_rows.h"

#include <algorithm>
#include <cstring>

#include "kernels/attention.h"
#include "kernels/elementwise.h"

namespace fathom {
namespace {

constexpr int64_t kRowsPerItem = 16;

std::byte* cache_row(const KvCacheView& cache, int64_t layer, const SequenceRows& sequence,
                     int64_t position, int64_t column) {
  const int64_t row =
      sequence.block_rows[static_cast<size_t>(position / kKeyBlock)] + position % kKeyBlock;
  const int64_t element_bytes = dtype_info(cache.dtype).block_bytes;
  return cache.layers[static_cast<size_t>(layer)] +
         (row * cache.row_width + column) * element_bytes;
}

}  // namespace

void store_cache_rows(Context& ctx, const InferBatch& batch, int64_t layer, int64_t column,
                      ConstRows x) {
  const KvCacheView& cache = *batch.cache;
  int64_t first = 0;
  for (const SequenceRows& sequence : batch.sequences) {
    ctx.pool().run((sequence.rows + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int) {
      for (int64_t i = item * kRowsPerItem; i < std::min(sequence.rows, (item + 1) * kRowsPerItem);
           ++i) {
        std::byte* to = cache_row(cache, layer, sequence, sequence.position + i, column);
        if (cache.dtype == DType::kBF16) {
          to_bf16(ctx.isa(), x.row(first + i), x.cols, reinterpret_cast<bf16*>(to));
        } else {
          std::memcpy(to, x.row(first + i), static_cast<size_t>(x.cols) * sizeof(float));
        }
      }
    });
    first += sequence.rows;
  }
}

void load_cache_rows(Context& ctx, const KvCacheView& cache, int64_t layer,
                     const SequenceRows& sequence, int64_t column, Rows out) {
  ctx.pool().run((out.rows + kRowsPerItem - 1) / kRowsPerItem, [&](int64_t item, int) {
    for (int64_t j = item * kRowsPerItem; j < std::min(out.rows, (item + 1) * kRowsPerItem); ++j) {
      const std::byte* from = cache_row(cache, layer, sequence, j, column);
      if (cache.dtype == DType::kBF16) {
        from_bf16(ctx.isa(), reinterpret_cast<const bf16*>(from), out.cols, out.row(j));
      } else {
        std::memcpy(out.row(j), from, static_cast<size_t>(out.cols) * sizeof(float));
      }
    }
  });
}

}  // namespace fathom
