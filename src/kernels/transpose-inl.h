// 16 x 16 transposes by perfect shuffles. Include only from *.simd.cc files.
#pragma once

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
  const __m512i lanes =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
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

// The way back: lanes a0 a2 .. a14, and a1 a3 .. a15, twice.
#if defined(FATHOM_SIMD_IS_avx512)
inline F32x16 even_lanes(F32x16 a) {
  return {_mm512_permutexvar_ps(
      _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 0, 2, 4, 6, 8, 10, 12, 14), a.v)};
}
inline F32x16 odd_lanes(F32x16 a) {
  return {_mm512_permutexvar_ps(
      _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15), a.v)};
}
#elif defined(FATHOM_SIMD_IS_avx2)
inline F32x16 twice_in_order(__m256 a) {  // from quarters 0 2 1 3
  const __m256 ordered = _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(a), 0xd8));
  return {ordered, ordered};
}
inline F32x16 even_lanes(F32x16 a) { return twice_in_order(_mm256_shuffle_ps(a.lo, a.hi, 0x88)); }
inline F32x16 odd_lanes(F32x16 a) { return twice_in_order(_mm256_shuffle_ps(a.lo, a.hi, 0xdd)); }
#else
inline F32x16 every_second_lane(F32x16 a, int first) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = a.v[(2 * i + first) % 16];
  return r;
}
inline F32x16 even_lanes(F32x16 a) { return every_second_lane(a, 0); }
inline F32x16 odd_lanes(F32x16 a) { return every_second_lane(a, 1); }
#endif

// Number an element by the eight bits rrrrcccc of its row and column. Interleaving rows i and i + 8
// into rows 2i and 2i + 1 rotates these bits by one; four times exchanges row and column.
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

}  // namespace
}  // namespace fathom::FATHOM_SIMD_TARGET
