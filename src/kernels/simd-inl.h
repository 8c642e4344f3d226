// The vector type of the kernels, once per instruction set. Include only from *.simd.cc files,
// which CMake compiles for each target with FATHOM_SIMD_TARGET set to the namespace the code lives
// in.
//
// F32x16 has 16 lanes on every target: one 512-bit register, two 256-bit ones, or a plain array
// that the compiler vectorises. A reduction therefore has one order everywhere: 16 partial sums,
// then the tree of reduce_add.
//
// Rule for *.simd.cc: plain pointers, integers and this header only. An inline function of the
// standard library compiled here could be kept by the linker for the whole program and would crash
// on a CPU without the instruction set (tools/check_targets.py looks for such symbols). `static` or
// an unnamed namespace for every helper.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(FATHOM_SIMD_IS_avx2) || defined(FATHOM_SIMD_IS_avx512)
#include <immintrin.h>
#endif

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

inline constexpr int64_t kLanes = 16;

#if defined(FATHOM_SIMD_IS_avx512)

struct F32x16 {
  __m512 v;
};
inline F32x16 zero() { return {_mm512_setzero_ps()}; }
inline F32x16 set(float x) { return {_mm512_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
// The first n of 16 lanes (0 <= n <= 16), the rest zero; memory behind them is not touched.
inline F32x16 load_n(const float* p, int64_t n) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)};
}
inline void store(F32x16 a, float* p) { _mm512_storeu_ps(p, a.v); }
inline void store_n(F32x16 a, float* p, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), a.v);
}
inline F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
// a * b + c, rounded once where the target has FMA.
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32x16 round_nearest(F32x16 a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// x * 2^n for integral n, by adding to the exponent: exact while x and the result are normal. NaN
// in x and n stays NaN.
inline F32x16 scale(F32x16 x, F32x16 n) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), exponent))};
}
// 16 bf16 to f32.
inline F32x16 load_bf16(const uint16_t* p) {
  const __m512i wide =
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline F32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Tree of fixed shape: lanes i and i+8, then i+4, i+2, i+1.
inline float reduce_add(F32x16 a) {
  const __m256 b = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
inline float reduce_max(F32x16 a) { return _mm512_reduce_max_ps(a.v); }

#elif defined(FATHOM_SIMD_IS_avx2)

struct F32x16 {
  __m256 lo, hi;
};
inline __m256i mask8(int64_t n) {  // first n of 8 lanes, n clamped to [0, 8]
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline F32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F32x16 set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline F32x16 load_n(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, mask8(n)),
          n > 8 ? _mm256_maskload_ps(p + 8, mask8(n - 8)) : _mm256_setzero_ps()};
}
inline void store(F32x16 a, float* p) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline void store_n(F32x16 a, float* p, int64_t n) {
  _mm256_maskstore_ps(p, mask8(n), a.lo);
  if (n > 8) _mm256_maskstore_ps(p + 8, mask8(n - 8), a.hi);
}
inline F32x16 operator+(F32x16 a, F32x16 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F32x16 operator-(F32x16 a, F32x16 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F32x16 operator*(F32x16 a, F32x16 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F32x16 operator/(F32x16 a, F32x16 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32x16 max(F32x16 a, F32x16 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline F32x16 min(F32x16 a, F32x16 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline F32x16 round_nearest(F32x16 a) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(a.lo, kMode), _mm256_round_ps(a.hi, kMode)};
}
inline __m256 scale_8(__m256 x, __m256 n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), exponent));
}
inline F32x16 scale(F32x16 x, F32x16 n) { return {scale_8(x.lo, n.lo), scale_8(x.hi, n.hi)}; }
inline __m256 load_bf16_8(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline F32x16 load_bf16(const uint16_t* p) { return {load_bf16_8(p), load_bf16_8(p + 8)}; }
inline F32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline float reduce_add(F32x16 a) {
  const __m256 b = _mm256_add_ps(a.lo, a.hi);
  const __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_add_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
inline float reduce_max(F32x16 a) {
  const __m256 b = _mm256_max_ps(a.lo, a.hi);
  const __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
  const __m128 d = _mm_max_ps(c, _mm_movehl_ps(c, c));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}

#else

struct F32x16 {
  float v[16];
};
#define FATHOM_LANES(expression)                      \
  F32x16 r;                                           \
  for (int i = 0; i < 16; ++i) r.v[i] = (expression); \
  return r
inline F32x16 set(float x) { FATHOM_LANES(x); }
inline F32x16 zero() { return set(0.0f); }
inline F32x16 load(const float* p) { FATHOM_LANES(p[i]); }
inline F32x16 load_n(const float* p, int64_t n) { FATHOM_LANES(i < n ? p[i] : 0.0f); }
inline void store(F32x16 a, float* p) {
  for (int i = 0; i < 16; ++i) p[i] = a.v[i];
}
inline void store_n(F32x16 a, float* p, int64_t n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
inline F32x16 operator+(F32x16 a, F32x16 b) { FATHOM_LANES(a.v[i] + b.v[i]); }
inline F32x16 operator-(F32x16 a, F32x16 b) { FATHOM_LANES(a.v[i] - b.v[i]); }
inline F32x16 operator*(F32x16 a, F32x16 b) { FATHOM_LANES(a.v[i] * b.v[i]); }
inline F32x16 operator/(F32x16 a, F32x16 b) { FATHOM_LANES(a.v[i] / b.v[i]); }
inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { FATHOM_LANES(a.v[i] * b.v[i] + c.v[i]); }
// Like the x86 instructions: the second operand if either is NaN.
inline F32x16 max(F32x16 a, F32x16 b) { FATHOM_LANES(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F32x16 min(F32x16 a, F32x16 b) { FATHOM_LANES(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F32x16 round_nearest(F32x16 a) { FATHOM_LANES(__builtin_rintf(a.v[i])); }
inline float scale_lane(float x, float n) {
  if (n != n) return x;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, x) +
                                       (static_cast<uint32_t>(static_cast<int32_t>(n)) << 23));
}
inline F32x16 scale(F32x16 x, F32x16 n) { FATHOM_LANES(scale_lane(x.v[i], n.v[i])); }
inline F32x16 load_bf16(const uint16_t* p) {
  FATHOM_LANES(__builtin_bit_cast(float, static_cast<uint32_t>(p[i]) << 16));
}
inline float f16_lane(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x) >> 15 << 31, exponent = x >> 10 & 0x1f,
                 mantissa = x & 0x3ff;
  const uint32_t subnormal = __builtin_bit_cast(uint32_t, static_cast<float>(mantissa) * 0x1p-24f);
  const uint32_t normal = (exponent == 0x1f ? 0x7f800000u : (exponent + 112) << 23) | mantissa
                                                                                          << 13;
  return __builtin_bit_cast(float, (exponent == 0 ? subnormal : normal) | sign);
}
inline F32x16 load_f16(const uint16_t* p) { FATHOM_LANES(f16_lane(p[i])); }
#undef FATHOM_LANES
inline float reduce_add(F32x16 a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  }
  return a.v[0];
}
inline float reduce_max(F32x16 a) {
  float m = a.v[0];
  for (int i = 1; i < 16; ++i) m = a.v[i] > m ? a.v[i] : m;
  return m;
}

#endif

// One register of the target, for tiles that must know how many there are: 32 on AVX-512, else 16.
#if defined(FATHOM_SIMD_IS_avx512)
using Part = __m512;
inline Part load_part(const void* p) { return _mm512_loadu_ps(p); }
inline void store_part(Part a, float* p) { _mm512_storeu_ps(p, a); }
inline Part set_part(float a) { return _mm512_set1_ps(a); }
inline Part fma_part(Part a, Part b, Part c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(FATHOM_SIMD_IS_avx2)
using Part = __m256;
inline Part load_part(const void* p) { return _mm256_loadu_ps(static_cast<const float*>(p)); }
inline void store_part(Part a, float* p) { _mm256_storeu_ps(p, a); }
inline Part set_part(float a) { return _mm256_set1_ps(a); }
inline Part fma_part(Part a, Part b, Part c) { return _mm256_fmadd_ps(a, b, c); }
#else
typedef float Part __attribute__((vector_size(16)));  // the compiler's: SSE on x86, NEON on ARM
inline Part load_part(const void* p) {
  Part a;
  __builtin_memcpy(&a, p, sizeof a);
  return a;
}
inline void store_part(Part a, float* p) { __builtin_memcpy(p, &a, sizeof a); }
inline Part set_part(float a) { return Part{a, a, a, a}; }
inline Part fma_part(Part a, Part b, Part c) { return a * b + c; }
#endif
inline constexpr int64_t kPartLanes = sizeof(Part) / sizeof(float);

// Keeps a loaded value in its register: read again from memory by each FMA, the loads would cost
// more than the FMAs.
[[maybe_unused]] inline void keep(Part& a) {
#if defined(__x86_64__)
  asm("" : "+v"(a));
#endif
}

// While it lives, subnormals are zero, in and out, as vdpbf16ps has them. The portable target keeps
// them.
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

// e^x to 2 ulp for x in [-87.3, 88.7]; exactly 0 below, +inf above, NaN stays NaN. Cody-Waite
// reduction x = n ln 2 + r,
// |r| <= ln 2 / 2, then the degree-7 Taylor polynomial of e^r (truncation below 2^-27).
inline F32x16 exp(F32x16 x) {
  const F32x16 low = set(-87.33654f), high = set(88.72283f);
  // operand order keeps NaN (x86 rule: second operand)
  const F32x16 clamped = min(high, max(low, x));
  // -126 (then p >= 1) .. 128 (then p < 1): scale() is exact
  const F32x16 n = round_nearest(clamped * set(1.44269504f));
  const F32x16 r = fma(n, set(-1.42860677e-6f), fma(n, set(-0.693145752f), clamped));
  F32x16 p = set(1.98412698e-4f);
  p = fma(p, r, set(1.38888889e-3f));
  p = fma(p, r, set(8.33333333e-3f));
  p = fma(p, r, set(4.16666667e-2f));
  p = fma(p, r, set(1.66666667e-1f));
  p = fma(p, r, set(0.5f));
  p = fma(p, r, set(1.0f));
  p = fma(p, r, set(1.0f));
  F32x16 result = scale(p, n);
#if defined(FATHOM_SIMD_IS_avx512)
  result.v =
      _mm512_mask_mov_ps(result.v, _mm512_cmp_ps_mask(x.v, low.v, _CMP_LT_OQ), _mm512_setzero_ps());
  result.v = _mm512_mask_mov_ps(result.v, _mm512_cmp_ps_mask(x.v, high.v, _CMP_GT_OQ),
                                _mm512_set1_ps(__builtin_inff()));
#elif defined(FATHOM_SIMD_IS_avx2)
  const __m256 inf = _mm256_set1_ps(__builtin_inff());
  result.lo = _mm256_andnot_ps(_mm256_cmp_ps(x.lo, low.lo, _CMP_LT_OQ), result.lo);
  result.hi = _mm256_andnot_ps(_mm256_cmp_ps(x.hi, low.hi, _CMP_LT_OQ), result.hi);
  result.lo = _mm256_blendv_ps(result.lo, inf, _mm256_cmp_ps(x.lo, high.lo, _CMP_GT_OQ));
  result.hi = _mm256_blendv_ps(result.hi, inf, _mm256_cmp_ps(x.hi, high.hi, _CMP_GT_OQ));
#else
  for (int i = 0; i < 16; ++i) {
    if (x.v[i] < low.v[i]) result.v[i] = 0.0f;
    if (x.v[i] > high.v[i]) result.v[i] = __builtin_inff();
  }
#endif
  return result;
}

// silu(g) up = g / (1 + e^-g) up: for g below -88 the exponential is infinite and the quotient the
// right -0.
inline F32x16 silu_times(F32x16 g, F32x16 up) { return g / (set(1.0f) + exp(zero() - g)) * up; }

}  // namespace
}  // namespace fathom::FATHOM_SIMD_TARGET
