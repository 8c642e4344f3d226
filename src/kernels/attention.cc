#include "kernels/attention.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/attention_documents.h"
#include "kernels/attention_tile.h"
#include "kernels/cached_rows.h"
#include "kernels/dispatch.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void attention_queries(const QueryTile& tile))
FATHOM_SIMD_DECLARE(void attention_tile(const AttentionTile& tile))
FATHOM_SIMD_DECLARE(void attention_int8_queries(const QueryTile& tile))
FATHOM_SIMD_DECLARE(void attention_int8_tile(const AttentionTile& tile))
FATHOM_SIMD_DECLARE(void attention_merge(const float* out_next, float max_next, float sum_next,
                                         int64_t n, float* out, float* row_max, float* row_sum))
FATHOM_SIMD_DECLARE(void attention_finish(const float* sums, float sum, int64_t n, float* out))

namespace {

static_assert(kKeyBlock == kTileBlock && kKeySegment == kTileSegment && kInt8Block == kTileBlock);

constexpr int64_t kMergeRows = 4;
constexpr int64_t kTilesOfThread = 4;

// Query rows that are computed together. All heads of a kv head go into one tile as far as they
// fit, so that a block of keys is read and converted once for them; then several tokens.
struct Tile {
  int64_t row, tokens;  // of q and out
  int64_t kv_head, head, heads;
  int64_t position;  // of the first token
  const int64_t* block_rows;
  float* slots;  // one for each segment of a round, behind one for all that is merged

  int64_t rows() const { return tokens * heads; }
  int64_t lanes() const { return ceil_div(rows(), 16) * 16; }
  int64_t segments() const { return ceil_div(position + tokens, kKeySegment); }
};

// f(tile) for all of them, without slots; those that read the same keys one after the other.
template <class F>
void for_each_tile(std::span<const SequenceRows> sequences, int64_t kv_heads, int64_t group, F f) {
  const int64_t heads_per_tile = std::min(group, kTileQueries),
                tokens_per_tile = kTileQueries / heads_per_tile;
  int64_t row = 0;
  for (const SequenceRows& s : sequences) {
    for (int64_t kv_head = 0; kv_head < kv_heads; ++kv_head) {
      for (int64_t t = 0; t < s.rows; t += tokens_per_tile) {
        for (int64_t head = 0; head < group; head += heads_per_tile) {
          f(Tile{row + t, std::min(tokens_per_tile, s.rows - t), kv_head, kv_head * group + head,
                 std::min(heads_per_tile, group - head), s.position + t, s.block_rows.data(),
                 nullptr});
        }
      }
    }
    row += s.rows;
  }
}

// Results of one tile over some segments: unnormalised output, maximum and sum of each row.
struct Slot {
  float *out, *max, *sum;
};

struct Shape {
  AttentionForm form;
  int64_t key_dim, rope_dim, value_dim;
  int64_t out_stride = ceil_div(value_dim, 16) * 16;
  int64_t query_floats(const Tile& t) const {
    if (form == AttentionForm::kInt8) {
      return int8_query_floats(t.lanes(),
                               ceil_div(key_dim, kInt8Block) + ceil_div(rope_dim, kInt8Block));
    }
    return t.lanes() * (key_dim + rope_dim + 2);  // each part may be filled up to pairs
  }
  int64_t weight_floats(const Tile& t) const {
    return form == AttentionForm::kInt8
               ? int8_scratch_floats(t.lanes(), ceil_div(value_dim, kInt8Block))
               : 0;
  }
  int64_t slot_floats(const Tile& t) const { return t.lanes() * (out_stride + 2); }
  Slot slot(const Tile& t, float* data) const {
    return {data, data + t.lanes() * out_stride, data + t.lanes() * (out_stride + 1)};
  }
};

}  // namespace

void expect_no_int8(const AttentionKeys& keys) {
  for (const CachedPart& part : {keys.key, keys.key_rope, keys.value})
    FATHOM_CHECK(part.dim == 0 || part.dtype != DType::kI8, part.dim);
}

namespace {

AttentionForm choose_form(const Context& ctx, const AttentionKeys& keys) {
  const auto all_are = [&](DType dtype) {
    return keys.key.dtype == dtype && keys.value.dtype == dtype &&
           (keys.key_rope.dim == 0 || keys.key_rope.dtype == dtype);
  };
  if (all_are(DType::kI8)) return AttentionForm::kInt8;
  expect_no_int8(keys);
  if (!all_are(DType::kBF16) || ctx.precision() == Precision::kF32) return AttentionForm::kF32;
  return native_bf16(ctx.isa()) ? AttentionForm::kNativeBf16 : AttentionForm::kSplitBf16;
}

}  // namespace

AttentionPart attention_part(const CachedPart& part, int64_t kv_head) {
  FATHOM_CHECK(part.dtype == DType::kF32 || part.dtype == DType::kBF16 || part.dtype == DType::kI8,
               dtype_name(part.dtype));
  const int64_t offset = row_bytes(part.dtype, kv_head * part.head_stride);
  const std::byte* scales =
      part.scales == nullptr ? nullptr : part.scales + offset / kInt8Block * 4;
  return {part.data + offset, part.dtype == DType::kBF16, part.row_stride, part.dim, scales};
}

void attention(Context& ctx, ConstRows q, std::span<const SequenceRows> sequences,
               int64_t num_attention_heads, int64_t num_key_value_heads, float scale,
               const AttentionKeys& keys, Rows out) {
  const Shape shape{choose_form(ctx, keys), keys.key.dim, keys.key_rope.dim, keys.value.dim};
  const int64_t d = shape.key_dim + shape.rope_dim, value_dim = shape.value_dim;
  FATHOM_CHECK(num_key_value_heads > 0 && num_attention_heads % num_key_value_heads == 0,
               num_attention_heads, num_key_value_heads);
  FATHOM_CHECK(q.cols == num_attention_heads * d && out.cols == num_attention_heads * value_dim,
               q.cols, d, out.cols);
  int64_t rows = 0;
  for (const SequenceRows& s : sequences) {
    FATHOM_CHECK(s.rows >= 0 && s.position >= 0, s.rows, s.position);
    FATHOM_CHECK(std::ssize(s.block_rows) * kKeyBlock >= s.position + s.rows, s.block_rows.size(),
                 s.position, s.rows);
    rows += s.rows;
  }
  FATHOM_CHECK(q.rows == rows && out.rows == rows, q.rows, out.rows, rows);
  if (q.rows == 0 || q.cols == 0) return;

  ArenaScope scope(ctx.scratch());
  const int64_t group = num_attention_heads / num_key_value_heads;
  int64_t count = 0, segments = 0, most_segments = 0, most_rows = 0, query_floats = 0,
          slot_floats = 0;
  for_each_tile(sequences, num_key_value_heads, group, [&](const Tile& t) {
    ++count;
    segments += t.segments();
    most_segments = std::max(most_segments, t.segments());
    most_rows = std::max(most_rows, t.rows());
    query_floats = std::max(query_floats, shape.query_floats(t));
    if (t.segments() > 1) slot_floats += shape.slot_floats(t);
  });
  // Many tiles of about one length: each is one item.
  const bool whole = most_segments * ctx.pool().threads() * kTilesOfThread <= segments;
  const int64_t at_once =
      std::clamp<int64_t>(kAttentionSlotFloats / std::max<int64_t>(1, slot_floats), 1,
                          std::max<int64_t>(1, most_segments - 1));
  Tile* const tiles = scope.array<Tile>(count);
  Tile* next_tile = tiles;
  for_each_tile(sequences, num_key_value_heads, group, [&](Tile t) {
    // A tile of one segment finishes on its own.
    if (t.segments() > 1 && !whole) {
      t.slots =
          scope.array<float>((1 + std::min(at_once, t.segments() - 1)) * shape.slot_floats(t));
    }
    *next_tile++ = t;
  });
  // Each thread keeps the queries of its last tile.
  float* const queries = scope.array<float>(ctx.pool().threads() * query_floats);
  int64_t* const tile_of_queries = scope.array<int64_t>(ctx.pool().threads());
  std::fill_n(tile_of_queries, ctx.pool().threads(), -1);
  int64_t* const first_item = scope.array<int64_t>(count + 1);

  const Isa isa = ctx.isa();
  const bool int8 = shape.form == AttentionForm::kInt8;
  const auto transpose = int8 ? FATHOM_SIMD_CALL(isa, attention_int8_queries)
                              : FATHOM_SIMD_CALL(isa, attention_queries);
  const auto compute =
      int8 ? FATHOM_SIMD_CALL(isa, attention_int8_tile) : FATHOM_SIMD_CALL(isa, attention_tile);
  const auto finish_row = [&](const Tile& t, int64_t r, const Slot& total) {
    FATHOM_SIMD_CALL(isa, attention_finish)
    (total.out + r * shape.out_stride, total.sum[r], value_dim,
     out.row(t.row + r / t.heads) + (t.head + r % t.heads) * value_dim);
  };
  const auto compute_segment = [&](int64_t i, int64_t segment, int worker, const Slot& result) {
    const Tile& t = tiles[i];
    float* const q_tile = queries + worker * query_floats;
    const int64_t beside = keys_beside(shape.form, t.rows());
    if (tile_of_queries[worker] != i) {
      transpose({shape.form, q.row(t.row) + t.head * d, q.stride, t.rows(), t.heads, beside,
                 shape.key_dim, shape.rope_dim, q_tile});
      tile_of_queries[worker] = i;
    }
    ArenaScope local(ctx.worker_scratch(worker));
    compute(
        {shape.form, attention_part(keys.key, t.kv_head), attention_part(keys.key_rope, t.kv_head),
         attention_part(keys.value, t.kv_head), t.block_rows + segment * (kKeySegment / kKeyBlock),
         t.rows(), t.heads, t.position + 1 - segment * kKeySegment, beside, t.lanes(), q_tile,
         scale, local.array<float>(kTileBlock * kTileBlock),
         local.array<float>(kKeySegment * t.lanes()), local.array<float>(shape.weight_floats(t)),
         shape.out_stride, result.out, result.max, result.sum});
  };
  const auto merge = [&](const Tile& t, int64_t r, int64_t segment, const Slot& next,
                         const Slot& total) {
    if (segment * kKeySegment > t.position + r / t.heads) return;
    FATHOM_SIMD_CALL(isa, attention_merge)
    (next.out + r * shape.out_stride, next.max[r], next.sum[r], shape.out_stride,
     total.out + r * shape.out_stride, &total.max[r], &total.sum[r]);
  };
  if (whole) {
    ctx.pool().run(count, [&](int64_t i, int worker) {
      const Tile& t = tiles[i];
      ArenaScope local(ctx.worker_scratch(worker));
      const Slot total = shape.slot(t, local.array<float>(shape.slot_floats(t))),
                 next = shape.slot(t, local.array<float>(shape.slot_floats(t)));
      compute_segment(i, 0, worker, total);
      for (int64_t s = 1; s < t.segments(); ++s) {
        compute_segment(i, s, worker, next);
        for (int64_t r = 0; r < t.rows(); ++r) merge(t, r, s, next, total);
      }
      for (int64_t r = 0; r < t.rows(); ++r) finish_row(t, r, total);
    });
    return;
  }
  // Rounds of `at_once` segments. Slot 0 holds what is merged so far and begins as segment 0;
  // segment base + s goes to slot s.
  for (int64_t base = 0; base == 0 || base < most_segments - 1; base += at_once) {
    const int64_t first = base == 0 ? 0 : 1;
    const auto last_slot = [&](const Tile& t) {
      return std::min(at_once, t.segments() - 1 - base);
    };
    first_item[0] = 0;
    for (int64_t i = 0; i < count; ++i)
      first_item[i + 1] = first_item[i] + std::max<int64_t>(0, last_slot(tiles[i]) - first + 1);
    ctx.pool().run(first_item[count], [&](int64_t item, int worker) {
      const int64_t i = std::upper_bound(first_item, first_item + count, item) - first_item - 1;
      const Tile& t = tiles[i];
      const int64_t s = first + item - first_item[i];
      ArenaScope local(ctx.worker_scratch(worker));
      const bool alone = t.segments() == 1;
      const Slot result = shape.slot(
          t, alone ? local.array<float>(shape.slot_floats(t)) : t.slots + s * shape.slot_floats(t));
      compute_segment(i, base + s, worker, result);
      for (int64_t r = 0; alone && r < t.rows(); ++r) finish_row(t, r, result);
    });
    if (most_segments == 1) return;
    const int64_t row_groups = ceil_div(most_rows, kMergeRows);
    ctx.pool().run(count * row_groups, [&](int64_t item, int) {
      const Tile& t = tiles[item / row_groups];
      const int64_t begin = item % row_groups * kMergeRows, last = last_slot(t);
      if (last < 1) return;
      const Slot total = shape.slot(t, t.slots);
      for (int64_t r = begin; r < std::min(t.rows(), begin + kMergeRows); ++r) {
        for (int64_t s = 1; s <= last; ++s)
          merge(t, r, base + s, shape.slot(t, t.slots + s * shape.slot_floats(t)), total);
        if (base + last == t.segments() - 1) finish_row(t, r, total);
      }
    });
  }
}

void attention(Context& ctx, ConstRows q, int64_t position, int64_t num_attention_heads,
               int64_t num_key_value_heads, float scale, const AttentionKeys& keys, Rows out) {
  const SequenceRows sequence{q.rows, position, keys.block_rows};
  attention(ctx, q, {&sequence, 1}, num_attention_heads, num_key_value_heads, scale, keys, out);
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
