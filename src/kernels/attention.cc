#include "kernels/attention.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/attention_documents.h"
#include "kernels/attention_tile.h"
#include "kernels/dispatch.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void attention_tile(const AttentionTile& tile))
FATHOM_SIMD_DECLARE(void attention_merge(const float* out_next, float max_next, float sum_next,
                                         int64_t n, float* out, float* row_max, float* row_sum))
FATHOM_SIMD_DECLARE(void attention_finish(const float* sums, float sum, int64_t n, float* out))

namespace {

static_assert(kKeyBlock == kTileBlock && kKeySegment == kTileSegment);

constexpr int64_t kMergeRows = 4;

// How the query rows are cut. All heads of a kv head go into one tile as far as they fit, so that a
// block of keys is read and converted once for them; then several tokens.
struct Tiling {
  int64_t tokens, group, kv_heads;
  int64_t heads_per_tile = std::min(group, kTileQueries);
  int64_t tokens_per_tile = std::min(tokens, kTileQueries / heads_per_tile);
  int64_t head_tiles = ceil_div(group, heads_per_tile);
  int64_t tiles = ceil_div(tokens, tokens_per_tile) * kv_heads * head_tiles;
  int64_t lanes = ceil_div(heads_per_tile * tokens_per_tile, 16) * 16;

  struct Tile {
    int64_t token, tokens, kv_head, head, heads;
    int64_t rows() const { return tokens * heads; }
  };
  Tile tile(int64_t i) const {
    const int64_t token = i / (kv_heads * head_tiles) * tokens_per_tile;
    const int64_t kv_head = i / head_tiles % kv_heads, first = i % head_tiles * heads_per_tile;
    return {token, std::min(tokens_per_tile, tokens - token), kv_head, kv_head * group + first,
            std::min(heads_per_tile, group - first)};
  }
};

// Results of one tile over some segments: unnormalised output, maximum and sum of each row.
struct Slot {
  float *out, *max, *sum;
};

// [lanes / 16, d, 16] from q's rows of the tile; lanes without a row are 0.
void transpose_queries(ConstRows q, const Tiling::Tile& tile, int64_t d, int64_t lanes,
                       float* out) {
  std::fill_n(out + tile.rows() / 16 * 16 * d, (lanes - tile.rows() / 16 * 16) * d, 0.0f);
  for (int64_t r = 0; r < tile.rows(); ++r) {
    const float* x = q.row(tile.token + r / tile.heads) + (tile.head + r % tile.heads) * d;
    float* lane = out + r / 16 * 16 * d + r % 16;
    for (int64_t i = 0; i < d; ++i) lane[i * 16] = x[i];
  }
}

}  // namespace

AttentionPart attention_part(const CachedPart& part, int64_t kv_head) {
  FATHOM_CHECK(part.dtype == DType::kF32 || part.dtype == DType::kBF16, dtype_name(part.dtype));
  const int64_t offset = row_bytes(part.dtype, kv_head * part.head_stride);
  return {part.data + offset, part.dtype == DType::kBF16, part.row_stride, part.dim};
}

void attention(Context& ctx, ConstRows q, int64_t position, int64_t num_attention_heads,
               int64_t num_key_value_heads, float scale, const AttentionKeys& keys, Rows out) {
  const int64_t d = keys.key.dim + keys.key_rope.dim, value_dim = keys.value.dim;
  FATHOM_CHECK(num_key_value_heads > 0 && num_attention_heads % num_key_value_heads == 0,
               num_attention_heads, num_key_value_heads);
  FATHOM_CHECK(q.cols == num_attention_heads * d && out.cols == num_attention_heads * value_dim,
               q.cols, d, out.cols);
  FATHOM_CHECK(q.rows == out.rows && position >= 0, q.rows, out.rows, position);
  FATHOM_CHECK(static_cast<int64_t>(keys.block_rows.size()) * kKeyBlock >= position + q.rows,
               keys.block_rows.size(), position, q.rows);
  if (q.rows == 0 || q.cols == 0) return;

  const Tiling tiling{q.rows, num_attention_heads / num_key_value_heads, num_key_value_heads};
  const int64_t lanes = tiling.lanes, out_stride = ceil_div(value_dim, 16) * 16;
  const int64_t segments = ceil_div(position + q.rows, kKeySegment);
  const int64_t slot_floats = lanes * (out_stride + 2);
  const int64_t at_once = std::clamp<int64_t>(kAttentionSlotFloats / (tiling.tiles * slot_floats),
                                              1, std::max<int64_t>(1, segments - 1));

  ArenaScope scope(ctx.scratch());
  float* queries = scope.array<float>(tiling.tiles * d * lanes);
  float* slots =
      scope.array<float>((std::min(at_once, segments - 1) + 1) * tiling.tiles * slot_floats);
  const auto slot = [&](int64_t s, int64_t tile) {
    float* data = slots + (s * tiling.tiles + tile) * slot_floats;
    return Slot{data, data + lanes * out_stride, data + lanes * (out_stride + 1)};
  };
  ctx.pool().run(tiling.tiles, [&](int64_t i, int) {
    transpose_queries(q, tiling.tile(i), d, lanes, queries + i * d * lanes);
  });

  const auto compute = FATHOM_SIMD_CALL(ctx.isa(), attention_tile);
  const auto merge = FATHOM_SIMD_CALL(ctx.isa(), attention_merge);
  const auto finish = FATHOM_SIMD_CALL(ctx.isa(), attention_finish);
  // Rounds of `at_once` segments. Slot 0 holds what is merged so far and begins as segment 0;
  // segment base + s goes to slot s.
  for (int64_t base = 0; base == 0 || base < segments - 1; base += at_once) {
    const int64_t first = base == 0 ? 0 : 1, last = std::min(at_once, segments - 1 - base);
    ctx.pool().run((last - first + 1) * tiling.tiles, [&](int64_t item, int worker) {
      const int64_t i = item % tiling.tiles, s = first + item / tiling.tiles, segment = base + s;
      const Tiling::Tile tile = tiling.tile(i);
      const int64_t visible = position + tile.token + 1 - segment * kKeySegment;
      if (visible + tile.tokens - 1 <= 0) return;
      ArenaScope local(ctx.worker_scratch(worker));
      const Slot result = slot(s, i);
      compute({attention_part(keys.key, tile.kv_head), attention_part(keys.key_rope, tile.kv_head),
               attention_part(keys.value, tile.kv_head),
               keys.block_rows.data() + segment * (kKeySegment / kKeyBlock), tile.rows(),
               tile.heads, visible, lanes, queries + i * d * lanes, scale,
               local.array<float>(kTileBlock * kTileBlock), local.array<float>(kKeySegment * lanes),
               out_stride, result.out, result.max, result.sum});
    });
    const int64_t row_groups = ceil_div(lanes, kMergeRows);
    ctx.pool().run(tiling.tiles * row_groups, [&](int64_t item, int) {
      const int64_t i = item / row_groups, begin = item % row_groups * kMergeRows;
      const Tiling::Tile tile = tiling.tile(i);
      const Slot total = slot(0, i);
      for (int64_t r = begin; r < std::min(tile.rows(), begin + kMergeRows); ++r) {
        const int64_t token = tile.token + r / tile.heads;
        float* sums = total.out + r * out_stride;
        for (int64_t s = 1; s <= last && (base + s) * kKeySegment <= position + token; ++s) {
          const Slot next = slot(s, i);
          merge(next.out + r * out_stride, next.max[r], next.sum[r], out_stride, sums,
                &total.max[r], &total.sum[r]);
        }
        if (base + last == segments - 1) {
          finish(sums, total.sum[r], value_dim,
                 out.row(token) + (tile.head + r % tile.heads) * value_dim);
        }
      }
    });
  }
}

void attention_documents(Context& ctx, ConstRows q, std::span<const int64_t> document_lengths,
                         int64_t num_attention_heads, int64_t num_key_value_heads, float scale,
                         const AttentionKeys& keys, Rows out) {
  for_documents(ctx, document_lengths, q.rows, keys,
                [&](Context& on, int64_t row, int64_t rows, const AttentionKeys& own) {
                  attention(on, {q.row(row), rows, q.cols, q.stride}, 0, num_attention_heads,
                            num_key_value_heads, scale, own, out.slice(row, rows));
                });
}

}  // namespace fathom
