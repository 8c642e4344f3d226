// A block of each of 16 rows, as block_formats-inl.h reads it: lane r of every register is row r,
// and four neighbouring bytes of a row share a lane, so that a dot product of four bytes in each
// lane sums one output per row and nothing is ever added across a register.
#pragma once

#include <type_traits>

#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// 64 bytes, 16 dwords: one register or, where registers are narrower, several (the compiler's own
// 64-byte vectors would be taken apart lane by lane there).
#if defined(FATHOM_SIMD_IS_avx512)
typedef uint8_t U8x64 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef int32_t I32x16 __attribute__((vector_size(64)));
inline U32x16 load_dwords(const uint8_t* p) {
  return reinterpret_cast<U32x16>(_mm512_loadu_si512(p));
}
inline U8x64 as_bytes(U32x16 a) { return reinterpret_cast<U8x64>(a); }
inline U32x16 as_dwords(U8x64 a) { return reinterpret_cast<U32x16>(a); }
inline I32x16 as_signed(U32x16 a) { return reinterpret_cast<I32x16>(a); }
#else
#if defined(FATHOM_SIMD_IS_avx2)
#define FATHOM_PART_BYTES 32
#else
#define FATHOM_PART_BYTES 16
#endif
typedef uint8_t U8Part __attribute__((vector_size(FATHOM_PART_BYTES)));
typedef uint32_t U32Part __attribute__((vector_size(FATHOM_PART_BYTES)));
typedef int32_t I32Part __attribute__((vector_size(FATHOM_PART_BYTES)));
template <class Part>
struct alignas(FATHOM_PART_BYTES) Several {
  static constexpr int kCount = 64 / FATHOM_PART_BYTES;
  Part part[kCount];
  template <class F>
  static Several of(F f) {
    Several r;
#pragma GCC unroll 4
    for (int i = 0; i < kCount; ++i) r.part[i] = f(i);
    return r;
  }
#define FATHOM_SEVERAL(op)                                         \
  friend Several operator op(const Several& a, const Several& b) { \
    return of([&](int i) { return a.part[i] op b.part[i]; });      \
  }
  FATHOM_SEVERAL(&)
  FATHOM_SEVERAL(|)
#undef FATHOM_SEVERAL
#define FATHOM_SEVERAL(op, Scalar)                         \
  friend Several operator op(const Several& a, Scalar b) { \
    return of([&](int i) { return a.part[i] op b; });      \
  }
  using Lane = std::remove_cvref_t<decltype(Part{}[0])>;
  FATHOM_SEVERAL(&, Lane)
  FATHOM_SEVERAL(^, Lane)
  FATHOM_SEVERAL(+, Lane)
  FATHOM_SEVERAL(-, Lane)
  FATHOM_SEVERAL(<<, int)
  FATHOM_SEVERAL(>>, int)
#undef FATHOM_SEVERAL
};
using U8x64 = Several<U8Part>;
using U32x16 = Several<U32Part>;
using I32x16 = Several<I32Part>;
inline U8x64 as_bytes(const U32x16& a) {
  return U8x64::of([&](int i) { return reinterpret_cast<U8Part>(a.part[i]); });
}
inline U32x16 as_dwords(const U8x64& a) {
  return U32x16::of([&](int i) { return reinterpret_cast<U32Part>(a.part[i]); });
}
inline I32x16 as_signed(const U32x16& a) {
  return I32x16::of([&](int i) { return reinterpret_cast<I32Part>(a.part[i]); });
}
// Part by part: what is copied whole goes through memory.
inline U32x16 load_dwords(const uint8_t* p) {
  return U32x16::of([&](int i) {
    U32Part part;
    __builtin_memcpy(&part, p + i * FATHOM_PART_BYTES, sizeof part);
    return part;
  });
}
#undef FATHOM_PART_BYTES
#endif

// 16 bytes of each of 16 rows: v[j] holds bytes 4j to 4j + 3 of row r in its lane r.
struct Bytes16 {
  U8x64 v[4];
};
template <class Each>
inline Bytes16 each(Each f) {
  return {{f(0), f(1), f(2), f(3)}};
}
inline Bytes16 operator&(const Bytes16& a, uint8_t b) {
  return each([&](int j) { return a.v[j] & b; });
}
inline Bytes16 operator|(const Bytes16& a, const Bytes16& b) {
  return each([&](int j) { return a.v[j] | b.v[j]; });
}
inline Bytes16 operator^(const Bytes16& a, uint8_t b) {
  return each([&](int j) { return a.v[j] ^ b; });
}
inline Bytes16 operator-(const Bytes16& a, uint8_t b) {
  return each([&](int j) { return a.v[j] - b; });
}
inline Bytes16 operator>>(const Bytes16& a, int n) {
  const auto kept = static_cast<uint8_t>(255 >> n);
  return each([&](int j) { return as_bytes(as_dwords(a.v[j]) >> n) & kept; });
}
inline Bytes16 operator<<(const Bytes16& a, int n) {
  const auto kept = static_cast<uint8_t>(255 << n);
  return each([&](int j) { return as_bytes(as_dwords(a.v[j]) << n) & kept; });
}

inline F32x16 as_f32(const U32x16& a) {
#if defined(FATHOM_SIMD_IS_avx512)
  return {reinterpret_cast<__m512>(a)};
#elif defined(FATHOM_SIMD_IS_avx2)
  return {reinterpret_cast<__m256>(a.part[0]), reinterpret_cast<__m256>(a.part[1])};
#else
  F32x16 r;
  __builtin_memcpy(&r, &a, sizeof r);
  return r;
#endif
}
inline U32x16 widen_bytes(const uint8_t* p) {
#if defined(FATHOM_SIMD_IS_avx512)
  return reinterpret_cast<U32x16>(
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(FATHOM_SIMD_IS_avx2)
  return U32x16::of([&](int i) {
    return reinterpret_cast<U32Part>(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * i))));
  });
#else
  uint32_t wide[16];
  for (int i = 0; i < 16; ++i) wide[i] = p[i];
  U32x16 v;
  __builtin_memcpy(&v, wide, sizeof v);
  return v;
#endif
}
inline F32x16 to_f32(const I32x16& a) {
#if defined(FATHOM_SIMD_IS_avx512)
  return {_mm512_cvtepi32_ps(reinterpret_cast<__m512i>(a))};
#elif defined(FATHOM_SIMD_IS_avx2)
  return {_mm256_cvtepi32_ps(reinterpret_cast<__m256i>(a.part[0])),
          _mm256_cvtepi32_ps(reinterpret_cast<__m256i>(a.part[1]))};
#else
  int32_t from[16];
  __builtin_memcpy(from, &a, sizeof from);
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(from[i]);
  return r;
#endif
}

// What readers of 16 blocks share: all that is no loading.
struct PanelValues {
  using Bytes = Bytes16;
  using Dword = U32x16;
  static F32x16 half(U32x16 bits) {
#if defined(FATHOM_SIMD_IS_avx512)
    return {_mm512_cvtph_ps(_mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(bits)))};
#elif defined(FATHOM_SIMD_IS_avx2)
    const U32x16 low = bits & 0xffff;
    const __m256i halves = _mm256_permute4x64_epi64(  // packed within 128 bits
        _mm256_packus_epi32(reinterpret_cast<__m256i>(low.part[0]),
                            reinterpret_cast<__m256i>(low.part[1])),
        0xd8);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
#else
    uint32_t from[16];
    __builtin_memcpy(from, &bits, sizeof from);
    uint16_t halves[16];
    for (int r = 0; r < 16; ++r) halves[r] = static_cast<uint16_t>(from[r]);
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
#elif defined(FATHOM_SIMD_IS_avx2)
    return each([&](int j) {  // as above
      const __m256i byte = _mm256_add_epi8(_mm256_broadcastsi128_si256(_mm_set_epi32(
                                               0x0c0c0c0c, 0x08080808, 0x04040404, 0)),
                                           _mm256_set1_epi8(static_cast<char>(2 * i + j / 2))),
                    bit = _mm256_set1_epi32(
                        static_cast<int32_t>(j % 2 == 0 ? 0x08040201u : 0x80402010u));
      return U8x64::of([&](int k) {
        const __m256i four = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(bits.part[k]), byte);
        const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(four, bit), bit);
        return reinterpret_cast<U8Part>(_mm256_and_si256(set, _mm256_set1_epi8(16)));
      });
    });
#else
    return each([&](int j) {  // bits 4j to 4j + 3 to bit 4 of four bytes
      const U32x16 b = bits >> (16 * i + 4 * j);
      return as_bytes(((b & 1) << 4) | ((b & 2) << 11) | ((b & 4) << 18) | ((b & 8) << 25));
    });
#endif
  }
  static Bytes16 join(U32x16 a, U32x16 b, U32x16 c, U32x16 d) {
    return {{as_bytes(a), as_bytes(b), as_bytes(c), as_bytes(d)}};
  }
  struct Dwords {
    U32x16 v[4];
  };
  static Dwords split(const Bytes16& a) {
    return {{as_dwords(a.v[0]), as_dwords(a.v[1]), as_dwords(a.v[2]), as_dwords(a.v[3])}};
  }
  static F32x16 number(U32x16 n) { return to_f32(as_signed(n)); }
  static F32x16 half_power(U32x16 n) {
    // 2^(n / 2 - 64) times 2^((n + 1) / 2 - 64), both normal numbers
    const U32x16 a = n >> 1, b = (n + 1) >> 1;
    return as_f32((a + 63) << 23) * as_f32((b + 63) << 23);
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
    return each([&](int j) {
      return U8x64::of([&](int k) {
        return reinterpret_cast<U8Part>(
            _mm256_shuffle_epi8(t, reinterpret_cast<__m256i>(codes.v[j].part[k])));
      });
    });
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
      const auto four = as_signed(as_dwords(s.v[i / 4]));
      return d * to_f32((four << (24 - i % 4 * 8)) >> 24);
    }
  };
};

// Of 16 rows of a file.
struct PanelBlock : PanelValues {
  // Rows 0, 4, 8 and 12: all 16 are then one of few registers and a multiple of the stride away.
  const uint8_t* p[4];
  int64_t stride;  // from row to row

  PanelBlock(const uint8_t* w, int64_t row_stride)
      : p{w, w + 4 * row_stride, w + 8 * row_stride, w + 12 * row_stride}, stride(row_stride) {}
  const uint8_t* row(int64_t r) const { return p[r / 4] + r % 4 * stride; }
  void advance(int64_t bytes) {
    for (const uint8_t*& q : p) q += bytes;
  }

#if defined(FATHOM_SIMD_IS_avx512)
  // Loads that fill a part of a register are blends, which many ports can do; inserts are shuffles.
  __m512i rows_of_four(int64_t at, int64_t first) const {
    const auto load_row = [&](int64_t r) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row(first + r) + at));
    };
    __m512i a = _mm512_zextsi128_si512(load_row(0));
    a = _mm512_mask_broadcast_i32x4(a, 0x00f0, load_row(4));
    a = _mm512_mask_broadcast_i32x4(a, 0x0f00, load_row(8));
    return _mm512_mask_broadcast_i32x4(a, 0xf000, load_row(12));
  }
  Bytes16 bytes(int64_t at) const {
    const __m512i a = rows_of_four(at, 0), b = rows_of_four(at, 1), c = rows_of_four(at, 2),
                  d = rows_of_four(at, 3);
    const __m512i ab0 = _mm512_unpacklo_epi32(a, b), ab1 = _mm512_unpackhi_epi32(a, b),
                  cd0 = _mm512_unpacklo_epi32(c, d), cd1 = _mm512_unpackhi_epi32(c, d);
    return {
        { reinterpret_cast<U8x64>(_mm512_unpacklo_epi64(ab0, cd0)),
          reinterpret_cast<U8x64>(_mm512_unpackhi_epi64(ab0, cd0)),
          reinterpret_cast<U8x64>(_mm512_unpacklo_epi64(ab1, cd1)),
          reinterpret_cast<U8x64>(_mm512_unpackhi_epi64(ab1, cd1)) }};
  }
#else
#if defined(FATHOM_SIMD_IS_avx2)
  Bytes16 bytes(int64_t at) const {
    Bytes16 out;
    __m256i halves[4][2];
    for (int half = 0; half < 2; ++half) {  // rows 8 half to 8 half + 7
      const auto two = [&](int64_t r) {
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
  Bytes16 bytes(int64_t at) const {
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
#endif

#if defined(FATHOM_SIMD_IS_avx512) || defined(FATHOM_SIMD_IS_avx2)
  // The first or the last of 16 bytes, which are all of the block's.
  U32x16 dword(int64_t at) const {
    return as_dwords(at < 12 ? bytes(at).v[0] : bytes(at - 12).v[3]);
  }
#else
  U32x16 dword(int64_t at) const {
    uint32_t to[16];
    for (int64_t r = 0; r < 16; ++r) __builtin_memcpy(to + r, row(r) + at, 4);
    U32x16 v;
    __builtin_memcpy(&v, to, sizeof v);
    return v;
  }
#endif

  F32x16 half_at(int64_t at) const { return half(at == 0 ? dword(0) : dword(at - 2) >> 16); }
  U32x16 byte_at(int64_t at) const { return dword(at) & 255; }
};

// Of a tile (gemm_int8-inl.h).
template <class Format>
struct TileBlock : PanelValues {
  const uint8_t* p;

  // Of what the rows have at `at`, side by side.
  const uint8_t* place(int64_t at) const { return p + 16 * Format::tile_place(at); }

  TileBlock(const uint8_t* tile, int64_t) : p(tile) {}
  void advance(int64_t bytes) { p += 16 * bytes; }
  U32x16 dword(int64_t at) const { return load_dwords(place(at)); }
  Bytes16 bytes(int64_t at) const {
    return each([&](int j) { return as_bytes(dword(at + 4 * j)); });
  }
  F32x16 half_at(int64_t at) const {
    uint16_t halves[16];
    __builtin_memcpy(halves, place(at), sizeof halves);
    return load_f16(halves);
  }
  U32x16 byte_at(int64_t at) const { return widen_bytes(place(at)); }
};

}  // namespace
}  // namespace fathom::FATHOM_SIMD_TARGET
