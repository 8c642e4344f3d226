// Attention over an int8 cache (cached_rows.h), both products in integers. Blocks are kInt8Block
// dims of a key or value row, which share a scale.
//
//   score = sum over blocks of (sum of q' k') * q_scale * key_scale
//   out   = sum over blocks of keys of (sum of p' v') * p_scale
//
// q is rounded by rows and blocks; p and the value's scale become shares of the largest ones, whose
// product p' is rounded to 0 .. 255, for a row, kTileBlock keys and a block of dims.
// Integer sums are exact: in dot products of bytes, or, with the same bits, by f32 FMAs, as they
// stay below 2^24.
#include "kernels/attention_forms-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

constexpr int64_t kDims = 64;  // kInt8Block
constexpr float kTiny = 0x1p-100f;
constexpr float kTinyScale = 0x1p-108f;  // less than any that is stored, kTiny / 127 at least
constexpr float kRounding = 0x1.8p23f;   // a sum with it is rounded to an integer

inline int64_t blocks_of(int64_t dims) { return (dims + kDims - 1) / kDims; }

const uint8_t* codes_of(const AttentionPart& part, int64_t row) {
  return static_cast<const uint8_t*>(part.data) + row * part.row_stride;
}
const float* scales_of(const AttentionPart& part, int64_t row) {
  return reinterpret_cast<const float*>(static_cast<const char*>(part.scales) +
                                        row * part.row_stride);
}

// Of a block of queries of 16 rows: scales [16], what takes the 128 of the keys' codes off again
// [16], codes [kDims, 16] as elements.
#if defined(FATHOM_SIMD_IS_avx512)
constexpr int64_t kSteps = kDims / 4;  // an element is four codes
#else
constexpr int64_t kSteps = kDims;
#endif
constexpr int64_t kQueryBlock = (2 + kSteps) * kLanes;

// a [kDims] of 16 rows, a lane each.
void put_query_block(const F32x16* a, float* out) {
  F32x16 largest = set(kTiny), bad = zero();
  for (int64_t i = 0; i < kDims; ++i) {
    largest = max(largest, max(a[i], zero() - a[i]));
    bad = fma(a[i], zero(), bad);  // NaN from NaN and infinity
  }
  store(largest * set(1.0f / 127) + bad, out);
  const F32x16 inverse = set(127.0f) / largest;
#if defined(FATHOM_SIMD_IS_avx512)
  __m512i sum = _mm512_setzero_si512();
  const __m512i byte = _mm512_set1_epi32(255);
  for (int64_t i = 0; i < kDims; i += 4) {
    __m512i four = _mm512_setzero_si512();
    for (int64_t e = 0; e < 4; ++e) {
      const __m512i code = _mm512_cvtps_epi32((a[i + e] * inverse).v);
      sum = _mm512_add_epi32(sum, code);
      four = _mm512_or_si512(four, _mm512_sllv_epi32(_mm512_and_si512(code, byte),
                                                     _mm512_set1_epi32(static_cast<int>(8 * e))));
    }
    _mm512_storeu_si512(out + (2 + i / 4) * kLanes, four);
  }
  _mm512_storeu_si512(out + kLanes,
                      _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), sum), 7));
#else
  for (int64_t i = 0; i < kDims; ++i) store(round_nearest(a[i] * inverse), out + (2 + i) * kLanes);
#endif
}

void transpose_part(const float* const* rows, int64_t count, int64_t dims, float* out) {
  for (int64_t begin = 0; begin < dims; begin += kDims, out += kQueryBlock) {
    F32x16 a[kDims];
    for (int64_t i = 0; i < kDims; i += kLanes) {
      F32x16 square[kLanes];
      for (int64_t r = 0; r < kLanes; ++r) {
        const int64_t n = clamp(dims - begin - i, 0, kLanes);
        square[r] = r < count && n > 0 ? load_n(rows[r] + begin + i, n) : zero();
      }
      transpose_16(square);
      for (int64_t c = 0; c < kLanes; ++c) a[i + c] = square[c];
    }
    put_query_block(a, out);
  }
}

#if defined(FATHOM_SIMD_IS_avx512)

// As an intrinsic, gcc 12 copies sums from one register to another in each step.
inline void add_dot(__m512i& sum, __m512i unsigned_bytes, __m512i signed_bytes) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(unsigned_bytes), "v"(signed_bytes));
}

// Rows of keys times 16 queries.
struct KeyProduct {
  const uint8_t* codes;
  int64_t stride, count;
  const float* scales;
  const uint8_t* next;    // behind the rows
  const uint8_t* values;  // of the same rows; both are fetched meanwhile
  const float* q;
  int64_t dims;
  float* c;  // [count, 16]
  bool accumulate;
};

template <int M>
[[gnu::noinline]] void multiply_keys_tile(const KeyProduct& p, int64_t row) {
  const uint8_t* rows[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) rows[m] = p.codes + (row + m) * p.stride;
  const int64_t to_scales = distance(p.codes, p.scales),
                to_next = distance(rows[0], row + M < p.count ? rows[0] + M * p.stride : p.next),
                to_values = distance(p.codes, p.values);
  __m512 c[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
    c[m] = p.accumulate ? _mm512_loadu_ps(p.c + (row + m) * kLanes) : _mm512_setzero_ps();
  const float* q = p.q;
  int64_t scale_at = to_scales;
  for (int64_t dims = p.dims; dims > 0; dims -= kDims, q += kQueryBlock) {
    const __m512i start = _mm512_loadu_si512(q + kLanes);
    // Two chains for each row: eight are too few for what vpdpbusd takes.
    __m512i sum[M], odd[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      sum[m] = start;
      odd[m] = _mm512_setzero_si512();
      keep_in_register(rows[m]);
      __builtin_prefetch(rows[m] + to_next, 0, 2);
      __builtin_prefetch(rows[m] + to_values, 0, 2);
    }
    const auto step = [&](int64_t i, __m512i(&to)[M]) __attribute__((always_inline)) {
      const __m512i x = _mm512_loadu_si512(q + (2 + i) * kLanes);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        int32_t four;
        __builtin_memcpy(&four, rows[m] + 4 * i, sizeof four);
        add_dot(to[m], _mm512_set1_epi32(four), x);
      }
    };
    if (dims >= kDims) {
#pragma GCC unroll 8
      for (int64_t i = 0; i < kSteps; i += 2) {
        step(i, sum);
        step(i + 1, odd);
      }
    } else {
      for (int64_t i = 0; 4 * i < dims; ++i) step(i, sum);
    }
    const __m512 q_scale = _mm512_loadu_ps(q);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      float scale;
      __builtin_memcpy(&scale, rows[m] + scale_at, sizeof scale);
      sum[m] = _mm512_add_epi32(sum[m], odd[m]);
      c[m] = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum[m]), q_scale),
                             _mm512_set1_ps(scale), c[m]);
      rows[m] += kDims;
    }
    scale_at += static_cast<int64_t>(sizeof(float)) - kDims;
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) _mm512_storeu_ps(p.c + (row + m) * kLanes, c[m]);
}

void multiply_keys(const KeyProduct& p) {
  int64_t row = 0;
  for (; row + 8 <= p.count; row += 8) multiply_keys_tile<8>(p, row);
  for (; row + 2 <= p.count; row += 2) multiply_keys_tile<2>(p, row);
  if (row < p.count) multiply_keys_tile<1>(p, row);
}

void add_scores(const AttentionTile& t, const AttentionPart& part, int64_t first_block,
                int64_t keys) {
  const int64_t group_floats = (blocks_of(t.key.dim) + blocks_of(t.key_rope.dim)) * kQueryBlock;
  for (int64_t j = 0; j < keys; j += kBlock) {
    const int64_t count = clamp(keys - j, 0, kBlock), row = t.block_rows[j / kBlock];
    const int64_t next = j + kBlock < keys ? t.block_rows[j / kBlock + 1] : row;
    const bool alone = t.value.data == part.data || t.value.row_stride != part.row_stride;
    for (int64_t g = clamp((j + 1 - t.visible) * t.heads, 0, t.rows) / kLanes; g * kLanes < t.lanes;
         ++g) {
      multiply_keys({codes_of(part, row), part.row_stride, count, scales_of(part, row),
                     codes_of(part, next), codes_of(alone ? part : t.value, row),
                     t.q + g * group_floats + first_block * kQueryBlock, part.dim,
                     t.scores + (g * kTileSegment + j) * kLanes, first_block > 0});
    }
  }
}

// Codes of a block of values, signed, four keys to an element: [kBlock / 4, kDims]; missing keys
// and dims are 0.
void load_values(const AttentionTile& t, int64_t row, int64_t count, int64_t begin) {
  const int64_t dims = clamp(t.value.dim - begin, 0, kDims);
  const auto mask = dims == kDims ? ~__mmask64{0} : (__mmask64{1} << dims) - 1;
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i sign = _mm512_set1_epi8(-128);
  const uint8_t* x = codes_of(t.value, row) + begin;
  auto* out = reinterpret_cast<int32_t*>(t.block);
  for (int64_t j = 0; j < count; j += 4, out += kDims) {
    // Four dims of each quarter together, so that the unpacked ones come out in order.
    __m512i a[4];
    for (int64_t e = 0; e < 4; ++e, x += t.value.row_stride) {
      if (j + e < count) {
        __builtin_prefetch(x + kDims);  // what comes next
        a[e] = _mm512_permutexvar_epi32(
            order, _mm512_xor_si512(sign, _mm512_mask_loadu_epi8(sign, mask, x)));
      } else {
        a[e] = _mm512_setzero_si512();
      }
    }
    const __m512i low01 = _mm512_unpacklo_epi8(a[0], a[1]),
                  high01 = _mm512_unpackhi_epi8(a[0], a[1]),
                  low23 = _mm512_unpacklo_epi8(a[2], a[3]),
                  high23 = _mm512_unpackhi_epi8(a[2], a[3]);
    _mm512_storeu_si512(out, _mm512_unpacklo_epi16(low01, low23));
    _mm512_storeu_si512(out + 16, _mm512_unpackhi_epi16(low01, low23));
    _mm512_storeu_si512(out + 32, _mm512_unpacklo_epi16(high01, high23));
    _mm512_storeu_si512(out + 48, _mm512_unpackhi_epi16(high01, high23));
  }
}

// p * ratio(key), rounded to codes, of 16 rows: [kBlock / 4, 16], four keys to an element. The
// last byte of a sum with kRounding is its rounded term.
template <class Ratio>
void put_weights(const float* p, Ratio ratio, int64_t keys, int64_t count, float* out) {
  const __m512i low_bytes = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  const auto code = [&](int64_t j) __attribute__((always_inline)) {
    return _mm512_castps_si512(fma(load(p + j * kLanes), ratio(j), set(kRounding)).v);
  };
  const auto put = [&](__m512i a, __m512i b, __m512i c, __m512i d) __attribute__((always_inline)) {
    a = _mm512_mask_shuffle_epi8(a, 0x2222222222222222, b, low_bytes);
    a = _mm512_mask_shuffle_epi8(a, 0x4444444444444444, c, low_bytes);
    _mm512_storeu_si512(out, _mm512_mask_shuffle_epi8(a, 0x8888888888888888, d, low_bytes));
  };
  int64_t j = 0;
  for (; j + 4 <= keys; j += 4, out += kLanes) put(code(j), code(j + 1), code(j + 2), code(j + 3));
  const auto code_or_0 = [&](int64_t i) { return i < keys ? code(i) : _mm512_setzero_si512(); };
  for (; j < count; j += 4, out += kLanes)
    put(code_or_0(j), code_or_0(j + 1), code_or_0(j + 2), code_or_0(j + 3));
}
constexpr int64_t kKeySteps = kBlock / 4;
inline int64_t key_steps(int64_t count) { return (count + 3) / 4; }

// M rows of weights times N vectors of a block of values.
template <int M, int N>
[[gnu::noinline]] void add_values_tile(const float* weights, const float* block, int64_t steps,
                                       const float* scales, bool accumulate, float* out,
                                       int64_t out_stride) {
  __m512i sum[M][N];
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) sum[m][n] = _mm512_setzero_si512();
  }
  for (int64_t i = 0; i < steps; ++i, weights += kLanes, block += kDims) {
    __m512i v[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) v[n] = _mm512_loadu_si512(block + n * kLanes);
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m) {
      const __m512i p = _mm512_castps_si512(_mm512_set1_ps(weights[m]));
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) add_dot(sum[m][n], p, v[n]);
    }
  }
#pragma GCC unroll 4
  for (int m = 0; m < M; ++m, out += out_stride) {
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
      const F32x16 before = accumulate ? load(out + n * kLanes) : zero();
      store(fma({_mm512_cvtepi32_ps(sum[m][n])}, set(scales[m]), before), out + n * kLanes);
    }
  }
}

template <int N>
void add_values_rows(const AttentionTile& t, const float* weights, const float* scales,
                     int64_t steps, bool accumulate, float* out) {
  const auto run = [&](auto tile, int64_t row) {
    tile(weights + row / kLanes * kKeySteps * kLanes + row % kLanes, t.block, steps, scales + row,
         accumulate, out + row * t.out_stride, t.out_stride);
  };
  int64_t row = 0;
  for (; row + 4 <= t.rows; row += 4) run(add_values_tile<4, N>, row);
  for (; row < t.rows; ++row) run(add_values_tile<1, N>, row);
}

void multiply_values(const AttentionTile& t, const float* weights, const float* scales,
                     int64_t count, int64_t dims, bool accumulate, float* out) {
  const int64_t steps = key_steps(count);
  if (dims > 3 * kLanes) return add_values_rows<4>(t, weights, scales, steps, accumulate, out);
  if (dims > 2 * kLanes) return add_values_rows<3>(t, weights, scales, steps, accumulate, out);
  if (dims > kLanes) return add_values_rows<2>(t, weights, scales, steps, accumulate, out);
  add_values_rows<1>(t, weights, scales, steps, accumulate, out);
}

#else

// Codes as numbers, [count, kDims].
void load_codes(const AttentionPart& part, int64_t row, int64_t count, int64_t begin, int64_t dims,
                float* out) {
  const uint8_t* x = codes_of(part, row) + begin;
  for (int64_t j = 0; j < count; ++j, x += part.row_stride, out += kDims) {
    for (int64_t i = 0; i < dims; ++i) out[i] = static_cast<float>(x[i] - 128);
    for (int64_t i = dims; i < kDims; ++i) out[i] = 0;
  }
}

void add_scores(const AttentionTile& t, const AttentionPart& part, int64_t first_block,
                int64_t keys) {
  const int64_t group_floats = (blocks_of(t.key.dim) + blocks_of(t.key_rope.dim)) * kQueryBlock;
  float* const sums = t.weights;  // [lanes / 16, kBlock, 16]
  for (int64_t j = 0; j < keys; j += kBlock) {
    const int64_t count = clamp(keys - j, 0, kBlock), row = t.block_rows[j / kBlock];
    const int64_t first_group = clamp((j + 1 - t.visible) * t.heads, 0, t.rows) / kLanes;
    for (int64_t b = 0; b < blocks_of(part.dim); ++b) {
      const int64_t dims = clamp(part.dim - b * kDims, 0, kDims);
      load_codes(part, row, count, b * kDims, dims, t.block);
      const float* q = t.q + first_group * group_floats + (first_block + b) * kQueryBlock;
      multiply<Fma, Strides<kDims, 1, kLanes>>({.a = t.block,
                                                 .b = q + 2 * kLanes,
                                                 .b_column = group_floats,
                                                 .c = sums + first_group * kBlock * kLanes,
                                                 .c_row = kLanes,
                                                 .c_column = kBlock * kLanes,
                                                 .k = dims,
                                                 .accumulate = false},
                                                count, t.lanes / kLanes - first_group);
      for (int64_t g = first_group; g * kLanes < t.lanes; ++g, q += group_floats) {
        const F32x16 q_scale = load(q);
        for (int64_t i = 0; i < count; ++i) {
          float* score = t.scores + (g * kTileSegment + j + i) * kLanes;
          const F32x16 before = first_block + b > 0 ? load(score) : zero();
          store(fma(load(sums + (g * kBlock + i) * kLanes) * q_scale,
                    set(scales_of(part, row + i)[b]), before),
                score);
        }
      }
    }
  }
}

void load_values(const AttentionTile& t, int64_t row, int64_t count, int64_t begin) {
  load_codes(t.value, row, count, begin, clamp(t.value.dim - begin, 0, kDims), t.block);
}

// p * ratio(key), rounded: [kBlock, 16].
template <class Ratio>
void put_weights(const float* p, Ratio ratio, int64_t keys, int64_t count, float* out) {
  for (int64_t j = 0; j < count; ++j) {
    store(j < keys ? fma(load(p + j * kLanes), ratio(j), set(kRounding)) - set(kRounding) : zero(),
          out + j * kLanes);
  }
}
constexpr int64_t kKeySteps = kBlock;

void multiply_values(const AttentionTile& t, const float* weights, const float* scales,
                     int64_t count, int64_t dims, bool accumulate, float* out) {
  constexpr int64_t kRows = 8;
  float sums[kRows * kDims];
  const int64_t vectors = (dims + kLanes - 1) / kLanes;
  for (int64_t row = 0; row < t.rows; row += kRows) {
    const int64_t rows = clamp(t.rows - row, 0, kRows);
    multiply<Fma, ValueStrides>({.a = weights + row / kLanes * kKeySteps * kLanes + row % kLanes,
                                 .b = t.block,
                                 .b_column = kLanes,
                                 .c = sums,
                                 .c_row = kDims,
                                 .c_column = kLanes,
                                 .k = count,
                                 .accumulate = false},
                                rows, vectors);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < vectors * kLanes; i += kLanes) {
        float* to = out + (row + r) * t.out_stride + i;
        store(fma(load(sums + r * kDims + i), set(scales[row + r]), accumulate ? load(to) : zero()),
              to);
      }
    }
  }
}

#endif

// Of a block of dims: the scales that belong to the keys that a row sees.
struct SeenScale {
  F32x16 top;  // the largest, of kTinyScale at least
  F32x16 inverse;
  explicit SeenScale(F32x16 largest) : top(max(set(kTinyScale), largest)), inverse(set(1) / top) {}
  // scale / top, at most 1; but NaN, which is in top as well, and scales of keys that are not seen
  // must leave 0 what is weighted 0.
  F32x16 ratio(F32x16 scale) const { return min(scale * inverse, set(2)); }
};

// largest[i] = the largest of scales 0 .. i, NaN if one of them is.
void put_largest(const float* scales, int64_t count, float* largest) {
  float top = 0, bad = 0;
  for (int64_t j = 0; j < count; ++j) {
    top = top > scales[j] ? top : scales[j];
    bad += 0 * scales[j];
    largest[j] = top + bad;
  }
}

// The same of a whole block.
float largest_of(const float* scales) {
  F32x16 top = zero(), bad = zero();
  for (int64_t j = 0; j < kBlock; j += kLanes) {
    top = max(top, load(scales + j));
    bad = fma(load(scales + j), zero(), bad);
  }
  float lanes[kLanes];
  store(top, lanes);
  float largest = 0;
  for (const float x : lanes) largest = largest > x ? largest : x;
  return largest + reduce_add(bad);
}

// e^(s - max) of 16 rows and a block of keys as shares, times 255, of the largest, which is
// returned.
F32x16 scale_weights(float* p, int64_t keys) {
  F32x16 even = set(kTiny), odd = even;
  for (int64_t i = 0; i < keys; i += 2) {
    even = max(even, load(p + i * kLanes));
    if (i + 1 < keys) odd = max(odd, load(p + (i + 1) * kLanes));
  }
  const F32x16 top = max(even, odd), inverse = set(255) / top;
  for (int64_t i = 0; i < keys; ++i) store(load(p + i * kLanes) * inverse, p + i * kLanes);
  return top;
}

void add_values(const AttentionTile& t, int64_t keys) {
  const int64_t blocks = blocks_of(t.value.dim);
  float* const weights = t.weights;
  float* const scales = weights + t.lanes * kBlock;
  float* const tops = scales + t.lanes;
  float* const value_scales = tops + t.lanes;  // [blocks, kBlock]
  for (int64_t j = 0; j < keys; j += kBlock) {
    const int64_t count = clamp(keys - j, 0, kBlock), row = t.block_rows[j / kBlock];
    const auto seen_by = [&](int64_t r) { return clamp(visible_keys(t, r) - j, 0, count); };
    const auto weights_of = [&](int64_t r) {
      return t.scores + (r * kTileSegment / kLanes + j) * kLanes;
    };
    for (int64_t i = 0; i < kBlock; ++i) {
      for (int64_t b = 0; b < blocks; ++b)
        value_scales[b * kBlock + i] = i < count ? scales_of(t.value, row + i)[b] : 0.0f;
    }
    for (int64_t r = 0; r < t.lanes; r += kLanes)
      store(scale_weights(weights_of(r), seen_by(r + kLanes - 1)), tops + r);
    for (int64_t b = 0; b < blocks; ++b) {
      const float* const of_key = value_scales + b * kBlock;
      const SeenScale all(set(largest_of(of_key)));
      float ratios[kBlock];
      for (int64_t i = 0; i < kBlock; i += kLanes) store(all.ratio(load(of_key + i)), ratios + i);
      float largest[kBlock];  // for rows that do not see all
      if (seen_by(0) < count) put_largest(of_key, count, largest);
      load_values(t, row, count, b * kDims);
      for (int64_t r = 0; r < t.lanes; r += kLanes) {
        float* const out = weights + r * kKeySteps;
        F32x16 top = all.top;
        if (seen_by(r) == count) {
          put_weights(
              weights_of(r), [&](int64_t i) { return set(ratios[i]); }, count, count, out);
        } else {
          float lanes[kLanes];
          for (int64_t i = 0; i < kLanes; ++i) {
            const int64_t seen = seen_by(r + i);
            lanes[i] = seen > 0 ? largest[seen - 1] : 0.0f;
          }
          const SeenScale some(load(lanes));
          top = some.top;
          put_weights(
              weights_of(r), [&](int64_t i) { return some.ratio(set(of_key[i])); },
              seen_by(r + kLanes - 1), count, out);
        }
        store(load(tops + r) * top * set(1.0f / 255), scales + r);
      }
      multiply_values(t, weights, scales, count, clamp(t.value.dim - b * kDims, 0, kDims), j > 0,
                      t.out + b * kDims);
    }
  }
}

}  // namespace

void attention_int8_queries(const QueryTile& t) {
  FlushSubnormals flush;
  const int64_t key = blocks_of(t.key_dim), rope = blocks_of(t.rope_dim);
  for_each_16_queries(t, [&](const float* const* rows, const float* const* rope_rows, int64_t group,
                             int64_t count) {
    float* out = t.out + group * (key + rope) * kQueryBlock;
    transpose_part(rows, count, t.key_dim, out);
    transpose_part(rope_rows, count, t.rope_dim, out + key * kQueryBlock);
  });
}

void attention_int8_tile(const AttentionTile& t) {
  FlushSubnormals flush;
  const int64_t keys = visible_keys(t, t.rows - 1);
  add_scores(t, t.key, 0, keys);
  add_scores(t, t.key_rope, blocks_of(t.key.dim), keys);
  softmax_scores<F32Form>(t);
  add_values(t, keys);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
