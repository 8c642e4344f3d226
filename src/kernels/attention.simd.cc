// Two small matrix products around a softmax, both by one micro-kernel C[m, n] += A[m, k] · B[k, n] with A broadcast and B, C
// in vectors: scores[key, row] = K · Qᵀ, so that a lane is a query row and the softmax needs no work across lanes;
// then out[row, dim] = Pᵀ · V. Every element is one chain of FMAs, over dims or over keys, in increasing order.
#include "kernels/attention_tile.h"
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

constexpr int64_t kBlock = kTileBlock, kChunk = kTileBlock;  // keys, dims
constexpr float kInf = __builtin_inff();

// Accumulators of the micro-kernel: enough to hide the FMA's latency, few enough to stay in registers.
#if defined(FATHOM_SIMD_IS_avx512)
constexpr int kAccumulators = 16, kVectors = 2;
#elif defined(FATHOM_SIMD_IS_avx2)
constexpr int kAccumulators = 6, kVectors = 1;
#else
constexpr int kAccumulators = 2, kVectors = 1;
#endif

struct Product {
  const float* a;
  int64_t a_row, a_step;  // A[m, k] = a[m * a_row + k * a_step]
  const float* b;
  int64_t b_step;  // B[k, n] = b[k * b_step + n]
  float* c;
  int64_t c_row;
  int64_t k;
};

template <int M, int N>
void multiply_tile(const Product& p) {
  F32x16 c[M][N];
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) c[m][n] = load(p.c + m * p.c_row + n * kLanes);
  }
  const float *a = p.a, *b = p.b;
  for (int64_t k = 0; k < p.k; ++k, a += p.a_step, b += p.b_step) {
    F32x16 row[N];
    for (int n = 0; n < N; ++n) row[n] = load(b + n * kLanes);
    for (int m = 0; m < M; ++m) {
      const F32x16 x = set(a[m * p.a_row]);
      for (int n = 0; n < N; ++n) c[m][n] = fma(x, row[n], c[m][n]);
    }
  }
  for (int m = 0; m < M; ++m) {
    for (int n = 0; n < N; ++n) store(c[m][n], p.c + m * p.c_row + n * kLanes);
  }
}

// rows x (N vectors), M rows at a time and then the remainder.
template <int M, int N>
void multiply_rows(Product p, int64_t rows) {
  for (; rows >= M; rows -= M) {
    multiply_tile<M, N>(p);
    p.a += M * p.a_row;
    p.c += M * p.c_row;
  }
  if constexpr (M > 1) multiply_rows<M / 2, N>(p, rows);
}

void multiply(Product p, int64_t rows, int64_t vectors) {
  for (; vectors >= kVectors; vectors -= kVectors) {
    multiply_rows<kAccumulators / kVectors, kVectors>(p, rows);
    p.b += kVectors * kLanes;
    p.c += kVectors * kLanes;
  }
  if (vectors > 0) multiply_rows<kAccumulators, 1>(p, rows);
}

// out[j, 0 : dims] of kChunk columns = keys j = 0 .. count-1 of a block, dims [begin, begin + dims), zeros up to 16.
void load_block(const AttentionPart& part, int64_t row, int64_t count, int64_t begin, int64_t dims, float* out) {
  const int64_t whole = dims / kLanes * kLanes, rest = dims - whole;
  for (int64_t j = 0; j < count; ++j, out += kChunk) {
    const int64_t at = (row + j) * part.row_stride + begin;
    if (part.is_bf16) {
      const uint16_t* x = static_cast<const uint16_t*>(part.data) + at;
      for (int64_t i = 0; i < whole; i += kLanes) store(load_bf16(x + i), out + i);
      if (rest > 0) store(zero(), out + whole);
      for (int64_t i = whole; i < dims; ++i) {
        out[i] = __builtin_bit_cast(float, static_cast<uint32_t>(x[i]) << 16);
      }
    } else {
      const float* x = static_cast<const float*>(part.data) + at;
      for (int64_t i = 0; i < whole; i += kLanes) store(load(x + i), out + i);
      if (rest > 0) store(load_n(x + whole, rest), out + whole);
    }
  }
}

inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }
inline int64_t round_up(int64_t x) { return (x + kLanes - 1) / kLanes * kLanes; }

// Keys of the segment that row r may read.
inline int64_t visible_keys(const AttentionTile& t, int64_t r) { return clamp(t.visible + r / t.heads, 0, kTileSegment); }

// scores[j, r] += key j · q r over one part, whose first dim is q's row `q_row`.
void add_scores(const AttentionTile& t, const AttentionPart& part, int64_t q_row, int64_t keys) {
  for (int64_t j = 0; j < keys; j += kBlock) {
    const int64_t count = clamp(keys - j, 0, kBlock);
    for (int64_t begin = 0; begin < part.dim; begin += kChunk) {
      const int64_t dims = clamp(part.dim - begin, 0, kChunk);
      load_block(part, t.block_rows[j / kBlock], count, begin, dims, t.block);
      multiply({t.block, kChunk, 1, t.q + (q_row + begin) * t.lanes, t.lanes, t.scores + j * t.lanes, t.lanes, dims},
               count, t.lanes / kLanes);
    }
  }
}

// scores -> e^(scale * score - max); keys a row must not see become -inf first and so exactly 0. The sum runs in four chains
// (key mod 4), which zeros behind a row's last key do not change.
void softmax_scores(const AttentionTile& t, int64_t keys) {
  const F32x16 scale = set(t.scale);
  for (int64_t r = 0; r < t.lanes; r += kLanes) {
    for (int64_t i = r; i < r + kLanes && i < t.rows; ++i) {
      for (int64_t j = visible_keys(t, i); j < keys; ++j) t.scores[j * t.lanes + i] = -kInf;
    }
    F32x16 m = set(-kInf);
    for (int64_t j = 0; j < keys; ++j) {
      float* s = t.scores + j * t.lanes + r;
      const F32x16 scaled = load(s) * scale;
      store(scaled, s);
      m = max(m, scaled);
    }
    F32x16 sum[4] = {zero(), zero(), zero(), zero()};
    for (int64_t j = 0; j < keys; ++j) {
      float* s = t.scores + j * t.lanes + r;
      const F32x16 p = exp(load(s) - m);
      store(p, s);
      sum[j % 4] = sum[j % 4] + p;
    }
    store(m, t.max + r);
    store((sum[0] + sum[1]) + (sum[2] + sum[3]), t.sum + r);
  }
}

// out += Pᵀ · V. Rows go together over the keys that the first of them sees, the others then add theirs alone:
// a row touches no value it must not see, not even with weight 0 (0 * NaN is NaN).
void add_values(const AttentionTile& t, int64_t keys) {
  constexpr int64_t kGroup = kAccumulators / kVectors;
  for (int64_t j = 0; j < keys; j += kBlock) {
    const int64_t count = clamp(keys - j, 0, kBlock);
    for (int64_t begin = 0; begin < t.value.dim; begin += kChunk) {
      const int64_t dims = clamp(t.value.dim - begin, 0, kChunk), vectors = round_up(dims) / kLanes;
      load_block(t.value, t.block_rows[j / kBlock], count, begin, dims, t.block);
      const auto add = [&](int64_t row, int64_t rows, int64_t from, int64_t to) {
        if (from >= to) return;
        multiply({t.scores + (j + from) * t.lanes + row, 1, t.lanes, t.block + from * kChunk, kChunk,
                  t.out + row * t.out_stride + begin, t.out_stride, to - from}, rows, vectors);
      };
      for (int64_t row = 0; row < t.rows; row += kGroup) {
        const int64_t rows = clamp(t.rows - row, 0, kGroup);
        const int64_t common = clamp(visible_keys(t, row) - j, 0, count);
        add(row, rows, 0, common);
        for (int64_t r = row + 1; r < row + rows; ++r) add(r, 1, common, clamp(visible_keys(t, r) - j, 0, count));
      }
    }
  }
}

}  // namespace

void attention_tile(const AttentionTile& t) {
  const int64_t keys = visible_keys(t, t.rows - 1);
  for (int64_t i = 0; i < keys * t.lanes; i += kLanes) store(zero(), t.scores + i);
  for (int64_t i = 0; i < t.rows * t.out_stride; i += kLanes) store(zero(), t.out + i);
  add_scores(t, t.key, 0, keys);
  add_scores(t, t.key_rope, t.key.dim, keys);
  softmax_scores(t, keys);
  add_values(t, keys);
}

// (max, sum, out) of a row merged with those of its next segment.
void attention_merge(const float* out_next, float max_next, float sum_next, int64_t n, float* out, float* row_max,
                     float* row_sum) {
  const F32x16 before = set(*row_max), next = set(max_next), both = max(before, next);
  const F32x16 keep = exp(before - both), weight = exp(next - both);
  float lane[kLanes];
  store(both, lane);
  *row_max = lane[0];
  store(fma(weight, set(sum_next), keep * set(*row_sum)), lane);
  *row_sum = lane[0];
  for (int64_t i = 0; i < n; i += kLanes) store(fma(weight, load(out_next + i), keep * load(out + i)), out + i);
}

void attention_finish(const float* sums, float sum, int64_t n, float* out) {
  const F32x16 divisor = set(sum);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(load(sums + i) / divisor, out + i);
  store_n(load_n(sums + i, n - i) / divisor, out + i, n - i);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
