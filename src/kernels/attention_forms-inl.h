// What the forms of attention's arithmetic (attention_tile.h) differ in: how q, a block of keys and
// a block of values become the operands of the micro-kernel.
//
// A pair of bf16 enters a sum as fma(even, fma(odd, sum)), subnormals read and written as zero:
// that is vdpbf16ps. In native form an element is a pair, and keys are read where they lie. In
// split form the same bits come from the f32 micro-kernel, which meets the odd of each pair first.
#pragma once

#include "kernels/attention-inl.h"
#include "kernels/transpose-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// bf16-inl.h's rounding for vectors in registers, kept as f32; of NaN it makes one quiet NaN.
#if defined(FATHOM_SIMD_IS_avx512)
inline F32x16 round_bf16(F32x16 a) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i tie = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), tie);
  const __m512i upper = _mm512_and_si512(sum, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
  return {_mm512_mask_mov_ps(_mm512_castsi512_ps(upper), _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q),
                             _mm512_set1_ps(__builtin_nanf("")))};
}
// 16 pairs of bf16; of pairs the even and the odd, widened.
inline F32x16 load_pairs(const uint16_t* x) { return {_mm512_castsi512_ps(_mm512_loadu_si512(x))}; }
inline F32x16 even_of(F32x16 a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 16))};
}
inline F32x16 odd_of(F32x16 a) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), upper))};
}
// Two rounded vectors as one of pairs.
inline F32x16 pairs_of(F32x16 even, F32x16 odd) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even.v), 16);
  return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_castps_si512(odd.v)))};
}
#elif defined(FATHOM_SIMD_IS_avx2)
inline __m256 round_bf16_8(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i tie = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), tie);
  const __m256i upper = _mm256_and_si256(sum, _mm256_set1_epi32(static_cast<int>(0xffff0000)));
  return _mm256_blendv_ps(_mm256_castsi256_ps(upper), _mm256_set1_ps(__builtin_nanf("")),
                          _mm256_cmp_ps(a, a, _CMP_UNORD_Q));
}
inline F32x16 round_bf16(F32x16 a) { return {round_bf16_8(a.lo), round_bf16_8(a.hi)}; }
inline F32x16 load_pairs(const uint16_t* x) {
  const auto* const p = reinterpret_cast<const __m256i*>(x);
  return {_mm256_castsi256_ps(_mm256_loadu_si256(p)),
          _mm256_castsi256_ps(_mm256_loadu_si256(p + 1))};
}
inline __m256 even_of_8(__m256 a) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 16));
}
inline __m256 odd_of_8(__m256 a) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(a), upper));
}
inline F32x16 even_of(F32x16 a) { return {even_of_8(a.lo), even_of_8(a.hi)}; }
inline F32x16 odd_of(F32x16 a) { return {odd_of_8(a.lo), odd_of_8(a.hi)}; }
#else
inline F32x16 round_bf16(F32x16 a) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, a.v[i]);
    const uint32_t upper = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    r.v[i] = a.v[i] != a.v[i] ? __builtin_nanf("") : __builtin_bit_cast(float, upper);
  }
  return r;
}
inline F32x16 load_pairs(const uint16_t* x) {
  F32x16 r;
  __builtin_memcpy(&r, x, sizeof r);
  return r;
}
inline F32x16 even_of(F32x16 a) {
  F32x16 r;
  for (int i = 0; i < 16; ++i)
    r.v[i] = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, a.v[i]) << 16);
  return r;
}
inline F32x16 odd_of(F32x16 a) {
  F32x16 r;
  for (int i = 0; i < 16; ++i)
    r.v[i] = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, a.v[i]) & 0xffff0000u);
  return r;
}
#endif

inline int64_t even_ceil(int64_t n) { return (n + 1) & -2; }

// Of Pᵀ · V.
using ValueStrides = Strides<1, kLanes, kChunk>;

struct F32Form {
  using Op = Fma;
  template <int kBeside>
  using KeyStrides = Strides<kChunk, 1, kLanes>;
  static constexpr bool kPairs = false;
  static constexpr int64_t kValueKeys = kBlock;  // that add_values takes at a time
  // Elements that n dims or keys take.
  static int64_t steps(int64_t n) { return n; }
  // The vectors of 2 dims, or of 2 keys, to their places.
  static void put(F32x16 even, F32x16 odd, float* out) {
    store(even, out);
    store(odd, out + kLanes);
  }
  static F32x16 rounded(F32x16 a) { return a; }
  static bool reads_in_place(const AttentionPart&) { return false; }
  template <int kBeside>
  static void load_keys(const AttentionPart& part, int64_t row, int64_t count, int64_t begin,
                        int64_t dims, float* out) {
    load_block(part, row, count, begin, dims, out);
  }
  static void load_values(const AttentionPart& part, int64_t row, int64_t count, int64_t begin,
                          int64_t dims, float* out) {
    load_block(part, row, count, begin, dims, out);
  }
};

struct SplitForm : F32Form {
  static constexpr bool kPairs = true;
  static int64_t steps(int64_t n) { return even_ceil(n); }
  static void put(F32x16 even, F32x16 odd, float* out) { F32Form::put(odd, even, out); }
  static F32x16 rounded(F32x16 a) { return round_bf16(a); }
  template <int kBeside>
  using KeyStrides = PairsApart<kBeside>;
  // Missing keys are zeros.
  template <int kBeside>
  static void load_keys(const AttentionPart& part, int64_t row, int64_t count, int64_t begin,
                        int64_t dims, float* out) {
    const auto* x = static_cast<const uint16_t*>(part.data) + row * part.row_stride + begin;
    for (int64_t j = 0; j < count; j += kBeside, x += kBeside * part.row_stride) {
      for (int64_t i = 0; i < dims; i += 2 * kLanes) {
        const auto of_key = [&](int key) __attribute__((always_inline)) {
          if (j + key >= count) return zero();
          const uint16_t* const at = x + key * part.row_stride + i;
          return i + 2 * kLanes <= dims ? load_pairs(at) : load_pairs_n(at, dims - i);
        };
        const auto put = [&](F32x16 pairs) __attribute__((always_inline)) {
          store(odd_of(pairs), out);
          store(even_of(pairs), out + kLanes);
          out += 2 * kLanes;
        };
        if constexpr (kBeside == 1) {
          put(of_key(0));
        } else if constexpr (kBeside == 2) {
          const F32x16 a = of_key(0), b = of_key(1);
          put(interleave_low(a, b));
          put(interleave_high(a, b));
        } else {
          const F32x16 a = of_key(0), b = of_key(1), c = of_key(2), d = of_key(3);
          const F32x16 ac_low = interleave_low(a, c), bd_low = interleave_low(b, d),
                       ac_high = interleave_high(a, c), bd_high = interleave_high(b, d);
          put(interleave_low(ac_low, bd_low));
          put(interleave_high(ac_low, bd_low));
          put(interleave_low(ac_high, bd_high));
          put(interleave_high(ac_high, bd_high));
        }
      }
      out += kBeside * (kChunk - (dims + 2 * kLanes - 1) / (2 * kLanes) * 2 * kLanes);
    }
  }
  // The first n bf16, the rest zeros.
  static F32x16 load_pairs_n(const uint16_t* x, int64_t n) {
    float lanes[kLanes] = {};
    __builtin_memcpy(lanes, x, static_cast<size_t>(n) * sizeof *x);
    return load(lanes);
  }
  // Behind an odd number of keys follows a key of zeros.
  static void load_values(const AttentionPart& part, int64_t row, int64_t count, int64_t begin,
                          int64_t dims, float* out) {
    const auto* data = static_cast<const uint16_t*>(part.data) + row * part.row_stride + begin;
    load_rows_of(data, 2 * part.row_stride, (count + 1) / 2, dims, out + kChunk, 2 * kChunk);
    load_rows_of(data + part.row_stride, 2 * part.row_stride, count / 2, dims, out, 2 * kChunk);
    if (count % 2 == 0) return;
    for (int64_t i = 0; i < kChunk; i += kLanes) store(zero(), out + (count - 1) * kChunk + i);
  }
  // The last key of an odd number, without the one behind it.
  static void multiply_last(Product p, int64_t rows, int64_t vectors) {
    p.a += ValueStrides::kAStep;
    p.b += ValueStrides::kBStep;
    multiply<Op, ValueStrides>(p, rows, vectors);
  }
};

#if defined(FATHOM_SIMD_IS_avx512)
struct NativeForm {
  using Op = DotBf16;
  template <int kBeside>
  using KeyStrides = Strides<kChunk / 2, 1, kLanes>;
  static constexpr bool kPairs = true;
  static constexpr int64_t kValueKeys = 2 * kBlock;
  static int64_t steps(int64_t n) { return (n + 1) / 2; }
  static void put(F32x16 even, F32x16 odd, float* out) { store(pairs_of(even, odd), out); }
  static F32x16 rounded(F32x16 a) { return round_bf16(a); }
  static bool reads_in_place(const AttentionPart& part) {
    return part.dim % 2 == 0 && part.row_stride % 2 == 0 &&
           reinterpret_cast<uintptr_t>(part.data) % sizeof(float) == 0;
  }
  template <int kBeside>
  static void load_keys(const AttentionPart& part, int64_t row, int64_t count, int64_t begin,
                        int64_t dims, float* out) {
    const auto* x = static_cast<const uint16_t*>(part.data) + row * part.row_stride + begin;
    for (int64_t j = 0; j < count; ++j, x += part.row_stride, out += kChunk / 2) {
      __builtin_memset(out, 0, kChunk / 2 * sizeof(float));
      __builtin_memcpy(out, x, static_cast<size_t>(dims) * sizeof *x);
    }
  }
  // Element i of row p is dim i of keys 2 p and 2 p + 1; behind an odd number of keys follows a key
  // of zeros.
  static void load_values(const AttentionPart& part, int64_t row, int64_t count, int64_t begin,
                          int64_t dims, float* out) {
    const __m512i low = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    const auto* x = static_cast<const uint16_t*>(part.data) + row * part.row_stride + begin;
    for (int64_t j = 0; j < count; j += 2, x += 2 * part.row_stride, out += kChunk) {
      for (int64_t i = 0; i < dims; i += 2 * kLanes) {
        const int64_t n = clamp(dims - i, 0, 2 * kLanes);
        const auto mask = static_cast<__mmask32>((uint64_t{1} << n) - 1);
        const __m512i even = _mm512_maskz_loadu_epi16(mask, x + i);
        const __m512i odd =
            _mm512_maskz_loadu_epi16(j + 1 < count ? mask : 0, x + part.row_stride + i);
        _mm512_storeu_si512(out + i, _mm512_permutex2var_epi16(even, low, odd));
        _mm512_storeu_si512(out + i + kLanes, _mm512_permutex2var_epi16(even, high, odd));
      }
    }
  }
  static void multiply_last(Product p, int64_t rows, int64_t vectors) {
    float last[kChunk];
    for (int64_t i = 0; i < vectors * kLanes; ++i)
      last[i] = __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, p.b[i]) & 0xffff);
    p.b = last;
    multiply<Op, ValueStrides>(p, rows, vectors);
  }
};
#endif

// Keys of the segment that row r may read; rows behind the last count as the last.
inline int64_t visible_keys(const AttentionTile& t, int64_t r) {
  return clamp(t.visible + (r < t.rows ? r : t.rows - 1) / t.heads, 0, kTileSegment);
}

// Lane i = a[i ^ 1], or a[i ^ 2].
#if defined(FATHOM_SIMD_IS_avx512)
inline F32x16 swap_1(F32x16 a) { return {_mm512_permute_ps(a.v, 0xb1)}; }
inline F32x16 swap_2(F32x16 a) { return {_mm512_permute_ps(a.v, 0x4e)}; }
#elif defined(FATHOM_SIMD_IS_avx2)
inline F32x16 swap_1(F32x16 a) {
  return {_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)};
}
inline F32x16 swap_2(F32x16 a) {
  return {_mm256_permute_ps(a.lo, 0x4e), _mm256_permute_ps(a.hi, 0x4e)};
}
#else
inline F32x16 swap_lanes(F32x16 a, int bit) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[i ^ bit];
  return r;
}
inline F32x16 swap_1(F32x16 a) { return swap_lanes(a, 1); }
inline F32x16 swap_2(F32x16 a) { return swap_lanes(a, 2); }
#endif

// Scores of keys side by side fill the end of the segment's buffer. Weights, a vector for each key,
// fill it from its beginning and overtake no score that is not read yet: those of vector v end at
// (v + 1) kBeside, and vector v + 1 lies at 256 - 256 / kBeside + v + 1 or, of 256, behind them.
template <int kBeside>
float* scores_of(const AttentionTile& t, int64_t row) {
  return t.scores + (row / kLanes * kTileSegment + kTileSegment - kTileSegment / kBeside) * kLanes;
}

// scores -> e^(scale * score - max) as elements; keys a row must not see become -inf first and so
// exactly 0. The sum runs in four chains (key mod 4), which zeros behind a row's last key do not
// change.
template <class Form, int kBeside = 1>
void softmax_scores(const AttentionTile& t) {
  const F32x16 scale = set(t.scale);
  for (int64_t r = 0; r < t.lanes; r += kLanes) {
    float* const scores = scores_of<kBeside>(t, r);
    float* const weights = t.scores + r * kTileSegment;
    const int64_t keys = visible_keys(t, r + kLanes - 1), vectors = (keys + kBeside - 1) / kBeside;
    for (int64_t i = 0; i < kLanes / kBeside; ++i) {
      for (int64_t j = visible_keys(t, r + i); j < vectors * kBeside; ++j)
        scores[j / kBeside * kLanes + i * kBeside + j % kBeside] = -kInf;
    }
    F32x16 m = set(-kInf);
    for (int64_t v = 0; v < vectors; ++v) {
      const F32x16 scaled = load(scores + v * kLanes) * scale;
      store(scaled, scores + v * kLanes);
      m = max(m, scaled);
    }
    if constexpr (kBeside >= 2) m = max(m, swap_1(m));
    if constexpr (kBeside == 4) m = max(m, swap_2(m));
    F32x16 sum[4] = {zero(), zero(), zero(), zero()};
    const auto weight = [&](int64_t v) {
      return Form::rounded(exp(load(scores + v * kLanes) - m));
    };
    // Keys j and j + 1, of which the last may be missing.
    const auto put = [&](int64_t j, F32x16 even, F32x16 odd) {
      sum[j % 4] = sum[j % 4] + even;
      sum[j % 4 + 1] = sum[j % 4 + 1] + odd;
      Form::put(even, odd, weights + Form::steps(j) * kLanes);
    };
    for (int64_t v = 0; v < vectors; ++v) {
      const int64_t j = v * kBeside;
      const F32x16 w = weight(v);
      if constexpr (kBeside == 1) {
        ++v;
        put(j, w, v < vectors ? weight(v) : zero());
      } else if constexpr (kBeside == 2) {
        put(j, even_lanes(w), odd_lanes(w));
      } else {
        const F32x16 even = even_lanes(w), odd = odd_lanes(w);  // keys 0 2 0 2 .., 1 3 1 3 ..
        put(j, even_lanes(even), even_lanes(odd));
        put(j + 2, odd_lanes(even), odd_lanes(odd));
      }
    }
    if constexpr (kBeside >= 2) m = even_lanes(m);
    if constexpr (kBeside == 4) m = even_lanes(m);
    store(m, t.max + r);
    store((sum[0] + sum[1]) + (sum[2] + sum[3]), t.sum + r);
  }
}

// f(rows, their second parts, group, count) for each 16 lanes of a tile.
template <class F>
void for_each_16_queries(const QueryTile& t, F f) {
  for (int64_t first = 0; first < t.rows * t.beside; first += kLanes) {
    const int64_t count = clamp(t.rows * t.beside - first, 0, kLanes);
    const float *rows[kLanes], *rope_rows[kLanes];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = (first + i) / t.beside;
      rows[i] = t.q + row / t.heads * t.token_stride + row % t.heads * (t.key_dim + t.rope_dim);
      rope_rows[i] = rows[i] + t.key_dim;
    }
    f(rows, rope_rows, first / kLanes, count);
  }
}

}  // namespace
}  // namespace fathom::FATHOM_SIMD_TARGET
