// Five small matrix products (attention-inl.h) for each tile of tokens and block of keys. In the
// first two,
// Sᵀ = K · Qᵀ and dPᵀ = V · dOᵀ, a lane is a token, so that softmax and its gradient need no work
// across
// lanes; in dQ = dS · K, dK += dSᵀ · Q and dV += Pᵀ · dO a lane is a dim. On the diagonal, blocks
// are cut into steps of kLanes keys, each for the tokens from the step's first on.
#include "kernels/attention-inl.h"
#include "kernels/attention_backward_tile.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

inline int64_t vectors_of(int64_t n) { return (n + kLanes - 1) / kLanes; }

// f(first, count): keys [first, first + count) of the block go with the tokens from `first` on.
template <class F>
void for_each_step(bool diagonal, int64_t keys, F f) {
  if (!diagonal) return f(0, keys);
  for (int64_t first = 0; first < keys; first += kLanes) f(first, clamp(keys - first, 0, kLanes));
}

// f(block, keys, diagonal) for the blocks of keys that the tile sees.
template <class F>
void for_each_block(const BackwardTile& t, F f) {
  for (int64_t b = 0; b <= t.index; ++b) f(b, b < t.index ? kBlock : t.tokens, b == t.index);
}

// [dim, kTileBlock] from rows [tokens, dim]; tokens up to a whole vector are 0.
void transpose(const BackwardTile& t, const AttentionPart& rows) {
  for (int64_t begin = 0; begin < rows.dim; begin += kChunk) {
    const int64_t dims = clamp(rows.dim - begin, 0, kChunk);
    load_block(rows, 0, t.tokens, begin, dims, t.block);
    for (int64_t r = t.tokens; r < vectors_of(t.tokens) * kLanes; ++r) {
      for (int64_t i = 0; i < dims; ++i) t.block[r * kChunk + i] = 0;
    }
    for (int64_t i = 0; i < dims; ++i) {
      float* lanes = t.transposed + (begin + i) * kBlock;
      for (int64_t r = 0; r < vectors_of(t.tokens) * kLanes; ++r)
        lanes[r] = t.block[r * kChunk + i];
    }
  }
}

// out[key, token] (+)= part · transposed rows from `first_dim` on.
void multiply_keys(const BackwardTile& t, const AttentionPart& part, int64_t first_dim,
                   float* out) {
  for_each_block(t, [&](int64_t b, int64_t keys, bool diagonal) {
    for (int64_t begin = 0; begin < part.dim; begin += kChunk) {
      const int64_t dims = clamp(part.dim - begin, 0, kChunk);
      load_block(part, t.block_rows[b], keys, begin, dims, t.block);
      for_each_step(diagonal, keys, [&](int64_t first, int64_t count) {
        multiply<Fma, Strides<kChunk, 1, kBlock>>(
            {.a = t.block + first * kChunk,
             .b = t.transposed + (first_dim + begin) * kBlock + first,
             .b_column = kLanes,
             .c = out + (b * kBlock + first) * kBlock + first,
             .c_row = kBlock,
             .c_column = kLanes,
             .k = dims,
             .accumulate = first_dim + begin > 0},
            count, vectors_of(t.tokens - first));
      });
    }
  });
}

// Keys that a token of the 16 from `first` on sees.
inline int64_t visible_keys(const BackwardTile& t, int64_t first) {
  return t.index * kBlock + clamp(first + kLanes, 0, t.tokens);
}

inline F32x16 total(const F32x16 (&sum)[4]) { return (sum[0] + sum[1]) + (sum[2] + sum[3]); }

// dot products -> e^(s - max), in place; returns the sums in four chains (key mod 4). Keys behind a
// token are
// 0.
F32x16 exp_scores(const BackwardTile& t, int64_t first) {
  float* scores = t.probability + first;
  const int64_t keys = visible_keys(t, first), own = t.index * kBlock + first;
  for (int64_t j = own + 1; j < keys; ++j) {
    for (int64_t i = 0; i < j - own; ++i) scores[j * kBlock + i] = -kInf;
  }
  const F32x16 scale = set(t.scale);
  F32x16 m = set(-kInf);
  for (int64_t j = 0; j < keys; ++j) {
    const F32x16 scaled = load(scores + j * kBlock) * scale;
    store(scaled, scores + j * kBlock);
    m = max(m, scaled);
  }
  F32x16 sum[4] = {zero(), zero(), zero(), zero()};
  for (int64_t j = 0; j < keys; ++j) {
    const F32x16 e = exp(load(scores + j * kBlock) - m);
    store(e, scores + j * kBlock);
    sum[j % 4] = sum[j % 4] + e;
  }
  return total(sum);
}

// probability -> P, dscore: dP -> dS.
void softmax_backward(const BackwardTile& t) {
  for (int64_t first = 0; first < t.tokens; first += kLanes) {
    const F32x16 norm = set(1.0f) / exp_scores(t, first), scale = set(t.scale);
    const int64_t keys = visible_keys(t, first);
    F32x16 sum[4] = {zero(), zero(), zero(), zero()};
    for (int64_t j = 0; j < keys; ++j) {
      float* p = t.probability + j * kBlock + first;
      store(load(p) * norm, p);
      sum[j % 4] = fma(load(p), load(t.dscore + j * kBlock + first), sum[j % 4]);
    }
    const F32x16 mean = total(sum);
    for (int64_t j = 0; j < keys; ++j) {
      float* ds = t.dscore + j * kBlock + first;
      store(load(t.probability + j * kBlock + first) * scale * (load(ds) - mean), ds);
    }
  }
}

// dq[token, column + i] = sum over keys of dS[key, token] * part[key, i].
void sum_keys(const BackwardTile& t, const AttentionPart& part, int64_t column) {
  for (int64_t begin = 0; begin < part.dim; begin += kChunk) {
    const int64_t dims = clamp(part.dim - begin, 0, kChunk);
    for_each_block(t, [&](int64_t b, int64_t keys, bool diagonal) {
      load_block(part, t.block_rows[b], keys, begin, dims, t.block);
      for_each_step(diagonal, keys, [&](int64_t first, int64_t count) {
        multiply<Fma, Strides<1, kBlock, kChunk>>(
            {.a = t.dscore + (b * kBlock + first) * kBlock + first,
             .b = t.block + first * kChunk,
             .b_column = kLanes,
             .c = t.dq + first * t.dq_stride + column + begin,
             .c_row = t.dq_stride,
             .c_column = kLanes,
             .k = count,
             .accumulate = b + first > 0},
            t.tokens - first, vectors_of(dims));
      });
    });
  }
}

}  // namespace

void attention_backward_tile(const BackwardTile& t) {
  transpose(t, t.q);
  multiply_keys(t, t.key, 0, t.probability);
  multiply_keys(t, t.key_rope, t.key.dim, t.probability);
  transpose(t, t.dout);
  multiply_keys(t, t.value, 0, t.dscore);
  softmax_backward(t);
  sum_keys(t, t.key, 0);
  sum_keys(t, t.key_rope, vectors_of(t.key.dim) * kLanes);
}

void attention_backward_sum(const BackwardSum& s) {
  for (int64_t begin = 0; begin < s.rows.dim; begin += kChunk) {
    const int64_t dims = clamp(s.rows.dim - begin, 0, kChunk);
    load_block(s.rows, 0, s.tokens, begin, dims, s.block);
    for_each_step(s.diagonal, s.keys, [&](int64_t first, int64_t count) {
      multiply<Fma, Strides<kBlock, 1, kChunk>>({.a = s.weights + first * kBlock + first,
                                                 .b = s.block + first * kChunk,
                                                 .b_column = kLanes,
                                                 .c = s.sums + first * s.stride + begin,
                                                 .c_row = s.stride,
                                                 .c_column = kLanes,
                                                 .k = s.tokens - first,
                                                 .accumulate = true},
                                                count, vectors_of(dims));
    });
  }
}

}  // namespace fathom::FATHOM_SIMD_TARGET
