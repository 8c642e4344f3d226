// dW += dyᵀ · x as outer products: with the tokens outermost both operands are read as they lie, so
// nothing is transposed, and an expert with three rows costs three rows.
#include "kernels/bf16-inl.h"
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

constexpr int64_t kBlock = 256;        // tokens
constexpr int64_t kMostColumns = 256;  // of dy in one call

// One register tile: kRows rows of dw by kWidth columns.
#if defined(FATHOM_SIMD_IS_avx512)
constexpr int64_t kRows = 6, kWidth = 64;
#elif defined(FATHOM_SIMD_IS_avx2)
constexpr int64_t kRows = 6, kWidth = 16;
#else
constexpr int64_t kRows = 3, kWidth = 16;
#endif
constexpr int64_t kParts = kWidth / kPartLanes;

// dw[i, j] += sum over m, in order, of a[m, i] * b[m, j] for `rows` <= kRows rows and `cols` <=
// kWidth columns.
inline void outer_tile(const float* a, const float* b, int64_t m, int64_t rows, int64_t cols,
                       float* dw, int64_t dw_stride) {
  Part sum[kRows][kParts] = {};
  for (int64_t t = 0; t < m; ++t, a += kRows, b += kWidth) {
    Part v[kParts];
    for (int64_t j = 0; j < kParts; ++j) v[j] = load_part(b + kPartLanes * j);
    for (int64_t i = 0; i < kRows; ++i) {
      for (int64_t j = 0; j < kParts; ++j) sum[i][j] = fma_part(set_part(a[i]), v[j], sum[i][j]);
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

// A value as it is, or rounded to bf16.
template <bool kRound>
inline float operand(float x) {
  return kRound ? __builtin_bit_cast(float, round_bf16_bits<true>(bits_of(x))) : x;
}

// Columns [0, count) of a row, zeros up to `width`, a multiple of 16.
template <bool kRound>
inline void operands(const float* in, int64_t count, int64_t width, float* out) {
  for (int64_t c = 0; c < width; c += kLanes) {
    const int64_t left = count - c;
    store(load_n(in + c, left < 0 ? 0 : left < kLanes ? left : kLanes), out + c);
  }
  for (int64_t c = 0; c < width; ++c) out[c] = operand<kRound>(out[c]);
}

// dw [n, k] += dyᵀ · x over m tokens, n <= kMostColumns. scratch: kBlock * (n rounded up to kLanes
// + kLanes + k rounded up to 64). A block of dy is packed tile by tile of columns, x in panels as
// wide as the tile, so that the tiles read memory in order; both from whole rows, which are fetched
// ahead; lanes past the end are zeros. Rounded tokens are taken in vdpbf16ps's order: of each pair
// the second first, zeros where there is none.
template <bool kRound>
void outer_products(const float* dy, int64_t dy_stride, const float* x, int64_t x_stride, int64_t m,
                    int64_t n, int64_t k, float* scratch, float* dw, int64_t dw_stride) {
  float* const panels = scratch;
  float* const packed = scratch + kBlock * ((k + 63) / 64 * 64);
  for (; m > 0; m -= kBlock, dy += kBlock * dy_stride, x += kBlock * x_stride) {
    const int64_t tokens = m < kBlock ? m : kBlock;
    const int64_t block = kRound ? (tokens + 1) / 2 * 2 : tokens;
    for (int64_t t = 0; t < block; ++t) {
      const int64_t place = kRound ? t ^ 1 : t;
      float row[kMostColumns + kLanes];
      operands<kRound>(dy + t * dy_stride, t < tokens ? n : 0,
                       (n + kRows + kLanes - 1) / kLanes * kLanes, row);
      for (int64_t i = 0; i < n; i += kRows)
        __builtin_memcpy(packed + i * block + place * kRows, row + i, kRows * sizeof(float));
      for (int64_t j = 0; j < k; j += kWidth) {
        const int64_t cols = k - j < kWidth ? k - j : kWidth;
        operands<kRound>(x + t * x_stride + j, t < tokens ? cols : 0, kWidth,
                         panels + j * block + place * kWidth);
      }
    }
    for (int64_t j = 0; j < k; j += kWidth) {
      const int64_t cols = k - j < kWidth ? k - j : kWidth;
      for (int64_t i = 0; i < n; i += kRows) {
        outer_tile(packed + i * block, panels + j * block, block, n - i < kRows ? n - i : kRows,
                   cols, dw + i * dw_stride + j, dw_stride);
      }
    }
  }
}

}  // namespace

void add_outer_products(const float* dy, int64_t dy_stride, const float* x, int64_t x_stride,
                        int64_t m, int64_t n, int64_t k, float* scratch, float* dw,
                        int64_t dw_stride) {
  outer_products<false>(dy, dy_stride, x, x_stride, m, n, k, scratch, dw, dw_stride);
}

// The same with both operands rounded to bf16 (nearest even) on the way into the packing, to the
// bits of the native form below.
void add_outer_products_bf16(const float* dy, int64_t dy_stride, const float* x, int64_t x_stride,
                             int64_t m, int64_t n, int64_t k, float* scratch, float* dw,
                             int64_t dw_stride) {
  FlushSubnormals flush;
  outer_products<true>(dy, dy_stride, x, x_stride, m, n, k, scratch, dw, dw_stride);
}

#if defined(FATHOM_SIMD_IS_avx512)
namespace {

constexpr int64_t kAheadTokens = 8;

// Two rows of 16 floats as 16 pairs of bf16, the first row in the low halves.
inline __m512i pairs(__m512 even, __m512 odd) {
  const __m512i low = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(even)));
  const __m512i high = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(odd)));
  return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}

// Columns [0, cols) of m rows as panels [(m + 1) / 2, width] of pairs, zeros past the ends.
inline void pack_pairs(const float* in, int64_t stride, int64_t m, int64_t cols, int64_t width,
                       uint32_t* out) {
  const int64_t panel = (m + 1) / 2 * width;
  for (int64_t t = 0; t < m; t += 2, in += 2 * stride, out += width) {
    const float* const next = t + 1 < m ? in + stride : nullptr;
    for (int64_t c = 0; c < (cols + width - 1) / width * width; c += kLanes) {
      uint32_t* const to = out + c / width * panel + c % width;
      const int64_t count = cols - c < 0 ? 0 : cols - c < kLanes ? cols - c : kLanes;
      const auto mask = static_cast<__mmask16>((1u << count) - 1);
      const __m512 even = _mm512_maskz_loadu_ps(mask, in + c);
      const __m512 odd =
          next != nullptr ? _mm512_maskz_loadu_ps(mask, next + c) : _mm512_setzero_ps();
      __builtin_prefetch(in + kAheadTokens * stride + c);
      __builtin_prefetch(in + (kAheadTokens + 1) * stride + c);
      _mm512_storeu_si512(to, pairs(even, odd));
    }
  }
}

// R rows of dw by 64 columns: sums over `count` pairs of tokens, then added to dw.
template <int64_t R>
inline void pair_tile(const uint32_t* a, int64_t a_stride, const uint32_t* b, int64_t count,
                      int64_t cols, float* dw, int64_t dw_stride) {
  __m512 sum[R][4] = {};
  for (int64_t t = 0; t < count; ++t, a += a_stride, b += 64) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) v[j] = _mm512_loadu_si512(b + 16 * j);
#pragma GCC unroll 6
    for (int64_t i = 0; i < R; ++i) {
      const __m512bh w = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a[i])));
#pragma GCC unroll 4
      for (int64_t j = 0; j < 4; ++j)
        sum[i][j] = _mm512_dpbf16_ps(sum[i][j], w, reinterpret_cast<__m512bh>(v[j]));
    }
  }
  for (int64_t i = 0; i < R; ++i) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t left = cols - 16 * j;
      if (left <= 0) break;
      float* const p = dw + i * dw_stride + 16 * j;
      store_n(load_n(p, left < 16 ? left : 16) + F32x16{sum[i][j]}, p, left < 16 ? left : 16);
    }
  }
}

}  // namespace

// The same by vdpbf16ps: each step adds the products of two tokens, fma(even, fma(odd, sum)),
// subnormals as zero.
void add_outer_products_native_bf16(const float* dy, int64_t dy_stride, const float* x,
                                    int64_t x_stride, int64_t m, int64_t n, int64_t k,
                                    float* scratch, float* dw, int64_t dw_stride) {
  FlushSubnormals flush;
  auto* const panels = reinterpret_cast<uint32_t*>(scratch);
  uint32_t* const packed = panels + kBlock / 2 * ((k + 63) / 64 * 64);
  const int64_t width = (n + kLanes - 1) / kLanes * kLanes;
  for (; m > 0; m -= kBlock, dy += kBlock * dy_stride, x += kBlock * x_stride) {
    const int64_t block = m < kBlock ? m : kBlock, count = (block + 1) / 2;
    pack_pairs(dy, dy_stride, block, n, width, packed);
    pack_pairs(x, x_stride, block, k, 64, panels);
    for (int64_t j = 0; j < k; j += 64) {
      const int64_t cols = k - j < 64 ? k - j : 64;
      const uint32_t* const panel = panels + j * count;
      float* const out = dw + j;
      int64_t i = 0;
      for (; i + 6 <= n; i += 6)
        pair_tile<6>(packed + i, width, panel, count, cols, out + i * dw_stride, dw_stride);
      switch (n - i) {
        case 5:
          pair_tile<5>(packed + i, width, panel, count, cols, out + i * dw_stride, dw_stride);
          break;
        case 4:
          pair_tile<4>(packed + i, width, panel, count, cols, out + i * dw_stride, dw_stride);
          break;
        case 3:
          pair_tile<3>(packed + i, width, panel, count, cols, out + i * dw_stride, dw_stride);
          break;
        case 2:
          pair_tile<2>(packed + i, width, panel, count, cols, out + i * dw_stride, dw_stride);
          break;
        case 1:
          pair_tile<1>(packed + i, width, panel, count, cols, out + i * dw_stride, dw_stride);
          break;
        default:
          break;
      }
    }
  }
}
#endif

// inout[c] += sum over the rows, in order and in double; cols <= 128.
void column_sums(const float* x, int64_t stride, int64_t rows, int64_t cols, float* inout) {
  double sum[128] = {};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) sum[c] += x[r * stride + c];
  }
  for (int64_t c = 0; c < cols; ++c) inout[c] = static_cast<float>(inout[c] + sum[c]);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
