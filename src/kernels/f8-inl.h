// FP8 (E4M3) as operands of products of bf16, exactly: bf16 has more bits for both parts, and no
// code is subnormal in it. Include only from *.simd.cc files.
#pragma once

#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// Elements in split form (gemm-inl.h).
struct OddEven {
  Part odd, even;
};

// Of two codes for each lane: Halves.
typedef uint16_t Halves __attribute__((vector_size(sizeof(Part) / 2)));
#if defined(FATHOM_SIMD_IS_avx512) || defined(FATHOM_SIMD_IS_avx2)
#if defined(FATHOM_SIMD_IS_avx512)
inline Part widen_halves(Halves h) { return _mm512_cvtph_ps(reinterpret_cast<__m256i>(h)); }
#else
inline Part widen_halves(Halves h) { return _mm256_cvtph_ps(reinterpret_cast<__m128i>(h)); }
#endif
// As an f16 a code is 2^8 too small; only NaN, the largest code, carries into the exponent bit that
// makes it one.
inline Part widen_f8(Halves size, Halves sign) {
  return widen_halves((size & 0x3f80) | (sign & 0x8000) | (((size & 0x3f80) + 0x80) & 0x4000)) *
         set_part(256.0f);
}
inline OddEven split_f8(const uint8_t* codes) {
  Halves two;
  __builtin_memcpy(&two, codes, sizeof two);
  return {widen_f8(two >> 1, two), widen_f8(two << 7, two << 8)};
}
#else
typedef uint32_t Words __attribute__((vector_size(sizeof(Part))));
// As an f32 a code is 2^120 too small.
inline Part widen_f8(Words code) {
  const Words size = code & 0x7f, nan = reinterpret_cast<Words>(size == 0x7f) & 0x7fc00000;
  return reinterpret_cast<Part>((code & 0x80) << 24 | size << 20 | nan) * set_part(0x1p120f);
}
inline OddEven split_f8(const uint8_t* codes) {
  Halves two;
  __builtin_memcpy(&two, codes, sizeof two);
  const Words both = __builtin_convertvector(two, Words);
  return {widen_f8(both >> 8), widen_f8(both)};
}
#endif

#if defined(FATHOM_SIMD_IS_avx512)
// The bytes of a code's bf16, without its sign.
struct F8Table {
  uint8_t high[128] = {}, low[128] = {};
  constexpr F8Table() {
    for (unsigned code = 0; code < 128; ++code) {
      unsigned exponent = code >> 3, fraction = code & 7;
      if (exponent == 0 && fraction != 0) {
        for (exponent = 1; fraction < 8; --exponent) fraction *= 2;
      }
      const unsigned bits = code == 0      ? 0
                            : code == 0x7f ? 0x7fc0
                                           : (exponent + 120) << 7 | (fraction & 7) << 4;
      high[code] = static_cast<uint8_t>(bits >> 8);
      low[code] = static_cast<uint8_t>(bits);
    }
  }
};
alignas(64) inline constexpr F8Table kF8Table;

// An instruction of VBMI, which the target as a whole may not use: for callers that have found
// looks_up_f8().
inline __m512i lookup_128(__m512i codes, const uint8_t* table) {
  asm("vpermi2b %2, %1, %0"
      : "+v"(codes)
      : "v"(_mm512_load_si512(table)), "v"(_mm512_load_si512(table + 64)));
  return codes;
}

// 64 codes as pairs of bf16.
struct PairsOfF8 {
  Part first, second;
};
inline PairsOfF8 pairs_of_f8(__m512i codes) {
  // unpacking works in 128 bits: of each the lower half is of the first 32 codes
  codes = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7), codes);
  const __m512i low = lookup_128(codes, kF8Table.low),
                high = _mm512_ternarylogic_epi64(  // | (codes & 0x80)
                    lookup_128(codes, kF8Table.high), codes, _mm512_set1_epi8(-0x80), 0xf8);
  return {reinterpret_cast<Part>(_mm512_unpacklo_epi8(low, high)),
          reinterpret_cast<Part>(_mm512_unpackhi_epi8(low, high))};
}
#endif

}  // namespace
}  // namespace fathom::FATHOM_SIMD_TARGET
