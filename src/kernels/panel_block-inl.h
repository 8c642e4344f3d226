// A block of each of 16 rows, as block_formats-inl.h reads it: lane r of every register is row r,
// and four neighbouring bytes of a row share a lane, so that a dot product of four bytes in each
// lane sums one output per row and nothing is ever added across a register.
#pragma once

#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

typedef uint8_t U8x64 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef int32_t I32x16 __attribute__((vector_size(64)));

// 16 bytes of each of 16 rows: v[j] holds bytes 4j to 4j + 3 of row r in its lane r.
struct Bytes16 {
  U8x64 v[4];
};
template <class Each>
[[gnu::always_inline]] inline Bytes16 each(Each f) {
  return {{f(0), f(1), f(2), f(3)}};
}
[[gnu::always_inline]] inline Bytes16 operator&(const Bytes16& a, uint8_t b) {
  return each([&](int j) { return a.v[j] & b; });
}
[[gnu::always_inline]] inline Bytes16 operator|(const Bytes16& a, const Bytes16& b) {
  return each([&](int j) { return a.v[j] | b.v[j]; });
}
[[gnu::always_inline]] inline Bytes16 operator^(const Bytes16& a, uint8_t b) {
  return each([&](int j) { return a.v[j] ^ b; });
}
[[gnu::always_inline]] inline Bytes16 operator-(const Bytes16& a, uint8_t b) {
  return each([&](int j) { return a.v[j] - b; });
}
[[gnu::always_inline]] inline Bytes16 operator>>(const Bytes16& a, int n) {
  const auto kept = static_cast<uint8_t>(255 >> n);
  return each(
      [&](int j) { return reinterpret_cast<U8x64>(reinterpret_cast<U32x16>(a.v[j]) >> n) & kept; });
}
[[gnu::always_inline]] inline Bytes16 operator<<(const Bytes16& a, int n) {
  const auto kept = static_cast<uint8_t>(255 << n);
  return each(
      [&](int j) { return reinterpret_cast<U8x64>(reinterpret_cast<U32x16>(a.v[j]) << n) & kept; });
}

inline F32x16 to_f32(I32x16 a) {
#if defined(FATHOM_SIMD_IS_avx512)
  return {_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(a))};
#elif defined(FATHOM_SIMD_IS_avx2)
  __m256i half[2];
  __builtin_memcpy(half, &a, sizeof half);
  return {_mm256_cvtepi32_ps(half[0]), _mm256_cvtepi32_ps(half[1])};
#else
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(a[i]);
  return r;
#endif
}

struct PanelBlock {
  using Bytes = Bytes16;
  using Dword = U32x16;
  // Rows 0, 4, 8 and 12: all 16 are then one of few registers and a multiple of the stride away.
  const uint8_t* p[4];
  int64_t stride;  // from row to row

  [[gnu::always_inline]] PanelBlock(const uint8_t* w, int64_t row_stride)
      : p{w, w + 4 * row_stride, w + 8 * row_stride, w + 12 * row_stride}, stride(row_stride) {}
  [[gnu::always_inline]] const uint8_t* row(int64_t r) const { return p[r / 4] + r % 4 * stride; }
  [[gnu::always_inline]] void advance(int64_t bytes) {
    for (const uint8_t*& q : p) q += bytes;
  }

#if defined(FATHOM_SIMD_IS_avx512)
  // Loads that fill a part of a register are blends, which many ports can do; inserts are shuffles.
  [[gnu::always_inline]] __m512i rows_of_four(int64_t at, int64_t first) const {
    const auto load_row = [&](int64_t r) __attribute__((always_inline)) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row(first + r) + at));
    };
    __m512i a = _mm512_zextsi128_si512(load_row(0));
    a = _mm512_mask_broadcast_i32x4(a, 0x00f0, load_row(4));
    a = _mm512_mask_broadcast_i32x4(a, 0x0f00, load_row(8));
    return _mm512_mask_broadcast_i32x4(a, 0xf000, load_row(12));
  }
  [[gnu::always_inline]] Bytes16 bytes(int64_t at) const {
    const __m512i a = rows_of_four(at, 0), b = rows_of_four(at, 1), c = rows_of_four(at, 2),
                  d = rows_of_four(at, 3);
    const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b),
                  cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
    return {{reinterpret_cast<U8x64>(_mm512_unpacklo_epi64(ab0, cd0)),
             reinterpret_cast<U8x64>(_mm512_unpackhi_epi64(ab0, cd0)),
             reinterpret_cast<U8x64>(_mm512_unpacklo_epi64(ab1, cd1)),
             reinterpret_cast<U8x64>(_mm512_unpackhi_epi64(ab1, cd1))}};
  }
  // The first or the last of 16 bytes, which are all of the block's.
  [[gnu::always_inline]] U32x16 dword(int64_t at) const {
    return reinterpret_cast<U32x16>(at < 12 ? bytes(at).v[0] : bytes(at - 12).v[3]);
  }
#else
#if defined(FATHOM_SIMD_IS_avx2)
  [[gnu::always_inline]] Bytes16 bytes(int64_t at) const {
    Bytes16 out;
    __m256i halves[4][2];
    for (int half = 0; half < 2; ++half) {  // rows 8 half to 8 half + 7
      const auto two = [&](int64_t r) __attribute__((always_inline)) {
        const uint8_t* const from = row(8 * half + r) + at;
        return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(row(8 * half + r + 4) + at),
                                   reinterpret_cast<const __m128i*>(from));
      };
      const __m256i a = two(0), b = two(1), c = two(2), d = two(3);
      const __m256i ab0 = _mm256_unpacklo_epi32(a, b), ab1 = _mm256_unpackhi_epi32(a, b),
                    cd0 = _mm256_unpacklo_epi32(c, d), cd1 = _mm256_unpackhi_epi32(c, d);
      halves[0][half] = _mm256_unpacklo_epi64(ab0, cd0);
      halves[1][half] = _mm256_unpackhi_epi64(ab0, cd0);
      halves[2][half] = _mm256_unpacklo_epi64(ab1, cd1);
      halves[3][half] = _mm256_unpackhi_epi64(ab1, cd1);
    }
    __builtin_memcpy(&out, halves, sizeof out);
    return out;
  }
#else
  [[gnu::always_inline]] Bytes16 bytes(int64_t at) const {
    uint32_t to[4][16];
    for (int64_t r = 0; r < 16; ++r) {
      uint32_t from[4];
      __builtin_memcpy(from, row(r) + at, sizeof from);
      for (int j = 0; j < 4; ++j) to[j][r] = from[j];
    }
    Bytes16 b;
    __builtin_memcpy(&b, to, sizeof b);
    return b;
  }
#endif
  U32x16 dword(int64_t at) const {
    uint32_t to[16];
    for (int64_t r = 0; r < 16; ++r) __builtin_memcpy(to + r, row(r) + at, 4);
    U32x16 v;
    __builtin_memcpy(&v, to, sizeof v);
    return v;
  }
#endif

  static F32x16 half(U32x16 bits) {
#if defined(FATHOM_SIMD_IS_avx512)
    return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(bits)))};
#else
    uint16_t halves[16];
    for (int r = 0; r < 16; ++r) halves[r] = static_cast<uint16_t>(bits[r]);
    return load_f16(halves);
#endif
  }
  static Bytes16 fifth_bits(U32x16 bits, int i) {
#if defined(FATHOM_SIMD_IS_avx512)
    return each([&](int j) {  // each lane's byte with the four bits, four times, one bit of each
      const __m512i four = _mm512_shuffle_epi8(
          reinterpret_cast<__m512i>(bits),
          _mm512_add_epi8(_mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0),
                          _mm512_set1_epi8(static_cast<char>(2 * i + j / 2))));
      const __mmask64 set = _mm512_test_epi8_mask(
          four, _mm512_set1_epi32(static_cast<int32_t>(j % 2 == 0 ? 0x08040201u : 0x80402010u)));
      return reinterpret_cast<U8x64>(_mm512_maskz_set1_epi8(set, 16));
    });
#else
    return each([&](int j) {  // bits 4j to 4j + 3 to bit 4 of four bytes
      const U32x16 b = bits >> (16 * i + 4 * j);
      return reinterpret_cast<U8x64>(((b & 1) << 4) | ((b & 2) << 11) | ((b & 4) << 18) |
                                     ((b & 8) << 25));
    });
#endif
  }
  static Bytes16 join(U32x16 a, U32x16 b, U32x16 c, U32x16 d) {
    return {{reinterpret_cast<U8x64>(a), reinterpret_cast<U8x64>(b), reinterpret_cast<U8x64>(c),
             reinterpret_cast<U8x64>(d)}};
  }
  struct Dwords {
    U32x16 v[4];
  };
  static Dwords split(const Bytes16& a) {
    return {{reinterpret_cast<U32x16>(a.v[0]), reinterpret_cast<U32x16>(a.v[1]),
             reinterpret_cast<U32x16>(a.v[2]), reinterpret_cast<U32x16>(a.v[3])}};
  }
  static F32x16 number(U32x16 n) { return to_f32(reinterpret_cast<I32x16>(n)); }
  static F32x16 power(U32x16 bits) {
    F32x16 r;
    __builtin_memcpy(&r, &bits, sizeof r);
    return r;
  }
  static Bytes16 lookup(const uint8_t* table, const Bytes16& codes) {
#if defined(FATHOM_SIMD_IS_avx512)
    const __m512i t =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return each([&](int j) {
      return reinterpret_cast<U8x64>(_mm512_shuffle_epi8(t, reinterpret_cast<__m512i>(codes.v[j])));
    });
#elif defined(FATHOM_SIMD_IS_avx2)
    const __m256i t =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    Bytes16 r;
    __m256i v[8];
    __builtin_memcpy(v, &codes, sizeof v);
    for (__m256i& x : v) x = _mm256_shuffle_epi8(t, x);
    __builtin_memcpy(&r, v, sizeof r);
    return r;
#else
    Bytes16 r;
    uint8_t from[256], to[256];
    __builtin_memcpy(from, &codes, sizeof from);
    for (int i = 0; i < 256; ++i) to[i] = table[from[i]];
    __builtin_memcpy(&r, to, sizeof r);
    return r;
#endif
  }
  struct Scales {
    F32x16 d;
    Bytes16 s;
    Scales(F32x16 scale, const Bytes16& bytes) : d(scale), s(bytes) {}
    F32x16 operator[](int i) const {
      const auto four = reinterpret_cast<I32x16>(s.v[i / 4]);
      return d * to_f32((four << (24 - i % 4 * 8)) >> 24);
    }
  };
};

}  // namespace
}  // namespace fathom::FATHOM_SIMD_TARGET
