// Transposes by perfect shuffles, and dW += dyᵀ · x as outer products: with the tokens outermost both operands are read as they
// lie, so nothing is transposed, and an expert with three rows costs three rows.
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// Lanes a0 b0 a1 b1 .. a7 b7 and a8 b8 .. a15 b15.
#if defined(FATHOM_SIMD_IS_avx512)
inline F32x16 interleave_low(F32x16 a, F32x16 b) {
  const __m512i lanes = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return {_mm512_permutex2var_ps(a.v, lanes, b.v)};
}
inline F32x16 interleave_high(F32x16 a, F32x16 b) {
  const __m512i lanes = _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return {_mm512_permutex2var_ps(a.v, lanes, b.v)};
}
#elif defined(FATHOM_SIMD_IS_avx2)
inline F32x16 interleave_8(__m256 a, __m256 b) {
  const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
  return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}
inline F32x16 interleave_low(F32x16 a, F32x16 b) { return interleave_8(a.lo, b.lo); }
inline F32x16 interleave_high(F32x16 a, F32x16 b) { return interleave_8(a.hi, b.hi); }
#else
inline F32x16 interleave_8(const float* a, const float* b) {
  F32x16 r;
  for (int i = 0; i < 8; ++i) {
    r.v[2 * i] = a[i];
    r.v[2 * i + 1] = b[i];
  }
  return r;
}
inline F32x16 interleave_low(F32x16 a, F32x16 b) { return interleave_8(a.v, b.v); }
inline F32x16 interleave_high(F32x16 a, F32x16 b) { return interleave_8(a.v + 8, b.v + 8); }
#endif

// Number an element by the eight bits rrrrcccc of its row and column. Interleaving rows i and i + 8 into rows 2i and 2i + 1 rotates
// these bits by one; four times exchanges row and column.
inline void transpose_16(F32x16 (&a)[16]) {
  for (int round = 0; round < 4; ++round) {
    F32x16 b[16];
    for (int i = 0; i < 8; ++i) {
      b[2 * i] = interleave_low(a[i], a[i + 8]);
      b[2 * i + 1] = interleave_high(a[i], a[i + 8]);
    }
    for (int i = 0; i < 16; ++i) a[i] = b[i];
  }
}

inline F32x16 load_lanes(const float* p, int64_t n) { return load_n(p, n); }
inline F32x16 load_lanes(const uint16_t* p, int64_t n) {
  if (n == kLanes) return load_bf16(p);
  uint16_t lanes[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) lanes[i] = p[i];
  return load_bf16(lanes);
}
inline void store_lanes(F32x16 a, float* p, int64_t n) { store_n(a, p, n); }
inline void store_lanes(F32x16 a, uint16_t* p, int64_t n) {
  uint32_t bits[kLanes];
  __builtin_memcpy(bits, &a, sizeof bits);
  if (n == kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) p[i] = static_cast<uint16_t>(bits[i] >> 16);
  } else {
    for (int64_t i = 0; i < n; ++i) p[i] = static_cast<uint16_t>(bits[i] >> 16);
  }
}

template <class T>
void transpose_strip(const T* in, int64_t in_stride, int64_t rows, int64_t cols, T* out, int64_t out_stride) {
  for (int64_t c = 0; c < cols; c += kLanes) {
    const int64_t n = cols - c < kLanes ? cols - c : kLanes;
    F32x16 tile[16];
    for (int64_t r = 0; r < 16; ++r) tile[r] = r < rows ? load_lanes(in + r * in_stride + c, n) : zero();
    transpose_16(tile);
    for (int64_t i = 0; i < n; ++i) store_lanes(tile[i], out + (c + i) * out_stride, rows);
  }
}

constexpr int64_t kBlock = 256;  // tokens

// One register tile: kRows rows of dw by kWidth columns, in registers of the target's own size (gcc leaves arrays of 16 in memory).
#if defined(FATHOM_SIMD_IS_avx512) || defined(FATHOM_SIMD_IS_avx2)
using Part = F32x16;
constexpr int64_t kRows = 6;
inline Part load_part(const float* p) { return load(p); }
inline void store_part(Part a, float* p) { store(a, p); }
inline Part fma_part(float a, Part b, Part c) { return fma(set(a), b, c); }
#else
typedef float Part __attribute__((vector_size(16)));
constexpr int64_t kRows = 3;
inline Part load_part(const float* p) {
  Part a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
inline void store_part(Part a, float* p) { __builtin_memcpy(p, &a, sizeof a); }
inline Part fma_part(float a, Part b, Part c) { return a * b + c; }
#endif
#if defined(FATHOM_SIMD_IS_avx512)
constexpr int64_t kWidth = 64;
#else
constexpr int64_t kWidth = 16;
#endif
constexpr int64_t kPartLanes = sizeof(Part) / sizeof(float), kParts = kWidth / kPartLanes;

// dw[i, j] += sum over m, in order, of a[m, i] * b[m, j] for `rows` <= kRows rows and `cols` <= kWidth columns.
inline void outer_tile(const float* a, const float* b, int64_t m, int64_t rows, int64_t cols, float* dw, int64_t dw_stride) {
  Part sum[kRows][kParts] = {};
  for (int64_t t = 0; t < m; ++t, a += kRows, b += kWidth) {
    Part v[kParts];
    for (int64_t j = 0; j < kParts; ++j) v[j] = load_part(b + kPartLanes * j);
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kParts; ++j) sum[i][j] = fma_part(a[i], v[j], sum[i][j]);
    }
  }
  float lanes[kRows][kWidth];
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kParts; ++j) store_part(sum[i][j], lanes[i] + kPartLanes * j);
  }
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; j += kLanes) {
      const int64_t n = cols - j < kLanes ? cols - j : kLanes;
      float* const p = dw + i * dw_stride + j;
      store_n(load_n(p, n) + load(lanes[i] + j), p, n);
    }
  }
}

}  // namespace

void transpose_f32(const float* in, int64_t in_stride, int64_t rows, int64_t cols, float* out, int64_t out_stride) {
  transpose_strip(in, in_stride, rows, cols, out, out_stride);
}
void transpose_bf16(const uint16_t* in, int64_t in_stride, int64_t rows, int64_t cols, uint16_t* out,
                    int64_t out_stride) {
  transpose_strip(in, in_stride, rows, cols, out, out_stride);
}

// dw [n, k] += dyᵀ · x over m tokens. scratch: kBlock * (n rounded up to kRows + 64). A block of dy is packed tile by tile of columns, x one panel
// as wide as the tile at a time, so that the tiles read memory in order; lanes past the end are zeros.
void add_outer_products(const float* dy, int64_t dy_stride, const float* x, int64_t x_stride, int64_t m, int64_t n,
                        int64_t k, float* scratch, float* dw, int64_t dw_stride) {
  float* const panel = scratch;
  float* const packed = scratch + kBlock * 64;
  for (; m > 0; m -= kBlock, dy += kBlock * dy_stride, x += kBlock * x_stride) {
    const int64_t block = m < kBlock ? m : kBlock;
    for (int64_t i = 0; i < n; i += kRows) {
      for (int64_t t = 0; t < block; ++t) {
        for (int64_t r = 0; r < kRows; ++r) packed[i * block + t * kRows + r] = i + r < n ? dy[t * dy_stride + i + r] : 0.0f;
      }
    }
    for (int64_t j = 0; j < k; j += kWidth) {
      const int64_t cols = k - j < kWidth ? k - j : kWidth;
      for (int64_t t = 0; t < block; ++t) {
        for (int64_t c = 0; c < kWidth; c += kLanes) {
          const int64_t count = cols - c < 0 ? 0 : cols - c < kLanes ? cols - c : kLanes;
          store(load_n(x + t * x_stride + j + c, count), panel + t * kWidth + c);
        }
      }
      for (int64_t i = 0; i < n; i += kRows) {
        outer_tile(packed + i * block, panel, block, n - i < kRows ? n - i : kRows, cols, dw + i * dw_stride + j, dw_stride);
      }
    }
  }
}

// inout[c] += sum over the rows, in order and in double; cols <= 128.
void column_sums(const float* x, int64_t stride, int64_t rows, int64_t cols, float* inout) {
  double sum[128] = {};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) sum[c] += x[r * stride + c];
  }
  for (int64_t c = 0; c < cols; ++c) inout[c] = static_cast<float>(inout[c] + sum[c]);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
