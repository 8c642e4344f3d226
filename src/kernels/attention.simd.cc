// Two small matrix products (attention-inl.h) around a softmax: scores[key, row] = K · Qᵀ, so that
// a lane is
// a query row and the softmax needs no work across lanes; then out[row, dim] = Pᵀ · V. Every
// element is one chain, over dims or over keys.
#include "kernels/attention-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// Keys of the segment that row r may read; rows behind the last count as the last.
inline int64_t visible_keys(const AttentionTile& t, int64_t r) {
  return clamp(t.visible + (r < t.rows ? r : t.rows - 1) / t.heads, 0, kTileSegment);
}

// Scores of one part, whose first dim is q's dim `q_begin`. Lanes that see none of a block are left
// out.
void add_scores(const AttentionTile& t, const AttentionPart& part, int64_t q_begin, int64_t keys) {
  const int64_t q_dims = t.key.dim + t.key_rope.dim;
  for (int64_t j = 0; j < keys; j += kBlock) {
    const int64_t count = clamp(keys - j, 0, kBlock);
    const int64_t first_group = clamp((j + 1 - t.visible) * t.heads, 0, t.rows) / kLanes;
    for (int64_t begin = 0; begin < part.dim; begin += kChunk) {
      const int64_t dims = clamp(part.dim - begin, 0, kChunk);
      load_block(part, t.block_rows[j / kBlock], count, begin, dims, t.block);
      multiply({.a = t.block,
                .a_row = kChunk,
                .a_step = 1,
                .b = t.q + (first_group * q_dims + q_begin + begin) * kLanes,
                .b_step = kLanes,
                .b_column = q_dims * kLanes,
                .c = t.scores + (first_group * kTileSegment + j) * kLanes,
                .c_row = kLanes,
                .c_column = kTileSegment * kLanes,
                .k = dims,
                .accumulate = q_begin + begin > 0},
               count, t.lanes / kLanes - first_group);
    }
  }
}

// scores -> e^(scale * score - max); keys a row must not see become -inf first and so exactly 0.
// The sum runs in four chains (key mod 4), which zeros behind a row's last key do not change.
void softmax_scores(const AttentionTile& t) {
  const F32x16 scale = set(t.scale);
  for (int64_t r = 0; r < t.lanes; r += kLanes) {
    float* scores = t.scores + r * kTileSegment;
    const int64_t keys = visible_keys(t, r + kLanes - 1);
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t j = visible_keys(t, r + i); j < keys; ++j) scores[j * kLanes + i] = -kInf;
    }
    F32x16 m = set(-kInf);
    for (int64_t j = 0; j < keys; ++j) {
      const F32x16 scaled = load(scores + j * kLanes) * scale;
      store(scaled, scores + j * kLanes);
      m = max(m, scaled);
    }
    F32x16 sum[4] = {zero(), zero(), zero(), zero()};
    for (int64_t j = 0; j < keys; ++j) {
      const F32x16 p = exp(load(scores + j * kLanes) - m);
      store(p, scores + j * kLanes);
      sum[j % 4] = sum[j % 4] + p;
    }
    store(m, t.max + r);
    store((sum[0] + sum[1]) + (sum[2] + sum[3]), t.sum + r);
  }
}

// out = Pᵀ · V. Eight rows go together over the keys that the first of them sees, the others then
// add theirs alone: a row touches no value it must not see, not even with weight 0 (0 * NaN is
// NaN).
void add_values(const AttentionTile& t, int64_t keys) {
  constexpr int64_t kGroup = 8;
  for (int64_t j = 0; j < keys; j += kBlock) {
    const int64_t count = clamp(keys - j, 0, kBlock);
    for (int64_t begin = 0; begin < t.value.dim; begin += kChunk) {
      const int64_t dims = clamp(t.value.dim - begin, 0, kChunk);
      load_block(t.value, t.block_rows[j / kBlock], count, begin, dims, t.block);
      const auto add = [&](int64_t row, int64_t rows, int64_t from, int64_t to) {
        if (from >= to) return;
        multiply({.a = t.scores + (row / kLanes * kTileSegment + j + from) * kLanes + row % kLanes,
                  .a_row = 1,
                  .a_step = kLanes,
                  .b = t.block + from * kChunk,
                  .b_step = kChunk,
                  .b_column = kLanes,
                  .c = t.out + row * t.out_stride + begin,
                  .c_row = t.out_stride,
                  .c_column = kLanes,
                  .k = to - from,
                  .accumulate = j + from > 0},
                 rows, (dims + kLanes - 1) / kLanes);
      };
      for (int64_t row = 0; row < t.rows; row += kGroup) {
        const int64_t rows = clamp(t.rows - row, 0, kGroup);
        const int64_t common = clamp(visible_keys(t, row) - j, 0, count);
        add(row, rows, 0, common);
        for (int64_t r = row + 1; r < row + rows; ++r)
          add(r, 1, common, clamp(visible_keys(t, r) - j, 0, count));
      }
    }
  }
}

}  // namespace

void attention_tile(const AttentionTile& t) {
  const int64_t keys = visible_keys(t, t.rows - 1);
  add_scores(t, t.key, 0, keys);
  add_scores(t, t.key_rope, t.key.dim, keys);
  softmax_scores(t);
  add_values(t, keys);
}

// (max, sum, out) of a row merged with those of its next segment.
void attention_merge(const float* out_next, float max_next, float sum_next, int64_t n, float* out,
                     float* row_max, float* row_sum) {
  const F32x16 before = set(*row_max), next = set(max_next), both = max(before, next);
  const F32x16 keep = exp(before - both), weight = exp(next - both);
  float lane[kLanes];
  store(both, lane);
  *row_max = lane[0];
  store(fma(weight, set(sum_next), keep * set(*row_sum)), lane);
  *row_sum = lane[0];
  for (int64_t i = 0; i < n; i += kLanes)
    store(fma(weight, load(out_next + i), keep * load(out + i)), out + i);
}

void attention_finish(const float* sums, float sum, int64_t n, float* out) {
  const F32x16 divisor = set(sum);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(load(sums + i) / divisor, out + i);
  store_n(load_n(sums + i, n - i) / divisor, out + i, n - i);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
