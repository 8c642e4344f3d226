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
#include "kernels/f8-inl.h"
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

// How one step of k is read and multiplied; p = first lane of the part. kScaled: each run of
// kScaleColumns is summed by itself and multiplied by its scale. Rest: the same, in steps of what x
// is filled up to.
struct F32 {
  using Rest = F32;
  using X = float;
  using W = float;
  using XPart = Part;
  using WPart = Part;
  static constexpr int64_t kStep = 16;
  static constexpr bool kScaled = false;
  static XPart load_x(const float* x, int64_t p) { return load_part(x + p); }
  static WPart load_w(const float* w, int64_t p) { return load_part(w + p); }
  static Part dot(XPart x, WPart w, Part sum) { return fma_part(x, w, sum); }
};

#if defined(FATHOM_SIMD_IS_avx512) || defined(FATHOM_SIMD_IS_avx2)
// Widened in registers, to the bits that dequantize_weight() gives.
struct F16 : F32 {
  using Rest = F16;
  using W = uint16_t;
  static WPart load_w(const uint16_t* w, int64_t p) {
    Halves h;
    __builtin_memcpy(&h, w + p, sizeof h);
    return widen_halves(h);
  }
};
#endif

inline void keep(OddEven& a) {
  keep(a.odd);
  keep(a.even);
}

struct SplitBf16 {  // x in split form, w as stored
  using Rest = SplitBf16;
  using X = float;
  using W = uint16_t;
  using XPart = OddEven;
  using WPart = Part;
  static constexpr int64_t kStep = 32;
  static constexpr bool kScaled = false;
  static XPart load_x(const float* x, int64_t p) {
    return {load_part(x + p), load_part(x + 16 + p)};
  }
  static WPart load_w(const uint16_t* w, int64_t p) { return load_part(w + 2 * p); }
  static Part dot(const XPart& x, WPart w, Part sum) {
    return fma_part(x.even, even_bf16(w), fma_part(x.odd, odd_bf16(w), sum));
  }
};

struct SplitF8 : SplitBf16 {
  using Rest = SplitF8;
  using W = uint8_t;
  using WPart = OddEven;
  static constexpr bool kScaled = true;
  static WPart load_w(const uint8_t* w, int64_t p) { return split_f8(w + 2 * p); }
  static Part dot(const XPart& x, const WPart& w, Part sum) {
    return fma_part(x.even, w.even, fma_part(x.odd, w.odd, sum));
  }
};

#if defined(FATHOM_SIMD_IS_avx512)
inline void keep(PairsOfF8& a) {
  keep(a.first);
  keep(a.second);
}

inline Part dot_pairs(Part x, Part w, Part sum) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
}

struct SplitF8Lookup : SplitF8 {  // two steps, whose codes are pairs of bf16 first
  struct XPart {
    OddEven first, second;
  };
  using WPart = PairsOfF8;
  static constexpr int64_t kStep = 64;
  static XPart load_x(const float* x, int64_t) {
    return {SplitF8::load_x(x, 0), SplitF8::load_x(x + 32, 0)};
  }
  static WPart load_w(const uint8_t* w, int64_t) { return pairs_of_f8(_mm512_loadu_si512(w)); }
  static Part dot(const XPart& x, const WPart& w, Part sum) {
    return SplitBf16::dot(x.second, w.second, SplitBf16::dot(x.first, w.first, sum));
  }
};

struct NativeBf16 {
  using Rest = NativeBf16;
  using X = uint16_t;
  using W = uint16_t;
  using XPart = Part;
  using WPart = Part;
  static constexpr int64_t kStep = 32;
  static constexpr bool kScaled = false;
  static XPart load_x(const uint16_t* x, int64_t) { return load_part(x); }
  static WPart load_w(const uint16_t* w, int64_t) { return load_part(w); }
  static Part dot(XPart x, WPart w, Part sum) { return dot_pairs(x, w, sum); }
};

inline Part pair_of_f8(const uint8_t* codes) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  return pairs_of_f8(_mm512_zextsi256_si512(half)).first;
}

struct NativeF8Rest : NativeBf16 {
  using W = uint8_t;
  static WPart load_w(const uint8_t* w, int64_t) { return pair_of_f8(w); }
};

struct NativeF8 {  // two steps of pairs
  using Rest = NativeF8Rest;
  using X = uint16_t;
  using W = uint8_t;
  struct XPart {
    Part first, second;
  };
  using WPart = PairsOfF8;
  static constexpr int64_t kStep = 64;
  static constexpr bool kScaled = true;
  static XPart load_x(const uint16_t* x, int64_t) { return {load_part(x), load_part(x + 32)}; }
  static WPart load_w(const uint8_t* w, int64_t) { return pairs_of_f8(_mm512_loadu_si512(w)); }
  static Part dot(const XPart& x, const WPart& w, Part sum) {
    return dot_pairs(x.second, w.second, dot_pairs(x.first, w.first, sum));
  }
};
#endif

// FP8 brought into bf16 before.
template <class Op>
struct Scaled : Op {
  using Rest = Scaled;
  static constexpr bool kScaled = true;
};

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

// f(i, j) for MR rows and C columns, unrolled.
template <int64_t MR, int64_t C, class F>
[[gnu::always_inline]] inline void each_sum(const F& f) {
#pragma GCC unroll 8
  for (int64_t i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < C; ++j) f(i, j);
  }
}

// One part of MR x C sums += the products of k in [begin, end), whole steps.
template <class Op, int64_t MR, int64_t C>
[[gnu::always_inline]] inline void add_products(const typename Op::X* x, int64_t x_stride,
                                                const typename Op::W* const* w, Fetch fetch,
                                                int64_t begin, int64_t end, int64_t part,
                                                Part (&sum)[MR][C]) {
  for (int64_t k = begin; k < end; k += Op::kStep) {
    typename Op::XPart xv[MR];
#pragma GCC unroll 8
    for (int64_t i = 0; i < MR; ++i) xv[i] = Op::load_x(x + i * x_stride + k, part);
#pragma GCC unroll 8
    for (int64_t j = 0; j < C; ++j) {
      typename Op::WPart wv = Op::load_w(w[j] + k, part);
      if (part == 0) {  // a step of w is a line, or part of one
        const char* const line = reinterpret_cast<const char*>(w[j] + k);
        __builtin_prefetch(line + fetch.ahead, 0, 2);
        __builtin_prefetch(line + fetch.near);
      }
      if (MR > 1) keep(wv);
#pragma GCC unroll 8
      for (int64_t i = 0; i < MR; ++i) sum[i][j] = Op::dot(xv[i], wv, sum[i][j]);
    }
  }
}

// Sums [MR][8][16]: to = from (null: 0) + the products of k in [0, count), whole steps.
template <class Op, int64_t MR>
inline void accumulate(const typename Op::X* x, int64_t x_stride, const typename Op::W* const* w,
                       Fetch fetch, int64_t count, const float* from, float* to) {
  for (int64_t part = 0; part < 16; part += kPartLanes) {
    for (int64_t c = 0; c < kPanelRows; c += kTileCols) {
      const auto place = [&](int64_t i, int64_t j) { return (i * kPanelRows + c + j) * 16 + part; };
      Part sum[MR][kTileCols];
      each_sum<MR, kTileCols>([&](int64_t i, int64_t j) {
        sum[i][j] = from != nullptr ? load_part(from + place(i, j)) : Part{};
      });
      add_products<Op, MR, kTileCols>(x, x_stride, w + c, fetch, 0, count, part, sum);
      each_sum<MR, kTileCols>(
          [&](int64_t i, int64_t j) { store_part(sum[i][j], to + place(i, j)); });
    }
  }
}

// to = the sum of scale times products, over whole runs.
template <class Op, int64_t MR>
inline void accumulate_runs(const typename Op::X* x, int64_t x_stride,
                            const typename Op::W* const* w, const float* scales, Fetch fetch,
                            int64_t runs, float* to) {
  constexpr int64_t kCols = MR == 1 ? kTileCols : kTileCols / 2;  // two registers each
  for (int64_t part = 0; part < 16; part += kPartLanes) {
    for (int64_t c = 0; c < kPanelRows; c += kCols) {
      Part total[MR][kCols];
      each_sum<MR, kCols>([&](int64_t i, int64_t j) { total[i][j] = Part{}; });
      for (int64_t r = 0; r < runs; ++r) {
        Part sum[MR][kCols];
        each_sum<MR, kCols>([&](int64_t i, int64_t j) { sum[i][j] = Part{}; });
        add_products<Op, MR, kCols>(x, x_stride, w + c, fetch, r * kScaleColumns,
                                    (r + 1) * kScaleColumns, part, sum);
        const Part scale = set_part(scales[r]);
        each_sum<MR, kCols>(
            [&](int64_t i, int64_t j) { total[i][j] = fma_part(sum[i][j], scale, total[i][j]); });
      }
      each_sum<MR, kCols>([&](int64_t i, int64_t j) {
        store_part(total[i][j], to + (i * kPanelRows + c + j) * 16 + part);
      });
    }
  }
}

// What accumulate() makes of any number of columns: those behind whole steps are filled up with
// zeros on both sides (0 * 0 whatever lies behind a row).
template <class Op, int64_t MR>
__attribute__((noinline)) void accumulate_ragged(const typename Op::X* x, int64_t x_stride,
                                                 const typename Op::W* const* w, Fetch fetch,
                                                 int64_t count, float* to) {
  using X = typename Op::X;
  using W = typename Op::W;
  using Rest = typename Op::Rest;
  constexpr bool kSplit = sizeof(typename Rest::XPart) != sizeof(Part);
  const int64_t whole = count & -Op::kStep,
                filled = (count - whole + Rest::kStep - 1) & -Rest::kStep;
  const auto rest = static_cast<size_t>(count - whole);
  accumulate<Op, MR>(x, x_stride, w, fetch, whole, nullptr, to);
  X x_rest[MR][Op::kStep] = {};
  W w_rest[kPanelRows][Op::kStep] = {};
  const W* w_rows[kPanelRows];
  for (int64_t i = 0; i < MR; ++i) {
    // Split form is filled up already.
    __builtin_memcpy(x_rest[i], x + i * x_stride + whole,
                     (kSplit ? static_cast<size_t>(filled) : rest) * sizeof(X));
  }
  for (int64_t j = 0; j < kPanelRows; ++j) {
    __builtin_memcpy(w_rest[j], w[j] + whole, rest * sizeof(W));
    w_rows[j] = w_rest[j];
  }
  accumulate<Rest, MR>(x_rest[0], Op::kStep, w_rows, {}, filled, to, to);
}

// Rows m0 .. m0 + MR of x with rows n0 .. n0 + 8 of w.
template <class Op, int64_t MR>
__attribute__((noinline)) void tile(const GemmBlock& b, const typename Op::W* const* w, int64_t m0,
                                    int64_t n0) {
  const auto* const x = static_cast<const typename Op::X*>(b.x) + m0 * b.x_stride;
  alignas(64) float finished[MR][kPanelRows][16];
  float* const sums = finished[0][0];
  const Fetch fetch = m0 == 0 ? b.fetch : Fetch{};
  if constexpr (Op::kScaled) {
    const int64_t runs = b.k / kScaleColumns, whole = runs * kScaleColumns;
    accumulate_runs<Op, MR>(x, b.x_stride, w, b.scales, fetch, runs, sums);
    if (whole < b.k) {
      const typename Op::W* at[kPanelRows];
      for (int64_t j = 0; j < kPanelRows; ++j) at[j] = w[j] + whole;
      alignas(64) float run[MR * kPanelRows * 16];
      accumulate_ragged<Op, MR>(x + whole, b.x_stride, at, fetch, b.k - whole, run);
      const Part scale = set_part(b.scales[runs]);
      for (int64_t i = 0; i < MR * kPanelRows * 16; i += kPartLanes)
        store_part(fma_part(load_part(run + i), scale, load_part(sums + i)), sums + i);
    }
  } else if (b.k % Op::kStep == 0) {
    accumulate<Op, MR>(x, b.x_stride, w, fetch, b.k, nullptr, sums);
  } else {
    accumulate_ragged<Op, MR>(x, b.x_stride, w, fetch, b.k, sums);
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
#endif

void gemm_split_bf16(const GemmBlock& b) {
  FlushSubnormals flush;
  b.scales != nullptr ? gemm<Scaled<SplitBf16>>(b) : gemm<SplitBf16>(b);
}
void gemm_split_f8(const GemmBlock& b) {
  FlushSubnormals flush;
  gemm<SplitF8>(b);
}

#if defined(FATHOM_SIMD_IS_avx512)
void gemm_split_f8_by_lookup(const GemmBlock& b) {
  FlushSubnormals flush;
  gemm<SplitF8Lookup>(b);
}
void gemm_native_bf16(const GemmBlock& b) {
  FlushSubnormals flush;
  b.scales != nullptr ? gemm<Scaled<NativeBf16>>(b) : gemm<NativeBf16>(b);
}
void gemm_native_f8(const GemmBlock& b) {
  FlushSubnormals flush;
  gemm<NativeF8>(b);
}
#endif

// body(32 elements, i) for those from i on of n, the last ones filled up with zeros.
template <class T, class Body>
inline void in_whole_steps(const T* in, int64_t n, Body body) {
  const int64_t whole = n & -32;
  for (int64_t i = 0; i < whole; i += 32) body(in + i, i);
  if (whole == n) return;
  T rest[32] = {};
  __builtin_memcpy(rest, in + whole, static_cast<size_t>(n - whole) * sizeof(T));
  body(rest, whole);
}

// n bf16 to split form, filled up with zeros to a multiple of 32.
void split_bf16(const uint16_t* in, int64_t n, float* out) {
  in_whole_steps(in, n, [&](const uint16_t* from, int64_t i) {
    for (int64_t p = 0; p < 16; p += kPartLanes) {
      const Part pairs = load_part(from + 2 * p);
      store_part(odd_bf16(pairs), out + i + p);
      store_part(even_bf16(pairs), out + i + 16 + p);
    }
  });
}

// n codes of FP8 to bf16, exactly, filled up likewise.
void f8_to_bf16(const uint8_t* in, int64_t n, uint16_t* out) {
  in_whole_steps(in, n, [&](const uint8_t* from, int64_t i) {
    for (int64_t p = 0; p < 16; p += kPartLanes) {
      const OddEven w = split_f8(from + 2 * p);
      const Bits pairs = reinterpret_cast<Bits>(w.odd) | reinterpret_cast<Bits>(w.even) >> 16;
      __builtin_memcpy(out + i + 2 * p, &pairs, sizeof pairs);
    }
  });
}
#if defined(FATHOM_SIMD_IS_avx512)
void f8_to_bf16_by_lookup(const uint8_t* in, int64_t n, uint16_t* out) {
  in_whole_steps(in, n, [&](const uint8_t* from, int64_t i) {
    store_part(pair_of_f8(from), reinterpret_cast<float*>(out + i));
  });
}
#endif

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
