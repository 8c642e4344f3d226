// Attention over an int8 cache (cached_rows.h), both products in integers. Blocks are kInt8Block
// dims of a key or value row, which share a scale.
//
//   score = sum over blocks of (sum of q' k') * q_scale * key_scale
//   out   = sum over blocks of keys of (sum of p' v') * p_scale
//
// q is rounded by rows and blocks; p * value_scale to 0 .. 255, for a row, kTileBlock keys and a
// block of dims.
// Integer sums are exact: in dot products of bytes, or, with the same bits, by f32 FMAs, as they
// stay below 2^24.
#include "kernels/attention_forms-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

constexpr int64_t kDims = 64;  // kInt8Block
constexpr float kTiny = 0x1p-100f;

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
        to[m] = _mm512_dpbusd_epi32(to[m], _mm512_set1_epi32(four), x);
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

// p * inverse * scale, rounded, of 16 rows: [kBlock / 4, 16], four keys to an element. Weight 0
// with a scale that is NaN gives 0.
void put_weights(const float* p, F32x16 inverse, const float* scale, int64_t stride, int64_t keys,
                 int64_t count, float* out) {
  const auto code = [&](int64_t j) __attribute__((always_inline)) {
    const float value_scale =
        *reinterpret_cast<const float*>(reinterpret_cast<const char*>(scale) + j * stride);
    return _mm512_cvtps_epi32((load(p + j * kLanes) * inverse * set(value_scale)).v);
  };
  int64_t j = 0;
  for (; j + 4 <= keys; j += 4, out += kLanes) {
    const __m512i low = _mm512_or_si512(_mm512_and_si512(code(j), _mm512_set1_epi32(255)),
                                        _mm512_slli_epi32(code(j + 1), 8));
    const __m512i high =
        _mm512_or_si512(_mm512_slli_epi32(code(j + 2), 16), _mm512_slli_epi32(code(j + 3), 24));
    _mm512_storeu_si512(out, _mm512_or_si512(low, high));
  }
  for (; j < count; j += 4, out += kLanes) {
    __m512i four = _mm512_setzero_si512();
    for (int64_t e = 0; j + e < keys && e < 4; ++e) {
      four = _mm512_or_si512(
          four, _mm512_sllv_epi32(_mm512_and_si512(code(j + e), _mm512_set1_epi32(255)),
                                  _mm512_set1_epi32(static_cast<int>(8 * e))));
    }
    _mm512_storeu_si512(out, four);
  }
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
      for (int n = 0; n < N; ++n) sum[m][n] = _mm512_dpbusd_epi32(sum[m][n], p, v[n]);
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

// p * inverse * scale, rounded: [kBlock, 16].
void put_weights(const float* p, F32x16 inverse, const float* scale, int64_t stride, int64_t keys,
                 int64_t count, float* out) {
  for (int64_t j = 0; j < count; ++j) {
    const float value_scale =
        *reinterpret_cast<const float*>(reinterpret_cast<const char*>(scale) + j * stride);
    const F32x16 x = load(p + (j < keys ? j : 0) * kLanes) * inverse * set(value_scale);
    // max() turns NaN, where weight 0 meets a scale that is NaN, into 0
    store(j < keys ? round_nearest(max(x, zero())) : zero(), out + j * kLanes);
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

// largest[j, b] = the largest scale of block b in keys 0 .. j, as bits, where NaN is above all.
void largest_scales(const AttentionTile& t, int64_t row, int64_t count, int64_t blocks,
                    uint32_t* largest) {
  for (int64_t j = 0; j < count; ++j, largest += blocks) {
    const float* scales = scales_of(t.value, row + j);
    for (int64_t b = 0; b < blocks; ++b) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, scales[b]);
      largest[b] = j > 0 && largest[b - blocks] > bits ? largest[b - blocks] : bits;
    }
  }
}

// The largest scale that each of 16 rows sees in a block of dims.
F32x16 seen_scale(const AttentionTile& t, int64_t row, int64_t j, int64_t count, int64_t blocks,
                  const uint32_t* largest) {
  const auto of_row = [&](int64_t r) {
    const int64_t keys = clamp(visible_keys(t, r) - j, 0, count);
    return keys > 0 ? __builtin_bit_cast(float, largest[(keys - 1) * blocks]) : 0.0f;
  };
  if (visible_keys(t, row) == visible_keys(t, row + kLanes - 1)) return set(of_row(row));
  float lanes[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) lanes[i] = of_row(row + i);
  return load(lanes);
}

void add_values(const AttentionTile& t, int64_t keys) {
  const int64_t blocks = blocks_of(t.value.dim);
  float* const weights = t.weights;
  float* const scales = weights + t.lanes * kBlock;
  float* const tops = scales + t.lanes;
  auto* const largest = reinterpret_cast<uint32_t*>(tops + t.lanes);
  for (int64_t j = 0; j < keys; j += kBlock) {
    const int64_t count = clamp(keys - j, 0, kBlock), row = t.block_rows[j / kBlock];
    const auto seen = [&](int64_t r) {
      return clamp(visible_keys(t, r + kLanes - 1) - j, 0, count);
    };
    largest_scales(t, row, count, blocks, largest);
    for (int64_t r = 0; r < t.lanes; r += kLanes) {
      F32x16 top = zero();
      for (int64_t i = 0; i < seen(r); ++i)
        top = max(top, load(t.scores + (r * kTileSegment / kLanes + j + i) * kLanes));
      store(top, tops + r);
    }
    for (int64_t b = 0; b < blocks; ++b) {
      load_values(t, row, count, b * kDims);
      for (int64_t r = 0; r < t.lanes; r += kLanes) {
        const F32x16 top =
            max(set(kTiny), load(tops + r) * seen_scale(t, r, j, count, blocks, largest + b));
        store(top * set(1.0f / 255), scales + r);
        put_weights(t.scores + (r * kTileSegment / kLanes + j) * kLanes, set(255.0f) / top,
                    scales_of(t.value, row) + b, t.value.row_stride, seen(r), count,
                    weights + r * kKeySteps);
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
