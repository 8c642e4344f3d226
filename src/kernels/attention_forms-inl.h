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
// Of pairs of bf16 the even and the odd, widened.
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
  using KeyStrides = PairsApart;
  static void load_keys(const AttentionPart& part, int64_t row, int64_t count, int64_t begin,
                        int64_t dims, float* out) {
    const auto* x = static_cast<const uint16_t*>(part.data) + row * part.row_stride + begin;
    const auto put_apart = [](const void* pairs, float* to) {
      float lanes[kLanes];
      __builtin_memcpy(lanes, pairs, sizeof lanes);
      store(odd_of(load(lanes)), to);
      store(even_of(load(lanes)), to + kLanes);
    };
    for (int64_t j = 0; j < count; ++j, x += part.row_stride, out += kChunk) {
      int64_t i = 0;
      for (; i + 2 * kLanes <= dims; i += 2 * kLanes) put_apart(x + i, out + i);
      if (i == dims) continue;
      uint16_t rest[2 * kLanes] = {};
      for (int64_t e = i; e < dims; ++e) rest[e - i] = x[e];
      put_apart(rest, out + i);
    }
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

// scores -> e^(scale * score - max) as elements; keys a row must not see become -inf first and so
// exactly 0. The sum runs in four chains (key mod 4), which zeros behind a row's last key do not
// change.
template <class Form>
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
    const auto weight = [&](int64_t j) {
      const F32x16 p = Form::rounded(exp(load(scores + j * kLanes) - m));
      sum[j % 4] = sum[j % 4] + p;
      return p;
    };
    int64_t j = 0;
    for (; j + 2 <= keys; j += 2) {
      const F32x16 even = weight(j), odd = weight(j + 1);
      Form::put(even, odd, scores + Form::steps(j) * kLanes);
    }
    if (j < keys) Form::put(weight(j), zero(), scores + Form::steps(j) * kLanes);
    store(m, t.max + r);
    store((sum[0] + sum[1]) + (sum[2] + sum[3]), t.sum + r);
  }
}

// f(rows, their second parts, group, count) for each 16 rows of a tile.
template <class F>
void for_each_16_queries(const QueryTile& t, F f) {
  for (int64_t first = 0; first < t.rows; first += kLanes) {
    const int64_t count = clamp(t.rows - first, 0, kLanes);
    const float *rows[kLanes], *rope_rows[kLanes];
    for (int64_t r = 0; r < count; ++r) {
      rows[r] = t.q + (first + r) / t.heads * t.token_stride +
                (first + r) % t.heads * (t.key_dim + t.rope_dim);
      rope_rows[r] = rows[r] + t.key_dim;
    }
    f(rows, rope_rows, first / kLanes, count);
  }
}

}  // namespace
}  // namespace fathom::FATHOM_SIMD_TARGET
