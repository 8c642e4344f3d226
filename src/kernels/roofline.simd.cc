// Loops that do one thing as fast as the instruction set allows. Chains enough to hide latency, few
// enough to stay in registers.
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

#if defined(FATHOM_SIMD_IS_avx512)
constexpr int kChains = 12;
#elif defined(FATHOM_SIMD_IS_avx2)
constexpr int kChains = 6;  // of two registers each
#else
constexpr int kChains = 2;  // of four
#endif

}  // namespace

float probe_f32(int64_t steps, double* ops) {
  *ops = kChains * 16 * 2;
  // known only at run time, or the loop is worked out by the compiler
  volatile float factor = 0.999f;
  F32x16 a = set(factor), b = set(factor), sum[kChains];
  for (F32x16& s : sum) s = set(1.0f);
  for (int64_t i = 0; i < steps; ++i) {
    for (F32x16& s : sum) s = fma(s, a, b);
  }
  for (int j = 1; j < kChains; ++j) sum[0] = sum[0] + sum[j];
  return reduce_add(sum[0]);
}

#if defined(FATHOM_SIMD_IS_avx512)

float probe_bf16(int64_t steps, double* ops) {
  *ops = kChains * 32 * 2;
  volatile short one = 0x3f80;
  const auto a = reinterpret_cast<__m512bh>(_mm512_set1_epi16(one));
  F32x16 sum[kChains];
  for (F32x16& s : sum) s = zero();
  for (int64_t i = 0; i < steps; ++i) {
    for (F32x16& s : sum) s.v = _mm512_dpbf16_ps(s.v, a, a);
  }
  for (int j = 1; j < kChains; ++j) sum[0] = sum[0] + sum[j];
  return reduce_add(sum[0]);
}

float probe_int8(int64_t steps, double* ops) {
  *ops = kChains * 64 * 2;
  volatile char one = 1;
  const __m512i a = _mm512_set1_epi8(one);
  __m512i sum[kChains];
  for (__m512i& s : sum) s = _mm512_setzero_si512();
  for (int64_t i = 0; i < steps; ++i) {
    for (__m512i& s : sum) s = _mm512_dpbusd_epi32(s, a, a);
  }
  for (int j = 1; j < kChains; ++j) sum[0] = _mm512_add_epi32(sum[0], sum[j]);
  return static_cast<float>(_mm512_reduce_add_epi32(sum[0]));
}

#else

float probe_bf16(int64_t steps, double* ops) { return probe_f32(steps, ops); }

#if defined(FATHOM_SIMD_IS_avx2)

float probe_int8(int64_t steps, double* ops) {
  *ops = 12 * 32 * 2;
  volatile char one = 1;
  const __m256i a = _mm256_set1_epi8(one);
  __m256i sum[12];
  for (__m256i& s : sum) s = _mm256_set1_epi8(1);
  for (int64_t i = 0; i < steps; ++i) {
    for (__m256i& s : sum) {
#if defined(FATHOM_SIMD_IS_avxvnni)
      s = _mm256_dpbusd_avx_epi32(s, a, a);
#else  // 32 products a maddubs, their pair sums added in 16 bits: the least a dot product needs
      s = _mm256_add_epi16(s, _mm256_maddubs_epi16(s, a));
#endif
    }
  }
  for (int j = 1; j < 12; ++j) sum[0] = _mm256_add_epi16(sum[0], sum[j]);
  return static_cast<float>(_mm256_extract_epi16(sum[0], 0));
}

#else

float probe_int8(int64_t, double* ops) {
  *ops = 0;
  return 0;
}

#endif
#endif

// Four streams: one alone does not keep a core's line buffers full.
float probe_read(const float* data, int64_t count) {
  const int64_t quarter = count / 4;
  F32x16 sum[4] = {zero(), zero(), zero(), zero()};
  for (int64_t i = 0; i < quarter; i += kLanes) {
    for (int j = 0; j < 4; ++j) {
      const float* p = data + j * quarter + i;
      __builtin_prefetch(p + 512);
      sum[j] = sum[j] + load(p);
    }
  }
  return reduce_add(sum[0] + sum[1] + sum[2] + sum[3]);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
