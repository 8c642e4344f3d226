// The register tiles of the linear layers. A tile keeps MR x 8 accumulators of 16 lanes, walks k once and reduces each accumulator by the
// tree of reduce_add; every output has the same order of sums in every tile, so gemm.cc may choose tiles by shape.
//
// bf16: vdpbf16ps computes fma(even, fma(odd, acc)) in each lane on the pair (2i, 2i + 1), subnormals read and written as zero. The same
// bits come from f32 FMAs over operands in split form (each 32 elements widened and stored as 16 odd, then 16 even ones) under
// the processor's flush-to-zero modes. So a CPU without the instruction, or with a slow one, computes no other model.
#include "kernels/gemm-inl.h"
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// One register of lanes. A tile is computed register by register of its 16 lanes and kTileCols columns at a time, as many as
// the register file holds.
#if defined(FATHOM_SIMD_IS_avx512)
using Part = __m512;
constexpr int64_t kTileCols = 8;
inline Part load_part(const void* p) { return _mm512_loadu_ps(p); }
inline void store_part(Part a, float* p) { _mm512_storeu_ps(p, a); }
inline Part fma_part(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }
inline Part odd_bf16(Part a) { return _mm512_and_ps(a, _mm512_castsi512_ps(_mm512_set1_epi32(-0x10000))); }
inline Part even_bf16(Part a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 16)); }
#elif defined(FATHOM_SIMD_IS_avx2)
using Part = __m256;
constexpr int64_t kTileCols = 4;
inline Part load_part(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
inline void store_part(Part a, float* p) { _mm256_storeu_ps(p, a); }
inline Part fma_part(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
inline Part odd_bf16(Part a) { return _mm256_and_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32(-0x10000))); }
inline Part even_bf16(Part a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 16)); }
#else
typedef float Part __attribute__((vector_size(16)));  // the compiler's: SSE on x86, NEON on ARM
typedef uint32_t Bits __attribute__((vector_size(16)));
constexpr int64_t kTileCols = 4;
inline Part load_part(const void* p) {
  Part a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
inline void store_part(Part a, float* p) { __builtin_memcpy(p, &a, sizeof a); }
inline Part fma_part(Part a, Part b, Part c) { return a * b + c; }
inline Part odd_bf16(Part a) { return reinterpret_cast<Part>(reinterpret_cast<Bits>(a) & 0xffff0000u); }
inline Part even_bf16(Part a) { return reinterpret_cast<Part>(reinterpret_cast<Bits>(a) << 16); }
#endif
constexpr int64_t kPartLanes = sizeof(Part) / sizeof(float);

// How one step of k is read and multiplied; p = first lane of the part.
struct F32 {  // also split form times split form
  using X = float;
  using W = float;
  using XPart = Part;
  static constexpr int64_t kStep = 16;
  static XPart load_x(const float* x, int64_t p) { return load_part(x + p); }
  static Part load_w(const float* w, int64_t p) { return load_part(w + p); }
  static Part dot(XPart x, Part w, Part sum) { return fma_part(x, w, sum); }
};

struct SplitBf16 {  // x in split form, w as stored
  using X = float;
  using W = uint16_t;
  struct XPart {
    Part odd, even;
  };
  static constexpr int64_t kStep = 32;
  static XPart load_x(const float* x, int64_t p) { return {load_part(x + p), load_part(x + 16 + p)}; }
  static Part load_w(const uint16_t* w, int64_t p) { return load_part(w + 2 * p); }
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
  static Part load_w(const uint16_t* w, int64_t) { return load_part(w); }
  static Part dot(XPart x, Part w, Part sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
};
#endif

// totals[j] = reduce_add(sums[j]) for the 8 accumulators of one row of a tile, pairs as there: i + 8, i + 4, i + 2, i + 1.
#if defined(FATHOM_SIMD_IS_avx2) || defined(FATHOM_SIMD_IS_avx512)
inline void reduce_8(const float (*sums)[16], float* totals) {
  __m256 a[8], b[4], c[2];
  for (int j = 0; j < 8; ++j) a[j] = _mm256_add_ps(_mm256_load_ps(sums[j]), _mm256_load_ps(sums[j] + 8));
  for (int j = 0; j < 4; ++j) {  // [j | j + 4], four lanes each
    b[j] = _mm256_add_ps(_mm256_permute2f128_ps(a[j], a[j + 4], 0x20), _mm256_permute2f128_ps(a[j], a[j + 4], 0x31));
  }
  for (int j = 0; j < 2; ++j) {  // [2j, 2j + 1 | 2j + 4, 2j + 5], two lanes each
    const __m256 even = b[2 * j], odd = b[2 * j + 1];
    c[j] = _mm256_add_ps(_mm256_shuffle_ps(even, odd, 0x44), _mm256_shuffle_ps(even, odd, 0xee));
  }
  _mm256_storeu_ps(totals, _mm256_add_ps(_mm256_shuffle_ps(c[0], c[1], 0x88), _mm256_shuffle_ps(c[0], c[1], 0xdd)));
}
#else
inline void reduce_8(const float (*sums)[16], float* totals) {
  for (int j = 0; j < 8; ++j) totals[j] = reduce_add(load(sums[j]));
}
#endif

// Keeps a loaded value in its register: read again from memory by each FMA, the loads would cost more than the FMAs.
inline void keep(Part& a) {
#if defined(__x86_64__)
  asm("" : "+v"(a));
#endif
}

// One part of MR x kTileCols sums, [MR][8][16]: to = from (null: 0) + the products of k in [0, count), whole steps.
template <class Op, int64_t MR>
inline void accumulate(const typename Op::X* const* x, const typename Op::W* const* w, int64_t count, int64_t part,
                       const float* from, float* to) {
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
    for (int64_t i = 0; i < MR; ++i) xv[i] = Op::load_x(x[i] + k, part);
#pragma GCC unroll 8
    for (int64_t j = 0; j < kTileCols; ++j) {
      Part wv = Op::load_w(w[j] + k, part);
      if (MR > 1) keep(wv);
#pragma GCC unroll 8
      for (int64_t i = 0; i < MR; ++i) sum[i][j] = Op::dot(xv[i], wv, sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < kTileCols; ++j) store_part(sum[i][j], to + (i * kPanelRows + j) * 16 + part);
  }
}

// The same for all parts and 8 columns.
template <class Op, int64_t MR>
inline void accumulate_all(const typename Op::X* const* x, const typename Op::W* const* w, int64_t count, const float* from,
                           float* to) {
  for (int64_t part = 0; part < 16; part += kPartLanes) {
    for (int64_t j = 0; j < kPanelRows; j += kTileCols) {
      accumulate<Op, MR>(x, w + j, count, part, from != nullptr ? from + j * 16 : nullptr, to + j * 16);
    }
  }
}

// Rows m0 .. m0 + MR of x with rows n0 .. n0 + 8 of w; rows of w past the end repeat the last one and are not stored.
template <class Op, int64_t MR>
void tile(const GemmBlock& b, int64_t m0, int64_t n0) {
  using X = typename Op::X;
  using W = typename Op::W;
  const X* x[MR];
  const W* w[kPanelRows];
  for (int64_t i = 0; i < MR; ++i) x[i] = static_cast<const X*>(b.x) + (m0 + i) * b.x_stride;
  for (int64_t j = 0; j < kPanelRows; ++j) {
    w[j] = static_cast<const W*>(b.w) + (n0 + j < b.n ? n0 + j : b.n - 1) * b.w_stride;
  }
  alignas(64) float finished[MR][kPanelRows][16];
  float* const partial = b.partial + m0 * kPanelRows * 16;
  float* const sums = b.last ? finished[0][0] : partial;
  const int64_t whole = b.k / Op::kStep * Op::kStep;
  accumulate_all<Op, MR>(x, w, whole, b.first ? nullptr : partial, sums);
  if (whole < b.k) {  // the rest of both sides, filled up with zeros: 0 * 0 whatever lies behind a row
    const auto rest = static_cast<size_t>(b.k - whole);
    X x_rest[MR][Op::kStep] = {};
    W w_rest[kPanelRows][Op::kStep] = {};
    for (int64_t i = 0; i < MR; ++i) {
      // Split form is filled up already.
      __builtin_memcpy(x_rest[i], x[i] + whole, (sizeof(X) != sizeof(W) ? Op::kStep : rest) * sizeof(X));
      x[i] = x_rest[i];
    }
    for (int64_t j = 0; j < kPanelRows; ++j) {
      __builtin_memcpy(w_rest[j], w[j] + whole, rest * sizeof(W));
      w[j] = w_rest[j];
    }
    accumulate_all<Op, MR>(x, w, Op::kStep, sums, sums);
  }
  if (!b.last) return;
  for (int64_t i = 0; i < MR; ++i) {
    float totals[kPanelRows];
    reduce_8(finished[i], totals);
    float* const y = b.y + (m0 + i) * b.y_stride + n0;
    const int64_t n = b.n - n0 < kPanelRows ? b.n - n0 : kPanelRows;
    for (int64_t j = 0; j < n; ++j) y[j] = b.bias != nullptr ? totals[j] + b.bias[n0 + j] : totals[j];
  }
}

// The share of one tile in fetching what comes next.
inline void fetch_next(const GemmBlock& b, int64_t m0) {
  const int64_t lines = (b.next_bytes + 63) / 64;
  const int64_t begin = lines * b.next_rows * m0 / b.m, end = lines * b.next_rows * (m0 + kTileRows) / b.m;
  for (int64_t i = begin; i < end; ++i) {
    __builtin_prefetch(static_cast<const char*>(b.next) + i / lines * b.next_stride + i % lines * 64, 0, 3);
  }
}

template <class Op>
__attribute__((noinline)) void gemm(const GemmBlock& b) {
  for (int64_t n = 0; n < b.n; n += kPanelRows) {
    int64_t m = 0;
    for (; m + kTileRows <= b.m; m += kTileRows) {
      if (b.m > kTileRows) fetch_next(b, m);
      tile<Op, kTileRows>(b, m, n);
    }
    if (b.m - m == 2) tile<Op, 2>(b, m, n);
    if (b.m - m == 1) tile<Op, 1>(b, m, n);
  }
}

// Subnormals as zero, in and out, as vdpbf16ps has them.
class FlushSubnormals {
#if defined(FATHOM_SIMD_IS_avx2) || defined(FATHOM_SIMD_IS_avx512)
 public:
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON | 0x40); }
  ~FlushSubnormals() { _mm_setcsr(before_); }

 private:
  unsigned before_;
#else
 public:
  FlushSubnormals() {}
#endif
};

}  // namespace

void gemm_f32(const GemmBlock& b) { gemm<F32>(b); }

void gemm_split_bf16(const GemmBlock& b) {
  FlushSubnormals flush;
  gemm<F32>(b);
}

void gemm_split_bf16_in_place(const GemmBlock& b) {
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
  for (; n > 0; n -= 32, in += 32, out += 32) {
    uint16_t rest[32] = {};
    const uint16_t* from = in;
    if (n < 32) from = static_cast<const uint16_t*>(__builtin_memcpy(rest, in, static_cast<size_t>(n) * 2));
    for (int64_t p = 0; p < 16; p += kPartLanes) {
      const Part pairs = load_part(from + 2 * p);
      store_part(odd_bf16(pairs), out + p);
      store_part(even_bf16(pairs), out + 16 + p);
    }
  }
}

// To bf16, nearest even; NaN stays NaN.
void round_to_bf16(const float* in, int64_t n, uint16_t* out) {
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, in[i]);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    out[i] = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? bits >> 16 | 0x40 : rounded);
  }
}

}  // namespace fathom::FATHOM_SIMD_TARGET
