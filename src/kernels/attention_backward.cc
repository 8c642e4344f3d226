#include "kernels/attention_backward.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/attention_backward_tile.h"
#include "kernels/attention_documents.h"
#include "kernels/dispatch.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void attention_backward_tile(const BackwardTile& tile))
FATHOM_SIMD_DECLARE(void attention_backward_sum(const BackwardSum& sum))

namespace {

static_assert(kKeyBlock == kTileBlock);

int64_t align16(int64_t n) { return (n + 15) / 16 * 16; }

// Tiles are numbered head by head; tile i of a head has i + 1 blocks of keys.
struct Tiles {
  int64_t tokens, heads;
  int64_t per_head = (tokens + kTileBlock - 1) / kTileBlock;
  int64_t count = heads * per_head;

  int64_t index(int64_t tile) const { return tile % per_head; }
  int64_t head(int64_t tile) const { return tile / per_head; }
  int64_t first_token(int64_t index) const { return index * kTileBlock; }
  int64_t tokens_of(int64_t index) const {
    return std::min(kTileBlock, tokens - index * kTileBlock);
  }
  int64_t blocks_before(int64_t tile) const {
    return head(tile) * (per_head * (per_head + 1) / 2) + index(tile) * (index(tile) + 1) / 2;
  }
  // One past the last tile of the round that begins with `begin`.
  int64_t round_end(int64_t begin) const {
    int64_t end = begin + 1;
    while (end < count && blocks_before(end + 1) - blocks_before(begin) <= kBackwardBlocks) ++end;
    return end;
  }
};

// Columns [column, column + dim) of each head's part of the tile's rows.
AttentionPart tile_rows(ConstRows x, const Tiles& tiles, int64_t tile, int64_t head_cols,
                        int64_t column, int64_t dim) {
  return {x.row(tiles.first_token(tiles.index(tile))) + tiles.head(tile) * head_cols + column,
          false, x.stride, dim};
}

// One of dkey, dkey_rope, dvalue for one kv head: what it sums over.
struct KeySum {
  float* out;
  int64_t row_stride, dim;
  int64_t first_head, heads;
  ConstRows rows;
  int64_t head_cols, column;
  bool of_dscore;
};

}  // namespace

void attention_backward(Context& ctx, ConstRows q, int64_t num_attention_heads,
                        int64_t num_key_value_heads, float scale, const AttentionKeys& keys,
                        ConstRows dout, Rows dq, const AttentionGradients& gradients) {
  const int64_t d1 = keys.key.dim, d2 = keys.key_rope.dim, d = d1 + d2, value_dim = keys.value.dim;
  FATHOM_CHECK(num_key_value_heads > 0 && num_attention_heads % num_key_value_heads == 0,
               num_attention_heads, num_key_value_heads);
  FATHOM_CHECK(q.cols == num_attention_heads * d && dq.cols == q.cols &&
                   dout.cols == num_attention_heads * value_dim,
               q.cols, dq.cols, dout.cols, d);
  expect_no_int8(keys);
  FATHOM_CHECK(q.rows == dout.rows && q.rows == dq.rows, q.rows, dout.rows, dq.rows);
  FATHOM_CHECK(static_cast<int64_t>(keys.block_rows.size()) * kKeyBlock >= q.rows,
               keys.block_rows.size(), q.rows);
  FATHOM_CHECK(num_key_value_heads == 1 ||
                   (gradients.dkey.head_stride >= d1 && gradients.dvalue.head_stride >= value_dim),
               gradients.dkey.head_stride, gradients.dvalue.head_stride);
  if (q.rows == 0) return;

  const Tiles tiles{q.rows, num_attention_heads};
  const int64_t group = num_attention_heads / num_key_value_heads,
                dq_stride = align16(d1) + align16(d2);
  const int64_t sum_stride = align16(std::max({d1, d2, value_dim}));
  const auto compute = FATHOM_SIMD_CALL(ctx.isa(), attention_backward_tile);
  const auto add = FATHOM_SIMD_CALL(ctx.isa(), attention_backward_sum);

  ArenaScope scope(ctx.scratch());
  const int64_t most_blocks =
      std::min(tiles.blocks_before(tiles.count), std::max(kBackwardBlocks, tiles.per_head));
  float* pairs = scope.array<float>(most_blocks * 2 * kBlockPairs);
  for (int64_t begin = 0, end; begin < tiles.count; begin = end) {
    end = tiles.round_end(begin);
    const auto probability = [&](int64_t tile) {
      return pairs + (tiles.blocks_before(tile) - tiles.blocks_before(begin)) * 2 * kBlockPairs;
    };
    const auto dscore = [&](int64_t tile) {
      return probability(tile) + (tiles.index(tile) + 1) * kBlockPairs;
    };

    ctx.pool().run(end - begin, [&](int64_t item, int worker) {
      const int64_t tile = end - 1 - item, index = tiles.index(tile), head = tiles.head(tile),
                    kv_head = head / group;
      ArenaScope local(ctx.worker_scratch(worker));
      float* sums = local.array<float>(kTileBlock * dq_stride);
      compute({attention_part(keys.key, kv_head), attention_part(keys.key_rope, kv_head),
               attention_part(keys.value, kv_head), keys.block_rows.data(),
               tile_rows(q, tiles, tile, d, 0, d),
               tile_rows(dout, tiles, tile, value_dim, 0, value_dim), index, tiles.tokens_of(index),
               scale, local.array<float>(kBlockPairs),
               local.array<float>(std::max(d, value_dim) * kTileBlock), probability(tile),
               dscore(tile), sums, dq_stride});
      for (int64_t r = 0; r < tiles.tokens_of(index); ++r, sums += dq_stride) {
        float* row = dq.row(tiles.first_token(index) + r) + head * d;
        std::copy_n(sums, d1, row);
        std::copy_n(sums + align16(d1), d2, row + d1);
      }
    });

    const auto sum_over_tokens = [&](const KeySum& sum, int64_t key_block, int worker) {
      const int64_t first = sum.first_head * tiles.per_head + key_block,
                    last = (sum.first_head + sum.heads) * tiles.per_head;
      const int64_t count = tiles.tokens_of(key_block);
      if (first >= end) return;
      ArenaScope local(ctx.worker_scratch(worker));
      float* sums = local.array<float>(kTileBlock * sum_stride);
      float* block = local.array<float>(kBlockPairs);
      float* out = sum.out + tiles.first_token(key_block) * sum.row_stride;
      std::fill_n(sums, kTileBlock * sum_stride, 0.0f);
      if (first < begin) {  // goes on where the last round stopped
        for (int64_t j = 0; j < count; ++j)
          std::copy_n(out + j * sum.row_stride, sum.dim, sums + j * sum_stride);
      }
      for (int64_t tile = std::max(first, begin); tile < std::min(last, end); ++tile) {
        const int64_t index = tiles.index(tile);
        if (index < key_block) continue;
        const float* weights =
            (sum.of_dscore ? dscore(tile) : probability(tile)) + key_block * kBlockPairs;
        add({weights, count, tiles.tokens_of(index), index == key_block,
             tile_rows(sum.rows, tiles, tile, sum.head_cols, sum.column, sum.dim), block, sums,
             sum_stride});
      }
      for (int64_t j = 0; j < count; ++j)
        std::copy_n(sums + j * sum_stride, sum.dim, out + j * sum.row_stride);
    };
    // For each block of keys dkey_rope, then dkey and dvalue of the round's kv heads; the longest
    // sums first.
    const int64_t first_kv = tiles.head(begin) / group,
                  kv_heads = tiles.head(end - 1) / group + 1 - first_kv;
    const int64_t sums_per_block = 1 + 2 * kv_heads;
    ctx.pool().run(tiles.per_head * sums_per_block, [&](int64_t item, int worker) {
      const int64_t key_block = item / sums_per_block, i = item % sums_per_block,
                    kv_head = first_kv + (i - 1) / 2;
      const GradientPart &dkey = gradients.dkey, &dvalue = gradients.dvalue,
                         &dkey_rope = gradients.dkey_rope;
      if (i == 0) {
        if (d2 == 0) return;
        sum_over_tokens(
            {dkey_rope.data, dkey_rope.row_stride, d2, 0, num_attention_heads, q, d, d1, true},
            key_block, worker);
      } else if (i % 2 == 1) {
        sum_over_tokens({dkey.data + kv_head * dkey.head_stride, dkey.row_stride, d1,
                         kv_head * group, group, q, d, 0, true},
                        key_block, worker);
      } else {
        sum_over_tokens({dvalue.data + kv_head * dvalue.head_stride, dvalue.row_stride, value_dim,
                         kv_head * group, group, dout, value_dim, 0, false},
                        key_block, worker);
      }
    });
  }
}

void attention_documents_backward(Context& ctx, ConstRows q,
                                  std::span<const int64_t> document_lengths,
                                  int64_t num_attention_heads, int64_t num_key_value_heads,
                                  float scale, const AttentionKeys& keys, ConstRows dout, Rows dq,
                                  const AttentionGradients& gradients) {
  const auto from = [](GradientPart part, int64_t row) {
    if (part.data != nullptr) part.data += row * part.row_stride;
    return part;
  };
  for_documents(ctx, document_lengths, q.rows, keys,
                [&](Context& on, int64_t row, int64_t rows, const AttentionKeys& own) {
                  attention_backward(on, {q.row(row), rows, q.cols, q.stride}, num_attention_heads,
                                     num_key_value_heads, scale, own,
                                     {dout.row(row), rows, dout.cols, dout.stride},
                                     dq.slice(row, rows),
                                     {from(gradients.dkey, row), from(gradients.dkey_rope, row),
                                      from(gradients.dvalue, row)});
                });
}

}  // namespace fathom
