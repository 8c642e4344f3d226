// The register tiles of the linear layers. A tile keeps MR x NR accumulators of 16 lanes, walks k once and reduces each accumulator by the tree
// of reduce_add; every output has the same order of sums in every tile, so gemm.cc may choose tiles by shape.
//
// The bf16 form of an operand: plain bf16 where vdpbf16ps exists. That instruction computes, per lane i, fma(even, fma(odd, acc)) on the
// pair (2i, 2i + 1), so elsewhere the operand is widened to f32 with each 32 elements stored as 16 odd then 16 even
// ones, and the f32 tile yields the same sums.
#include "kernels/gemm-inl.h"
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

struct F32Operand {
  using Element = float;
  using Vector = F32x16;
  static constexpr int64_t kStep = 16;
  static Vector load_step(const float* p) { return load(p); }
  static Vector load_tail(const float* p, int64_t n) { return load_n(p, n); }
  static F32x16 dot(Vector a, Vector b, F32x16 c) { return fma(a, b, c); }
};

#if defined(FATHOM_SIMD_IS_avx512)
struct Bf16Operand {
  using Element = uint16_t;
  using Vector = __m512i;
  static constexpr int64_t kStep = 32;
  static Vector load_step(const uint16_t* p) { return _mm512_loadu_si512(p); }
  static Vector load_tail(const uint16_t* p, int64_t n) {
    return _mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << n) - 1), p);
  }
  static F32x16 dot(Vector a, Vector b, F32x16 c) {
    return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b))};
  }
};
constexpr int64_t kTileRows = 4, kTileCols = 6;
#else
using Bf16Operand = F32Operand;  // split form
constexpr int64_t kTileRows = 2, kTileCols = 3;
#endif

// Rows m0 .. m0 + MR and n0 .. n0 + NR; rows past the end repeat the last one and are not stored.
template <class Operand, int64_t MR, int64_t NR>
inline void tile(const GemmBlock& b, int64_t m0, int64_t n0) {
  using Element = typename Operand::Element;
  const Element* x[MR];
  const Element* w[NR];
  for (int64_t i = 0; i < MR; ++i) {
    const int64_t row = m0 + i < b.m ? m0 + i : b.m - 1;
    x[i] = static_cast<const Element*>(b.x) + row * b.x_stride;
  }
  for (int64_t j = 0; j < NR; ++j) {
    const int64_t row = n0 + j < b.n ? n0 + j : b.n - 1;
    w[j] = static_cast<const Element*>(b.w) + row * b.w_stride;
  }
  F32x16 sum[MR][NR];
  for (int64_t i = 0; i < MR; ++i) {
    for (int64_t j = 0; j < NR; ++j) {
      const bool stored = !b.first && m0 + i < b.m && n0 + j < b.n;
      sum[i][j] = stored ? load(b.partial + ((m0 + i) * b.n + n0 + j) * kLanes) : zero();
    }
  }
  int64_t k = 0;
  for (; k + Operand::kStep <= b.k; k += Operand::kStep) {
    typename Operand::Vector xv[MR];
    for (int64_t i = 0; i < MR; ++i) xv[i] = Operand::load_step(x[i] + k);
    for (int64_t j = 0; j < NR; ++j) {
      const typename Operand::Vector wv = Operand::load_step(w[j] + k);
      for (int64_t i = 0; i < MR; ++i) sum[i][j] = Operand::dot(xv[i], wv, sum[i][j]);
    }
  }
  if (k < b.k) {  // both sides masked: 0 * 0 whatever lies behind the row
    typename Operand::Vector xv[MR];
    for (int64_t i = 0; i < MR; ++i) xv[i] = Operand::load_tail(x[i] + k, b.k - k);
    for (int64_t j = 0; j < NR; ++j) {
      const typename Operand::Vector wv = Operand::load_tail(w[j] + k, b.k - k);
      for (int64_t i = 0; i < MR; ++i) sum[i][j] = Operand::dot(xv[i], wv, sum[i][j]);
    }
  }
  for (int64_t i = 0; i < MR && m0 + i < b.m; ++i) {
    for (int64_t j = 0; j < NR && n0 + j < b.n; ++j) {
      if (b.last) {
        const float total = reduce_add(sum[i][j]);
        b.y[(m0 + i) * b.y_stride + n0 + j] = b.bias != nullptr ? total + b.bias[n0 + j] : total;
      } else {
        store(sum[i][j], b.partial + ((m0 + i) * b.n + n0 + j) * kLanes);
      }
    }
  }
}

template <class Operand>
void gemm(const GemmBlock& b) {
  for (int64_t n = 0; n < b.n; n += kTileCols) {
    int64_t m = 0;
    for (; m + 1 < b.m; m += kTileRows) tile<Operand, kTileRows, kTileCols>(b, m, n);
    if (m < b.m) tile<Operand, 1, kTileCols>(b, m, n);
  }
}

inline uint16_t round_bf16(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#if !defined(FATHOM_SIMD_IS_avx512)
// Element i of a row in split form.
inline float& split_at(void* out, int64_t i) {
  return static_cast<float*>(out)[i / 32 * 32 + (i % 2 == 0 ? 16 : 0) + i % 32 / 2];
}
#endif

}  // namespace

void gemm_f32(const GemmBlock& b) { gemm<F32Operand>(b); }
void gemm_bf16(const GemmBlock& b) { gemm<Bf16Operand>(b); }

#if defined(FATHOM_SIMD_IS_avx512)
void bf16_operand(const uint16_t* in, int64_t n, void* out) { __builtin_memcpy(out, in, static_cast<size_t>(n) * 2); }
void bf16_operand_from_f32(const float* in, int64_t n, void* out) {
  for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(out)[i] = round_bf16(in[i]);
}
#else
void bf16_operand(const uint16_t* in, int64_t n, void* out) {
  for (int64_t i = 0; i < n; ++i) split_at(out, i) = __builtin_bit_cast(float, static_cast<uint32_t>(in[i]) << 16);
}
void bf16_operand_from_f32(const float* in, int64_t n, void* out) {
  for (int64_t i = 0; i < n; ++i) {
    split_at(out, i) = __builtin_bit_cast(float, static_cast<uint32_t>(round_bf16(in[i])) << 16);
  }
}
#endif

}  // namespace fathom::FATHOM_SIMD_TARGET
