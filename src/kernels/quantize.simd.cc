// Block formats to f32, one body per format for every instruction set. A block is taken 16 bytes at
// a time (U8x16), its integers are put together in bytes, widened to f32 and scaled. All products
// are exact in f32 (11 bits of an f16 scale times at most 13 bits of integers), so only the last
// operation rounds, and an FMA gives the bits of a multiplication and an addition.
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// Generic vectors: the operators are the compiler's, lane by lane.
typedef uint8_t U8x16 __attribute__((vector_size(16)));
typedef int8_t I8x16 __attribute__((vector_size(16)));
typedef uint32_t U32x4 __attribute__((vector_size(16)));
typedef uint64_t U64x2 __attribute__((vector_size(16)));
typedef uint16_t U16x16 __attribute__((vector_size(32)));

U8x16 load_bytes(const uint8_t* p) {
  U8x16 v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
uint16_t load_u16(const uint8_t* p) {
  uint16_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
uint32_t load_u32(const uint8_t* p) {
  uint32_t v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

#if defined(FATHOM_SIMD_IS_avx512) || defined(FATHOM_SIMD_IS_avx2)
__m128i m128(U8x16 a) { return reinterpret_cast<__m128i>(a); }
float load_scale(const uint8_t* p) { return _cvtsh_ss(load_u16(p)); }
// table[i] for 16 indices below 16.
U8x16 lookup(U8x16 table, U8x16 i) {
  return reinterpret_cast<U8x16>(_mm_shuffle_epi8(m128(table), m128(i)));
}
#else
float load_scale(const uint8_t* p) { return f16_lane(load_u16(p)); }
U8x16 lookup(U8x16 table, U8x16 i) {
  uint8_t from[16], to[16];
  __builtin_memcpy(from, &table, sizeof from);
  __builtin_memcpy(to, &i, sizeof to);
  for (uint8_t& lane : to) lane = from[lane];
  return load_bytes(to);
}
#endif

#if defined(FATHOM_SIMD_IS_avx512)
// 16 signed bytes.
F32x16 widen(U8x16 a) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(m128(a)))}; }
F32x16 widen_f16(U16x16 a) { return {_mm512_cvtph_ps(reinterpret_cast<__m256i>(a))}; }
U16x16 widen_u16(U8x16 a) { return reinterpret_cast<U16x16>(_mm256_cvtepu8_epi16(m128(a))); }
#elif defined(FATHOM_SIMD_IS_avx2)
F32x16 widen(U8x16 a) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(m128(a))),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(m128(a), 8)))};
}
F32x16 widen_f16(U16x16 a) {
  const __m256i v = reinterpret_cast<__m256i>(a);
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(v)),
          _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1))};
}
U16x16 widen_u16(U8x16 a) { return reinterpret_cast<U16x16>(_mm256_cvtepu8_epi16(m128(a))); }
#else
F32x16 widen(U8x16 a) {
  int8_t bytes[16];
  __builtin_memcpy(bytes, &a, sizeof bytes);
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(bytes[i]);
  return r;
}
F32x16 widen_f16(U16x16 a) {
  uint16_t halves[16];
  __builtin_memcpy(halves, &a, sizeof halves);
  return load_f16(halves);
}
U16x16 widen_u16(U8x16 a) { return __builtin_convertvector(a, U16x16); }
#endif

// Lane i is 16 where bit i of `bits` is set, else 0: the fifth bit of Q5_0 and Q5_1.
U8x16 fifth_bits(uint16_t bits) {
  constexpr uint64_t kEach = 0x0101010101010101;
  const U64x2 bytes = {(bits & 255) * kEach, (bits >> 8) * kEach};
  constexpr U8x16 kBit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  return reinterpret_cast<U8x16>((reinterpret_cast<U8x16>(bytes) & kBit) == kBit) & 16;
}

// The 4-bit code books of IQ4_NL and MXFP4; the second is the doubled E2M1.
constexpr I8x16 kIq4 = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr I8x16 kFp4 = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
U8x16 iq4(U8x16 codes) { return lookup(reinterpret_cast<U8x16>(kIq4), codes); }
U8x16 fp4(U8x16 codes) { return lookup(reinterpret_cast<U8x16>(kFp4), codes); }

void scaled(F32x16 d, U8x16 q, float* y) { store(d * widen(q), y); }
void scaled(F32x16 d, U8x16 q, F32x16 m, float* y) { store(fma(d, widen(q), m), y); }

// ---- blocks of 32: b is the block, y its 32 values ----

void block_q8_0(const uint8_t* b, float* y) {
  const F32x16 d = set(load_scale(b));
  scaled(d, load_bytes(b + 2), y);
  scaled(d, load_bytes(b + 18), y + 16);
}

void block_q4_0(const uint8_t* b, float* y) {
  const F32x16 d = set(load_scale(b));
  const U8x16 q = load_bytes(b + 2);
  scaled(d, (q & 15) - 8, y);
  scaled(d, (q >> 4) - 8, y + 16);
}

void block_q4_1(const uint8_t* b, float* y) {
  const F32x16 d = set(load_scale(b)), m = set(load_scale(b + 2));
  const U8x16 q = load_bytes(b + 4);
  scaled(d, q & 15, m, y);
  scaled(d, q >> 4, m, y + 16);
}

void block_q5_0(const uint8_t* b, float* y) {
  const F32x16 d = set(load_scale(b));
  const U8x16 q = load_bytes(b + 6);
  scaled(d, ((q & 15) | fifth_bits(load_u16(b + 2))) - 16, y);
  scaled(d, ((q >> 4) | fifth_bits(load_u16(b + 4))) - 16, y + 16);
}

void block_q5_1(const uint8_t* b, float* y) {
  const F32x16 d = set(load_scale(b)), m = set(load_scale(b + 2));
  const U8x16 q = load_bytes(b + 8);
  scaled(d, (q & 15) | fifth_bits(load_u16(b + 4)), m, y);
  scaled(d, (q >> 4) | fifth_bits(load_u16(b + 6)), m, y + 16);
}

void block_iq4_nl(const uint8_t* b, float* y) {
  const F32x16 d = set(load_scale(b));
  const U8x16 q = load_bytes(b + 2);
  scaled(d, iq4(q & 15), y);
  scaled(d, iq4(q >> 4), y + 16);
}

void block_mxfp4(const uint8_t* b, float* y) {
  // 2^(e - 128), for e < 2 a subnormal
  const uint32_t bits = b[0] < 2 ? 0x00200000u << b[0] : (b[0] - 1u) << 23;
  const F32x16 d = set(__builtin_bit_cast(float, bits));
  const U8x16 q = load_bytes(b + 1);
  scaled(d, fp4(q & 15), y);
  scaled(d, fp4(q >> 4), y + 16);
}

// ---- blocks of 256: 8 or 16 runs, each with a scale of its own, first widened together ----

struct Scales {
  float v[16];
  Scales(F32x16 d, U8x16 s) { store(d * widen(s), v); }
  F32x16 operator[](int i) const { return set(v[i]); }
};

void block_q2_k(const uint8_t* b, float* y) {
  const U8x16 s = load_bytes(b);
  const Scales d(set(load_scale(b + 80)), s & 15), m(set(-load_scale(b + 82)), s >> 4);
  for (int half = 0; half < 2; ++half) {
    U8x16 q0 = load_bytes(b + 16 + 32 * half), q1 = load_bytes(b + 32 + 32 * half);
    for (int k = 8 * half; k < 8 * half + 8; k += 2) {
      scaled(d[k], q0 & 3, m[k], y + 16 * k);
      scaled(d[k + 1], q1 & 3, m[k + 1], y + 16 * k + 16);
      q0 = q0 >> 2;
      q1 = q1 >> 2;
    }
  }
}

void block_q3_k(const uint8_t* b, float* y) {
  const uint32_t a0 = load_u32(b + 96), a1 = load_u32(b + 100), t = load_u32(b + 104);
  constexpr uint32_t kLow = 0x0f0f0f0f, kHigh = 0x30303030;
  const U32x4 s = {(a0 & kLow) | (t << 4 & kHigh), (a1 & kLow) | (t << 2 & kHigh),
                   (a0 >> 4 & kLow) | (t & kHigh), (a1 >> 4 & kLow) | (t >> 2 & kHigh)};
  const Scales d(set(load_scale(b + 108)), reinterpret_cast<U8x16>(s) - 32);
  U8x16 h0 = load_bytes(b), h1 = load_bytes(b + 16);  // a clear bit subtracts 4
  for (int half = 0; half < 2; ++half) {
    U8x16 q0 = load_bytes(b + 32 + 32 * half), q1 = load_bytes(b + 48 + 32 * half);
    for (int k = 8 * half; k < 8 * half + 8; k += 2) {
      scaled(d[k], ((q0 & 3) | (h0 << 2 & 4)) - 4, y + 16 * k);
      scaled(d[k + 1], ((q1 & 3) | (h1 << 2 & 4)) - 4, y + 16 * k + 16);
      q0 = q0 >> 2;
      q1 = q1 >> 2;
      h0 = h0 >> 1;
      h1 = h1 >> 1;
    }
  }
}

// The 6-bit scales and minimums of Q4_K and Q5_K: 8 scales, then 8 minimums.
U8x16 unpack_scales(const uint8_t* s) {
  const uint32_t a = load_u32(s), b = load_u32(s + 4), c = load_u32(s + 8);
  return reinterpret_cast<U8x16>(U32x4{a & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030),
                                       b & 0x3f3f3f3f,
                                       (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)});
}
Scales scales_and_minimums(const uint8_t* b) {
  const float d = load_scale(b), m = -load_scale(b + 2);
  const float factors[16] = {d, d, d, d, d, d, d, d, m, m, m, m, m, m, m, m};
  return {load(factors), unpack_scales(b + 4)};
}

void block_q4_k(const uint8_t* b, float* y) {
  const Scales s = scales_and_minimums(b);
  for (int j = 0; j < 8; j += 2, y += 64) {
    const U8x16 q0 = load_bytes(b + 16 + 16 * j), q1 = load_bytes(b + 32 + 16 * j);
    scaled(s[j], q0 & 15, s[j + 8], y);
    scaled(s[j], q1 & 15, s[j + 8], y + 16);
    scaled(s[j + 1], q0 >> 4, s[j + 9], y + 32);
    scaled(s[j + 1], q1 >> 4, s[j + 9], y + 48);
  }
}

void block_q5_k(const uint8_t* b, float* y) {
  const Scales s = scales_and_minimums(b);
  U8x16 h0 = load_bytes(b + 16), h1 = load_bytes(b + 32);
  for (int j = 0; j < 8; j += 2, y += 64) {
    const U8x16 q0 = load_bytes(b + 48 + 16 * j), q1 = load_bytes(b + 64 + 16 * j);
    scaled(s[j], (q0 & 15) | (h0 << 4 & 16), s[j + 8], y);
    scaled(s[j], (q1 & 15) | (h1 << 4 & 16), s[j + 8], y + 16);
    scaled(s[j + 1], (q0 >> 4) | (h0 << 3 & 16), s[j + 9], y + 32);
    scaled(s[j + 1], (q1 >> 4) | (h1 << 3 & 16), s[j + 9], y + 48);
    h0 = h0 >> 2;
    h1 = h1 >> 2;
  }
}

void block_q6_k(const uint8_t* b, float* y) {
  const Scales d(set(load_scale(b + 208)), load_bytes(b + 192));
  for (int half = 0; half < 2; ++half) {
    for (int run = 0; run < 2; ++run) {
      const uint8_t* low = b + 64 * half + 16 * run;
      const U8x16 q0 = load_bytes(low), q1 = load_bytes(low + 32);
      const U8x16 h = load_bytes(b + 128 + 32 * half + 16 * run);
      const int k = 8 * half + run;
      scaled(d[k], ((q0 & 15) | (h << 4 & 48)) - 32, y + 16 * k);
      scaled(d[k + 2], ((q1 & 15) | (h << 2 & 48)) - 32, y + 16 * k + 32);
      scaled(d[k + 4], ((q0 >> 4) | (h & 48)) - 32, y + 16 * k + 64);
      scaled(d[k + 6], ((q1 >> 4) | (h >> 2 & 48)) - 32, y + 16 * k + 96);
    }
  }
}

void block_iq4_xs(const uint8_t* b, float* y) {
  const float d = load_scale(b);
  const uint32_t high = load_u16(b + 2), low = load_u32(b + 4);
  for (int j = 0; j < 8; ++j) {
    const uint32_t scale = (low >> 4 * j & 15) | (high >> 2 * j & 3) << 4;
    const F32x16 s = set(d * static_cast<float>(static_cast<int32_t>(scale) - 32));
    const U8x16 q = load_bytes(b + 8 + 16 * j);
    scaled(s, iq4(q & 15), y + 32 * j);
    scaled(s, iq4(q >> 4), y + 32 * j + 16);
  }
}

template <int64_t kElements, int64_t kBytes, void (*block)(const uint8_t*, float*)>
void blocks(const uint8_t* row, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; i += kElements, row += kBytes) block(row, out + i);
}

// 16 elements at a time, the last ones through a zero-filled copy.
template <class T, F32x16 (*widened)(const T*)>
void elements(const uint8_t* row, int64_t cols, float* out) {
  const int64_t whole = cols - cols % kLanes;
  const T* x = reinterpret_cast<const T*>(row);
  for (int64_t i = 0; i < whole; i += kLanes) store(widened(x + i), out + i);
  T tail[kLanes] = {};
  for (int64_t i = whole; i < cols; ++i) tail[i - whole] = x[i];
  store_n(widened(tail), out + whole, cols - whole);
}

// E4M3 is an f16 without one exponent bit and seven mantissa bits, 2^8 times as large. Going
// through f16 keeps subnormals off the slow path of f32 arithmetic. Code 127 is NaN.
F32x16 load_f8e4m3(const uint8_t* p) {
  const U16x16 code = widen_u16(load_bytes(p));
  const U16x16 nan = reinterpret_cast<U16x16>((code & 0x7f) == 0x7f) & 0x7c00;
  return widen_f16((code << 8 & 0x8000) | (code << 7 & 0x3f80) | nan) * set(256.0f);
}

}  // namespace

#define FATHOM_ELEMENTS(name, type)                                      \
  void dequantize_##name(const uint8_t* row, int64_t cols, float* out) { \
    elements<type, load_##name>(row, cols, out);                         \
  }
#define FATHOM_BLOCKS(name, count, bytes)                                \
  void dequantize_##name(const uint8_t* row, int64_t cols, float* out) { \
    blocks<count, bytes, block_##name>(row, cols, out);                  \
  }
FATHOM_ELEMENTS(f16, uint16_t)
FATHOM_ELEMENTS(bf16, uint16_t)
FATHOM_ELEMENTS(f8e4m3, uint8_t)
FATHOM_BLOCKS(q8_0, 32, 34)
FATHOM_BLOCKS(q4_0, 32, 18)
FATHOM_BLOCKS(q4_1, 32, 20)
FATHOM_BLOCKS(q5_0, 32, 22)
FATHOM_BLOCKS(q5_1, 32, 24)
FATHOM_BLOCKS(q2_k, 256, 84)
FATHOM_BLOCKS(q3_k, 256, 110)
FATHOM_BLOCKS(q4_k, 256, 144)
FATHOM_BLOCKS(q5_k, 256, 176)
FATHOM_BLOCKS(q6_k, 256, 210)
FATHOM_BLOCKS(iq4_nl, 32, 18)
FATHOM_BLOCKS(iq4_xs, 256, 136)
FATHOM_BLOCKS(mxfp4, 32, 17)

void multiply(float* inout, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) inout[i] *= factor;
}

}  // namespace fathom::FATHOM_SIMD_TARGET
