// Stored formats to f32. A block is taken 16 bytes at a time (U8x16), its integers are put together
// in bytes, widened to f32 and scaled. All products are exact in f32, so only the last operation
// rounds, and an FMA gives the bits of a multiplication and an addition.
#include "kernels/block_formats-inl.h"
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// Generic vectors: the operators are the compiler's, lane by lane.
typedef uint8_t U8x16 __attribute__((vector_size(16)));
typedef uint32_t U32x4 __attribute__((vector_size(16)));
typedef uint64_t U64x2 __attribute__((vector_size(16)));
typedef uint16_t U16x16 __attribute__((vector_size(32)));

U8x16 load_bytes(const uint8_t* p) {
  U8x16 v;
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
float f16_scale(uint16_t bits) { return _cvtsh_ss(bits); }
// table[i] for 16 indices below 16.
U8x16 lookup(U8x16 table, U8x16 i) {
  return reinterpret_cast<U8x16>(_mm_shuffle_epi8(m128(table), m128(i)));
}
#else
float f16_scale(uint16_t bits) { return f16_lane(bits); }
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

// One block of one row (block_formats-inl.h).
struct RowBlock {
  using Bytes = U8x16;
  using Dword = uint32_t;
  const uint8_t* p;

  U8x16 bytes(int64_t at) const { return load_bytes(p + at); }
  uint32_t dword(int64_t at) const { return load_u32(p + at); }
  F32x16 half_at(int64_t at) const {
    return half(static_cast<uint32_t>(p[at]) | static_cast<uint32_t>(p[at + 1]) << 8);
  }
  uint32_t byte_at(int64_t at) const { return p[at]; }
  static F32x16 half(uint32_t bits) { return set(f16_scale(static_cast<uint16_t>(bits))); }
  static U8x16 fifth_bits(uint32_t bits, int i) {
    constexpr uint64_t kEach = 0x0101010101010101;
    const uint32_t two = bits >> (16 * i);
    const U64x2 both = {(two & 255) * kEach, ((two >> 8) & 255) * kEach};
    constexpr U8x16 kBit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    return reinterpret_cast<U8x16>((reinterpret_cast<U8x16>(both) & kBit) == kBit) & 16;
  }
  static U8x16 join(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return reinterpret_cast<U8x16>(U32x4{a, b, c, d});
  }
  struct Dwords {
    uint32_t v[4];
  };
  static Dwords split(U8x16 a) { return __builtin_bit_cast(Dwords, a); }
  static F32x16 number(uint32_t n) { return set(static_cast<float>(static_cast<int32_t>(n))); }
  static F32x16 half_power(uint32_t n) {
    return set(__builtin_bit_cast(float, n < 2 ? (n + 1) << 21 : (n - 1) << 23));
  }
  static U8x16 lookup(const uint8_t* table, U8x16 codes) {
    return fathom::FATHOM_SIMD_TARGET::lookup(load_bytes(table), codes);
  }
  struct Scales {  // first widened together
    float v[16];
    Scales(F32x16 d, U8x16 s) { store(d * widen(s), v); }
    F32x16 operator[](int i) const { return set(v[i]); }
  };
};

template <class Format>
struct FloatWriter {
  float* y;
  void put(int64_t at, F32x16 d, U8x16 u) const { store(d * widen(u - Format::kZero), y + at); }
  void put(int64_t at, F32x16 d, U8x16 u, F32x16 m) const {
    store(fma(d, widen(u - Format::kZero), m), y + at);
  }
};

template <class Format>
void blocks(const uint8_t* row, int64_t cols, float* out) {
  for (int64_t i = 0; i < cols; i += Format::kElements, row += Format::kBytes)
    Format::decode(RowBlock{row}, FloatWriter<Format>{out + i});
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
#define FATHOM_BLOCKS(name, format)                                      \
  void dequantize_##name(const uint8_t* row, int64_t cols, float* out) { \
    blocks<format>(row, cols, out);                                      \
  }
FATHOM_ELEMENTS(f16, uint16_t)
FATHOM_ELEMENTS(bf16, uint16_t)
FATHOM_ELEMENTS(f8e4m3, uint8_t)
FATHOM_BLOCKS(q8_0, Q8_0)
FATHOM_BLOCKS(q4_0, Q4_0)
FATHOM_BLOCKS(q4_1, Q4_1)
FATHOM_BLOCKS(q5_0, Q5_0)
FATHOM_BLOCKS(q5_1, Q5_1)
FATHOM_BLOCKS(q2_k, Q2_K)
FATHOM_BLOCKS(q3_k, Q3_K)
FATHOM_BLOCKS(q4_k, Q4_K)
FATHOM_BLOCKS(q5_k, Q5_K)
FATHOM_BLOCKS(q6_k, Q6_K)
FATHOM_BLOCKS(iq4_nl, Iq4Nl)
FATHOM_BLOCKS(iq4_xs, Iq4Xs)
FATHOM_BLOCKS(mxfp4, Mxfp4)

void multiply(float* inout, int64_t n, float factor) {
  for (int64_t i = 0; i < n; ++i) inout[i] *= factor;
}

}  // namespace fathom::FATHOM_SIMD_TARGET
