// What attention.simd.cc and attention_backward.simd.cc share: the micro-kernel of all their matrix
// products, C[m, n] += A[m, k] · B[k, n] with A broadcast and B, C in vectors, and the loading of
// cached rows. Every element is one chain of Op in increasing k.
#pragma once

#include "kernels/attention_tile.h"
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

constexpr int64_t kBlock = kTileBlock, kChunk = kTileBlock;  // keys, dims
constexpr float kInf = __builtin_inff();

// The micro-kernel holds M x N vectors of C: enough to hide the FMA's latency, few enough to stay
// in registers.
#if defined(FATHOM_SIMD_IS_avx512)
constexpr int kAccumulators = 16, kVectors = 4;
#elif defined(FATHOM_SIMD_IS_avx2)
constexpr int kAccumulators = 6, kVectors = 1;
#else
constexpr int kAccumulators = 2, kVectors = 1;
#endif

// One step of k: elements are f32, or pairs of bf16.
struct Fma {
  static F32x16 add(F32x16 a, F32x16 b, F32x16 c) { return fma(a, b, c); }
};
#if defined(FATHOM_SIMD_IS_avx512)
struct DotBf16 {
  static F32x16 add(F32x16 a, F32x16 b, F32x16 c) {
    return {
        _mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
};
#endif

// kBeside floats, over and over.
template <int kBeside>
inline F32x16 spread(const float* p) {
  static_assert(kBeside == 1 || kBeside == 2 || kBeside == 4);
#if defined(FATHOM_SIMD_IS_avx512)
  if constexpr (kBeside == 4) return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))};
  if constexpr (kBeside == 2) {
    double two;
    __builtin_memcpy(&two, p, sizeof two);
    return {_mm512_castpd_ps(_mm512_set1_pd(two))};
  }
#elif defined(FATHOM_SIMD_IS_avx2)
  if constexpr (kBeside == 4) {
    const __m256 four = _mm256_set_m128(_mm_loadu_ps(p), _mm_loadu_ps(p));
    return {four, four};
  }
  if constexpr (kBeside == 2) {
    double two;
    __builtin_memcpy(&two, p, sizeof two);
    return {_mm256_castpd_ps(_mm256_set1_pd(two)), _mm256_castpd_ps(_mm256_set1_pd(two))};
  }
#else
  if constexpr (kBeside > 1) {
    F32x16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = p[i % kBeside];
    return r;
  }
#endif
  return set(*p);
}

// Without it the compiler makes an address for each element.
template <class T>
inline void keep_in_register(T*& p) {
#if defined(__x86_64__)
  asm("" : "+r"(p));
#endif
}

inline int64_t clamp(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

inline int64_t distance(const void* from, const void* to) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(from));
}

// A[m, k] = a[m * kARow + k * kAStep]; row k of B begins at b + k * kBStep. Were they known only at
// run time, the compiler would keep an address for each row, more than there are registers.
template <int64_t ARow, int64_t AStep, int64_t BStep>
struct Strides {
  static constexpr int64_t kARow = ARow, kAStep = AStep, kBStep = BStep;
  static constexpr int kBeside = 1;
};
// The odd elements of A's pairs, which come first, stand in vectors before the even ones; rows of A
// are Beside keys that alternate.
template <int Beside>
struct PairsApart : Strides<Beside * kChunk, Beside, kLanes> {
  static constexpr int kBeside = Beside;
};
// A is read in the cache, rows Product::a_row apart.
using InPlace = Strides<0, 1, kLanes>;

// C[m, n] (+)= sum over k of A[m, k] * B[k, n], vector v of a row of B or C being *_column further
// than vector v - 1.
struct Product {
  const float* a;
  const float* b;
  int64_t b_column;
  float* c;
  int64_t c_row, c_column;
  int64_t k;
  bool accumulate;
  // InPlace and PairsApart: rows in the cache that are fetched meanwhile: those read next, of which
  // InPlace takes the first only behind A's `rows`, and those of values. PairsApart: null for none.
  int64_t a_row = 0, rows = 0;
  const float* next_a = nullptr;
  const float* values = nullptr;
};

// f(sum, its place) for each vector of a tile of C.
template <int M, int N, class F>
[[gnu::always_inline]] inline void for_each_sum(F32x16 (&c)[M][N], float* out, int64_t row_stride,
                                                int64_t column_stride, F f) {
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m, out += row_stride) {
    keep_in_register(out);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) f(c[m][n], out + n * column_stride);
  }
}

template <class Op, class S, int M, int N>
[[gnu::noinline]] void multiply_tile(const Product& p, int64_t row, int64_t column) {
  const float* b = p.b + column * p.b_column;
  const int64_t b_column = p.b_column;
  float* const out = p.c + row * p.c_row + column * p.c_column;
  F32x16 c[M][N];
  if (p.accumulate) {
    for_each_sum<M, N>(c, out, p.c_row, p.c_column, [](F32x16& sum, float* at) { sum = load(at); });
  } else {
    for_each_sum<M, N>(c, out, p.c_row, p.c_column, [](F32x16& sum, float*) { sum = zero(); });
  }
  // a_of(m) points to A[m, k].
  const auto step = [&](auto a_of, const float* b_at) __attribute__((always_inline)) {
    F32x16 b_row[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) b_row[n] = load(b_at + n * b_column);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const F32x16 x = spread<S::kBeside>(a_of(m));
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) c[m][n] = Op::add(x, b_row[n], c[m][n]);
    }
  };
  if constexpr (__is_same(S, PairsApart<S::kBeside>)) {
    constexpr int64_t kPairs = kLanes / S::kBeside;  // in a vector
    const float* a = p.a + row * S::kARow;
    // As many keys as this tile has, of those that are read next.
    int64_t to_fetch = p.next_a != nullptr ? M * S::kBeside : 0;
    const auto row_bytes = static_cast<uintptr_t>(p.a_row) * sizeof *p.next_a;
    auto next = reinterpret_cast<uintptr_t>(p.next_a) +
                static_cast<uintptr_t>(row * S::kBeside) * row_bytes;
    const int64_t to_values = p.values != nullptr ? distance(p.next_a, p.values) : 0;
    const auto fetch_row = [](uintptr_t at) __attribute__((always_inline)) {
      __builtin_prefetch(reinterpret_cast<const char*>(at), 0, 2);
      __builtin_prefetch(reinterpret_cast<const char*>(at + 64), 0, 2);
    };
    const auto pair = [&](int64_t i) __attribute__((always_inline)) {
      const float* const at = a + i * S::kAStep;
      step(
          [&](int m) __attribute__((always_inline)) { return at + m * S::kARow; }, b);
      step(
          [&](int m) __attribute__((always_inline)) { return at + m * S::kARow + kLanes; },
          b + S::kBStep);
      b += 2 * S::kBStep;
    };
    for (int64_t k = p.k; k > 0; k -= 2 * kPairs, a += 2 * kLanes) {
      const int64_t pairs = clamp(k / 2, 0, kPairs);
      int64_t i = 0;
      for (; i + 2 <= pairs; i += 2) {
#pragma GCC unroll 4
        for (int key = 0; key < S::kBeside && to_fetch > 0; ++key, --to_fetch, next += row_bytes) {
          fetch_row(next);
          if (to_values != 0) fetch_row(next + static_cast<uintptr_t>(to_values));
        }
        pair(i);
        pair(i + 1);
      }
      if (i < pairs) pair(i);
    }
  } else if constexpr (S::kARow != 0) {
    const float* a = p.a + row * S::kARow;
#pragma GCC unroll 4
    for (int64_t k = p.k; k > 0; --k, a += S::kAStep, b += S::kBStep)
      step(
          [&](int m) __attribute__((always_inline)) { return a + m * S::kARow; }, b);
  } else {
    const float* a = p.a + row * p.a_row;
    const int64_t to_next = distance(a, row + M < p.rows ? a + M * p.a_row : p.next_a),
                  to_values = distance(a, p.values != nullptr ? p.values + row * p.a_row : a);
    const float* rows[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) rows[m] = a + m * p.a_row;
    int64_t k = p.k;
    for (; k >= 16; k -= 16, b += 16 * kLanes) {
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        keep_in_register(rows[m]);
        const char* line = reinterpret_cast<const char*>(rows[m]);
        __builtin_prefetch(line + to_next, 0, 2);
        __builtin_prefetch(line + to_values, 0, 2);
      }
#pragma GCC unroll 16
      for (int64_t i = 0; i < 16; ++i)
        step(
            [&](int m) __attribute__((always_inline)) { return rows[m] + i; }, b + i * kLanes);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) rows[m] += 16;
    }
    for (int64_t i = 0; i < k; ++i)
      step(
          [&](int m) __attribute__((always_inline)) { return rows[m] + i; }, b + i * kLanes);
  }
  for_each_sum<M, N>(c, out, p.c_row, p.c_column, [](F32x16 sum, float* at) { store(sum, at); });
}

template <class Op, class S, int M, int N>
void multiply_tile_of(const Product& p, int64_t row, int64_t rows, int64_t column) {
  if constexpr (M > 1) {
    if (rows < M) return multiply_tile_of<Op, S, M - 1, N>(p, row, rows, column);
  }
  multiply_tile<Op, S, M, N>(p, row, column);
}

// Rows from `row` on, M at a time, then the remainder: in halves of M; or, where M is 6
// (AVX2), the last 7 to 11 rows in two about equal tiles, as a single row has to wait for each of
// its own sums.
template <class Op, class S, int M, int N>
void multiply_rows(const Product& p, int64_t row, int64_t rows, int64_t column) {
  if constexpr (M == 6) {
    while (rows > 0) {
      const int64_t count = rows <= M ? rows : rows < 2 * M ? (rows + 1) / 2 : M;
      multiply_tile_of<Op, S, M, N>(p, row, count, column);
      row += count;
      rows -= count;
    }
  } else {
    for (; rows >= M; rows -= M, row += M) multiply_tile<Op, S, M, N>(p, row, column);
    if constexpr (M > 1) {
      if (rows > 0) multiply_rows<Op, S, M / 2, N>(p, row, rows, column);
    }
  }
}

template <class Op, class S, int N = kVectors>
void multiply(const Product& p, int64_t rows, int64_t vectors, int64_t column = 0) {
  for (; vectors >= N; vectors -= N, column += N)
    multiply_rows<Op, S, S::kARow == 0 && N == 1 ? 8 : kAccumulators / N, N>(p, 0, rows, column);
  if constexpr (N > 1) {
    if (vectors > 0) multiply<Op, S, N / 2>(p, rows, vectors, column);
  }
}

inline F32x16 widen(const float* x) { return load(x); }
inline F32x16 widen(const uint16_t* x) { return load_bf16(x); }
inline F32x16 widen_n(const float* x, int64_t n) { return load_n(x, n); }
inline F32x16 widen_n(const uint16_t* x, int64_t n) {
  uint16_t lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = x[i];
  return load_bf16(lanes);
}

// V whole vectors and `rest` elements of each row.
template <int V, class T>
void load_rows(const T* x, int64_t stride, int64_t count, int64_t rest, float* out,
               int64_t out_stride) {
  for (int64_t j = 0; j < count; ++j, x += stride, out += out_stride) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) store(widen(x + v * kLanes), out + v * kLanes);
    if (rest > 0) store(widen_n(x + V * kLanes, rest), out + V * kLanes);
  }
}

template <class T>
void load_rows_of(const T* x, int64_t stride, int64_t count, int64_t dims, float* out,
                  int64_t out_stride) {
  static_assert(kChunk == 4 * kLanes);
  const int64_t rest = dims % kLanes;
  switch (dims / kLanes) {
    case 4:
      return load_rows<4>(x, stride, count, rest, out, out_stride);
    case 3:
      return load_rows<3>(x, stride, count, rest, out, out_stride);
    case 2:
      return load_rows<2>(x, stride, count, rest, out, out_stride);
    case 1:
      return load_rows<1>(x, stride, count, rest, out, out_stride);
    default:
      return load_rows<0>(x, stride, count, rest, out, out_stride);
  }
}

// out[j] (kChunk floats apart) = dims [begin, begin + dims) of row + j as f32, followed by zeros up
// to a whole vector.
void load_block(const AttentionPart& part, int64_t row, int64_t count, int64_t begin, int64_t dims,
                float* out) {
  const int64_t at = row * part.row_stride + begin, stride = part.row_stride;
  if (part.is_bf16) {
    load_rows_of(static_cast<const uint16_t*>(part.data) + at, stride, count, dims, out, kChunk);
  } else {
    load_rows_of(static_cast<const float*>(part.data) + at, stride, count, dims, out, kChunk);
  }
}

}  // namespace
}  // namespace fathom::FATHOM_SIMD_TARGET
