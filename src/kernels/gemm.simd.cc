// The register tiles of the linear layers for few rows of x. A tile keeps MR x 8 accumulators of 16
// lanes, walks k once and reduces each accumulator by the tree of reduce_add; every output has the
// same order of sums in every tile, here and in gemm_packed.simd.cc, so gemm.cc may choose tiles by
// shape.
//
// bf16: vdpbf16ps computes fma(even, fma(odd, acc)) in each lane on the pair (2i, 2i + 1),
// subnormals read and written as zero. The same bits come from f32 FMAs over operands in split form
// (each 32 elements widened and stored as 16 odd, then 16 even ones) under the processor's
// flush-to-zero modes. So a CPU without the instruction, or with a slow one, computes no other
// model.
#include "kernels/bf16-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// A tile is computed register by register of its 16 lanes and kTileCols columns at a time, as many
// as the register file holds.
#if defined(FATHOM_SIMD_IS_avx512)
constexpr int64_t kTileCols = 8;
#else
constexpr int64_t kTileCols = 4;
#endif

typedef uint32_t Bits __attribute__((vector_size(sizeof(Part))));
inline Part odd_bf16(Part a) {
  return reinterpret_cast<Part>(reinterpret_cast<Bits>(a) & 0xffff0000u);
}
inline Part even_bf16(Part a) { return reinterpret_cast<Part>(reinterpret_cast<Bits>(a) << 16); }

#if defined(FATHOM_SIMD_IS_avx512) || defined(FATHOM_SIMD_IS_avx2)
typedef int16_t Halves __attribute__((vector_size(sizeof(Part) / 2)));
#if defined(FATHOM_SIMD_IS_avx512)
inline Part widen_halves(Halves h) { return _mm512_cvtph_ps(reinterpret_cast<__m256i>(h)); }
inline Halves widen_codes(const uint8_t* w) {
  return reinterpret_cast<Halves>(
      _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w))));
}
#else
inline Part widen_halves(Halves h) { return _mm256_cvtph_ps(reinterpret_cast<__m128i>(h)); }
inline Halves widen_codes(const uint8_t* w) {
  return reinterpret_cast<Halves>(
      _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(w))));
}
#endif
inline Part widen_f16(const uint16_t* w) {
  Halves h;
  __builtin_memcpy(&h, w, sizeof h);
  return widen_halves(h);
}
// As load_f8e4m3() of quantize.simd.cc, but 2^8 too small: the scale makes up for it. Only NaN, the
// largest code, carries into the exponent bit that makes it one.
inline Part widen_f8(const uint8_t* w) {
  const Halves code = widen_codes(w);
  const Halves size = (code << 7) & 0x3f80, sign = code & int16_t{-0x8000};
  return widen_halves(size | sign | ((size + 0x80) & 0x4000));
}
#endif

// How one step of k is read and multiplied; p = first lane of the part, scale = that of w here.
struct F32 {
  using X = float;
  using W = float;
  using XPart = Part;
  static constexpr int64_t kStep = 16;
  static XPart load_x(const float* x, int64_t p) { return load_part(x + p); }
  static Part load_w(const float* w, int64_t p, Part) { return load_part(w + p); }
  static Part dot(XPart x, Part w, Part sum) { return fma_part(x, w, sum); }
};

#if defined(FATHOM_SIMD_IS_avx512) || defined(FATHOM_SIMD_IS_avx2)
// Widened in registers, to the bits that dequantize_weight() gives.
struct F16 : F32 {
  using W = uint16_t;
  static Part load_w(const uint16_t* w, int64_t p, Part) { return widen_f16(w + p); }
};

struct F8 : F32 {
  using W = uint8_t;
  static Part load_w(const uint8_t* w, int64_t p, Part scale) { return widen_f8(w + p) * scale; }
};
#endif

struct SplitBf16 {  // x in split form, w as stored
  using X = float;
  using W = uint16_t;
  struct XPart {
    Part odd, even;
  };
  static constexpr int64_t kStep = 32;
  static XPart load_x(const float* x, int64_t p) {
    return {load_part(x + p), load_part(x + 16 + p)};
  }
  static Part load_w(const uint16_t* w, int64_t p, Part) { return load_part(w + 2 * p); }
  static Part dot(XPart x, Part w, Part sum) {
    return fma_part(x.even, even_bf16(w), fma_part(x.odd, odd_bf16(w), sum));
  }
};

#if defined(FATHOM_SIMD_IS_avx512)
struct NativeBf16 {
  using X = uint16_t;
  using W = uint16_t;
  using XPart = Part;
  static constexpr int64_t kStep = 32;
  static XPart load_x(const uint16_t* x, int64_t) { return load_part(x); }
  static Part load_w(const uint16_t* w, int64_t, Part) { return load_part(w); }
  static Part dot(XPart x, Part w, Part sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
};
#endif

// totals[j] = reduce_add(sums[j]) for the 8 accumulators of one row of a tile, pairs as there: i +
// 8, i + 4, i + 2, i + 1.
#if defined(FATHOM_SIMD_IS_avx512)
inline void reduce_8(const float (*sums)[16], float* totals) {
  __m512 a[8], b[4], c[2];
  for (int j = 0; j < 8; ++j) a[j] = _mm512_load_ps(sums[j]);
  for (int j = 0; j < 4; ++j) {  // quarters j, j, j + 4, j + 4
    b[j] = _mm512_add_ps(_mm512_shuffle_f32x4(a[j], a[j + 4], 0x44),
                         _mm512_shuffle_f32x4(a[j], a[j + 4], 0xee));
  }
  for (int j = 0; j < 2; ++j) {  // quarters j, j + 4, j + 2, j + 6
    c[j] = _mm512_add_ps(_mm512_shuffle_f32x4(b[j], b[j + 2], 0x88),
                         _mm512_shuffle_f32x4(b[j], b[j + 2], 0xdd));
  }
  // Two lanes each of 0, 1 | 4, 5 | 2, 3 | 6, 7, then one and its copy.
  const __m512 d =
      _mm512_add_ps(_mm512_shuffle_ps(c[0], c[1], 0x44), _mm512_shuffle_ps(c[0], c[1], 0xee));
  const __m512 e = _mm512_add_ps(d, _mm512_permute_ps(d, 0xb1));
  const __m512i order = _mm512_setr_epi32(0, 2, 8, 10, 4, 6, 12, 14, 0, 0, 0, 0, 0, 0, 0, 0);
  _mm256_storeu_ps(totals, _mm512_castps512_ps256(_mm512_permutexvar_ps(order, e)));
}
#elif defined(FATHOM_SIMD_IS_avx2)
inline void reduce_8(const float (*sums)[16], float* totals) {
  __m256 a[8], b[4], c[2];
  for (int j = 0; j < 8; ++j)
    a[j] = _mm256_add_ps(_mm256_load_ps(sums[j]), _mm256_load_ps(sums[j] + 8));
  for (int j = 0; j < 4; ++j) {  // [j | j + 4], four lanes each
    b[j] = _mm256_add_ps(_mm256_permute2f128_ps(a[j], a[j + 4], 0x20),
                         _mm256_permute2f128_ps(a[j], a[j + 4], 0x31));
  }
  for (int j = 0; j < 2; ++j) {  // [2j, 2j + 1 | 2j + 4, 2j + 5], two lanes each
    const __m256 even = b[2 * j], odd = b[2 * j + 1];
    c[j] = _mm256_add_ps(_mm256_shuffle_ps(even, odd, 0x44), _mm256_shuffle_ps(even, odd, 0xee));
  }
  _mm256_storeu_ps(totals, _mm256_add_ps(_mm256_shuffle_ps(c[0], c[1], 0x88),
                                         _mm256_shuffle_ps(c[0], c[1], 0xdd)));
}
#else
inline void reduce_8(const float (*sums)[16], float* totals) {
  for (int j = 0; j < 8; ++j) totals[j] = reduce_add(load(sums[j]));
}
#endif

// One part of MR x kTileCols sums, [MR][8][16]: to = from (null: 0) + the products of k in [0,
// count), whole steps.
template <class Op, int64_t MR>
inline void accumulate(const typename Op::X* x, int64_t x_stride, const typename Op::W* const* w,
                       float scale, int64_t ahead, int64_t count, int64_t part, const float* from,
                       float* to) {
  const Part scales = set_part(scale);
  Part sum[MR][kTileCols];
#pragma GCC unroll 8
  for (int64_t i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < kTileCols; ++j) {
      sum[i][j] = from != nullptr ? load_part(from + (i * kPanelRows + j) * 16 + part) : Part{};
    }
  }
  for (int64_t k = 0; k < count; k += Op::kStep) {
    typename Op::XPart xv[MR];
#pragma GCC unroll 8
    for (int64_t i = 0; i < MR; ++i) xv[i] = Op::load_x(x + i * x_stride + k, part);
#pragma GCC unroll 8
    for (int64_t j = 0; j < kTileCols; ++j) {
      Part wv = Op::load_w(w[j] + k, part, scales);
      // a step of w is a line, or part of one
      if (part == 0) __builtin_prefetch(reinterpret_cast<const char*>(w[j] + k) + ahead, 0, 2);
      if (MR > 1) keep(wv);
#pragma GCC unroll 8
      for (int64_t i = 0; i < MR; ++i) sum[i][j] = Op::dot(xv[i], wv, sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < kTileCols; ++j)
      store_part(sum[i][j], to + (i * kPanelRows + j) * 16 + part);
  }
}

// The same for all parts and 8 columns.
template <class Op, int64_t MR>
inline void accumulate_all(const typename Op::X* x, int64_t x_stride,
                           const typename Op::W* const* w, float scale, int64_t ahead,
                           int64_t count, const float* from, float* to) {
  for (int64_t part = 0; part < 16; part += kPartLanes) {
    for (int64_t j = 0; j < kPanelRows; j += kTileCols) {
      accumulate<Op, MR>(x, x_stride, w + j, scale, ahead, count, part,
                         from != nullptr ? from + j * 16 : nullptr, to + j * 16);
    }
  }
}

// The last, incomplete step of k: both sides filled up with zeros (0 * 0 whatever lies behind a
// row).
template <class Op, int64_t MR>
__attribute__((noinline)) void accumulate_rest(const typename Op::X* x, int64_t x_stride,
                                               const typename Op::W* const* w, float scale,
                                               int64_t whole, int64_t k, float* sums) {
  using X = typename Op::X;
  using W = typename Op::W;
  const auto rest = static_cast<size_t>(k - whole);
  constexpr bool kSplit = sizeof(typename Op::XPart) != sizeof(Part);
  X x_rest[MR][Op::kStep] = {};
  W w_rest[kPanelRows][Op::kStep] = {};
  const W* w_rows[kPanelRows];
  for (int64_t i = 0; i < MR; ++i) {
    // Split form is filled up already.
    __builtin_memcpy(x_rest[i], x + i * x_stride + whole, (kSplit ? Op::kStep : rest) * sizeof(X));
  }
  for (int64_t j = 0; j < kPanelRows; ++j) {
    __builtin_memcpy(w_rest[j], w[j] + whole, rest * sizeof(W));
    w_rows[j] = w_rest[j];
  }
  accumulate_all<Op, MR>(x_rest[0], Op::kStep, w_rows, scale, 0, Op::kStep, sums, sums);
}

// Rows m0 .. m0 + MR of x with rows n0 .. n0 + 8 of w.
template <class Op, int64_t MR>
__attribute__((noinline)) void tile(const GemmBlock& b, const typename Op::W* const* w, int64_t m0,
                                    int64_t n0) {
  const auto* const x = static_cast<const typename Op::X*>(b.x) + m0 * b.x_stride;
  alignas(64) float finished[MR][kPanelRows][16];
  float* const sums = finished[0][0];
  const int64_t whole = b.k & -Op::kStep;
  const int64_t ahead = m0 == 0 ? b.ahead : 0;
  // of one scale; a multiple of every step
  const int64_t run = b.scales != nullptr ? kScaleColumns : whole;
  for (int64_t k = 0; k == 0 || k < whole; k += run) {
    const typename Op::W* at[kPanelRows];
    for (int64_t j = 0; j < kPanelRows; ++j) at[j] = w[j] + k;
    accumulate_all<Op, MR>(x + k, b.x_stride, at, b.scales != nullptr ? b.scales[k / run] : 0,
                           ahead, whole - k < run ? whole - k : run, k > 0 ? sums : nullptr, sums);
    if (whole == 0) break;
  }
  if (whole < b.k) {
    const float scale = b.scales != nullptr ? b.scales[whole / kScaleColumns] : 0;
    accumulate_rest<Op, MR>(x, b.x_stride, w, scale, whole, b.k, sums);
  }
  float* y = b.y + m0 * b.y_stride + n0;
  for (int64_t i = 0; i < MR; ++i, y += b.y_stride) {
    float totals[kPanelRows];
    reduce_8(finished[i], totals);
    const int64_t n = b.n - n0 < kPanelRows ? b.n - n0 : kPanelRows;
    for (int64_t j = 0; j < n; ++j)
      y[j] = b.bias != nullptr ? totals[j] + b.bias[n0 + j] : totals[j];
  }
}

template <class Op>
__attribute__((noinline)) void gemm(const GemmBlock& b) {
  for (int64_t n = 0; n < b.n; n += kPanelRows) {
    // rows past the end repeat the last one and are not stored
    const typename Op::W* w[kPanelRows];
    for (int64_t j = 0; j < kPanelRows; ++j) {
      w[j] = static_cast<const typename Op::W*>(b.w) + (n + j < b.n ? n + j : b.n - 1) * b.w_stride;
    }
    int64_t m = 0;
    for (; m + kTileRows <= b.m; m += kTileRows) tile<Op, kTileRows>(b, w, m, n);
    if (b.m - m == 2) tile<Op, 2>(b, w, m, n);
    if (b.m - m == 1) tile<Op, 1>(b, w, m, n);
  }
}

}  // namespace

void gemm_f32(const GemmBlock& b) { gemm<F32>(b); }

#if defined(FATHOM_SIMD_IS_avx512) || defined(FATHOM_SIMD_IS_avx2)
void gemm_f16(const GemmBlock& b) { gemm<F16>(b); }
void gemm_f8(const GemmBlock& b) { gemm<F8>(b); }
#endif

void gemm_split_bf16(const GemmBlock& b) {
  FlushSubnormals flush;
  gemm<SplitBf16>(b);
}

#if defined(FATHOM_SIMD_IS_avx512)
void gemm_native_bf16(const GemmBlock& b) {
  FlushSubnormals flush;
  gemm<NativeBf16>(b);
}
#endif

// n bf16 to split form, filled up with zeros to a multiple of 32.
void split_bf16(const uint16_t* in, int64_t n, float* out) {
  const auto split = [&](const uint16_t* from, float* to) {
    for (int64_t p = 0; p < 16; p += kPartLanes) {
      const Part pairs = load_part(from + 2 * p);
      store_part(odd_bf16(pairs), to + p);
      store_part(even_bf16(pairs), to + 16 + p);
    }
  };
  const int64_t whole = n & -32;
  for (int64_t i = 0; i < whole; i += 32) split(in + i, out + i);
  if (whole == n) return;
  uint16_t rest[32] = {};
  __builtin_memcpy(rest, in + whole, static_cast<size_t>(n - whole) * 2);
  split(rest, out + whole);
}

// The products take subnormals for zero; the portable target keeps them.
void round_to_bf16(const float* in, int64_t n, uint16_t* out) {
#if defined(FATHOM_SIMD_IS_avx512) || defined(FATHOM_SIMD_IS_avx2)
  constexpr bool kFlush = true;
#else
  constexpr bool kFlush = false;
#endif
  for (int64_t i = 0; i < n; ++i) out[i] = to_bf16<kFlush>(in[i]);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
