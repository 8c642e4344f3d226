// The GGUF block formats (models of their layout: ggml's block_q4_0 and so on), one body per format
// for three readers: the 16 values of a run in one row (quantize.simd.cc), and those of 16 rows at
// once, where they lie in a file or in tiles (panel_block-inl.h).
//
// A reader In gives of its block(s)
//   Bytes bytes(offset)        16 bytes (of each row)
//   Dword dword(offset)        an integer (of each row)
//   F32x16 half_at(offset)     an f16, at the very beginning or end of the block
//   Dword byte_at(0)           its first byte
//   F32x16 half(Dword)         the f16 in its lower half, one lane per value it is a scale of
//   Bytes fifth_bits(Dword, i)  16 where the bit of the value is set: bit 16 i + value
//   number(Dword), half_power(Dword)  n as f32; 2^(n - 128), for n < 2 a subnormal
//   join(Dword x 4)            16 bytes from four integers
//   split(Bytes)               the four integers
//   lookup(code book, Bytes)   entries of a table of 16 bytes
//   Scales(F32x16 d, Bytes s)  whose [i] is d times the signed byte i of s
// and a writer Out takes put(offset, d, u) and put(offset, d, u, m): the 16 values from `offset` of
// the block on are d q and d q + m, where q = u - kZero; in the order of the offsets. All products
// are exact in f32 (11 bits of an f16 scale times at most 13 bits of integers).
#pragma once

#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// The 4-bit code books of IQ4_NL (128 more than its values) and MXFP4 (12 more than the doubled
// E2M1).
constexpr uint8_t kIq4[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                              129, 141, 153, 166, 181, 197, 217, 241};
constexpr uint8_t kFp4[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

// tile_place: where a row's byte `at` of a block is in a tile (gemm_int8-inl.h), by 16: bytes lie
// in the order in which decode() asks for them, which is mostly the file's.
struct InOrder {
  static constexpr int64_t tile_place(int64_t at) { return at; }
};

// kElements and kBytes of a block; kRun: values that share a scale; kMinimum: d q + m; kBits: of the
// bytes of put(), at most; kZero: what these are above q.
struct Q8_0 : InOrder {
  static constexpr int64_t kElements = 32, kBytes = 34, kRun = 32, kBits = 8;
  static constexpr uint8_t kZero = 128;
  static constexpr bool kMinimum = false;
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const F32x16 d = b.half_at(0);
    y.put(0, d, b.bytes(2) ^ 128);
    y.put(16, d, b.bytes(18) ^ 128);
  }
};

struct Q4_0 : InOrder {
  static constexpr int64_t kElements = 32, kBytes = 18, kRun = 32, kBits = 4;
  static constexpr uint8_t kZero = 8;
  static constexpr bool kMinimum = false;
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const F32x16 d = b.half_at(0);
    const auto q = b.bytes(2);
    y.put(0, d, q & 15);
    y.put(16, d, q >> 4);
  }
};

struct Q4_1 : InOrder {
  static constexpr int64_t kElements = 32, kBytes = 20, kRun = 32, kBits = 4;
  static constexpr uint8_t kZero = 0;
  static constexpr bool kMinimum = true;
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const auto scales = b.dword(0);
    const F32x16 d = In::half(scales), m = In::half(scales >> 16);
    const auto q = b.bytes(4);
    y.put(0, d, q & 15, m);
    y.put(16, d, q >> 4, m);
  }
};

struct Q5_0 : InOrder {
  static constexpr int64_t kElements = 32, kBytes = 22, kRun = 32, kBits = 5;
  static constexpr uint8_t kZero = 16;
  static constexpr bool kMinimum = false;
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const F32x16 d = b.half_at(0);
    const auto q = b.bytes(6);
    const auto fifth = b.dword(2);
    y.put(0, d, (q & 15) | b.fifth_bits(fifth, 0));
    y.put(16, d, (q >> 4) | b.fifth_bits(fifth, 1));
  }
};

struct Q5_1 : InOrder {
  static constexpr int64_t kElements = 32, kBytes = 24, kRun = 32, kBits = 5;
  static constexpr uint8_t kZero = 0;
  static constexpr bool kMinimum = true;
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const auto scales = b.dword(0);
    const F32x16 d = In::half(scales), m = In::half(scales >> 16);
    const auto q = b.bytes(8);
    const auto fifth = b.dword(4);
    y.put(0, d, (q & 15) | b.fifth_bits(fifth, 0), m);
    y.put(16, d, (q >> 4) | b.fifth_bits(fifth, 1), m);
  }
};

struct Iq4Nl : InOrder {
  static constexpr int64_t kElements = 32, kBytes = 18, kRun = 32, kBits = 8;
  static constexpr uint8_t kZero = 128;
  static constexpr bool kMinimum = false;
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const F32x16 d = b.half_at(0);
    const auto q = b.bytes(2);
    y.put(0, d, b.lookup(kIq4, q & 15));
    y.put(16, d, b.lookup(kIq4, q >> 4));
  }
};

struct Mxfp4 : InOrder {
  static constexpr int64_t kElements = 32, kBytes = 17, kRun = 32, kBits = 5;
  static constexpr uint8_t kZero = 12;
  static constexpr bool kMinimum = false;
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const F32x16 d = In::half_power(b.byte_at(0));
    const auto q = b.bytes(1);
    y.put(0, d, b.lookup(kFp4, q & 15));
    y.put(16, d, b.lookup(kFp4, q >> 4));
  }
};

// ---- blocks of 256: 8 or 16 runs, each with a scale of its own ----

struct Q2_K {
  static constexpr int64_t kElements = 256, kBytes = 84, kRun = 16, kBits = 2;
  static constexpr uint8_t kZero = 0;
  static constexpr bool kMinimum = true;
  static constexpr int64_t tile_place(int64_t at) { return at < 80 ? at + 4 : at - 80; }
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const auto s = b.bytes(0);
    const auto scales = b.dword(80);
    const typename In::Scales d(In::half(scales), s & 15),
        m(In::half(scales >> 16) * set(-1.0f), s >> 4);
    for (int half = 0; half < 2; ++half) {
      auto q0 = b.bytes(16 + 32 * half), q1 = b.bytes(32 + 32 * half);
      for (int k = 8 * half; k < 8 * half + 8; k += 2) {
        y.put(16 * k, d[k], q0 & 3, m[k]);
        y.put(16 * k + 16, d[k + 1], q1 & 3, m[k + 1]);
        q0 = q0 >> 2;
        q1 = q1 >> 2;
      }
    }
  }
};

struct Q3_K {
  static constexpr int64_t kElements = 256, kBytes = 110, kRun = 16, kBits = 3;
  static constexpr uint8_t kZero = 4;
  static constexpr bool kMinimum = false;
  static constexpr int64_t tile_place(int64_t at) { return at < 96 ? at + 14 : at - 96; }
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const auto a0 = b.dword(96), a1 = b.dword(100), t = b.dword(104);
    constexpr uint32_t kLow = 0x0f0f0f0f, kHigh = 0x30303030;
    const auto s =
        In::join((a0 & kLow) | ((t << 4) & kHigh), (a1 & kLow) | ((t << 2) & kHigh),
                 ((a0 >> 4) & kLow) | (t & kHigh), ((a1 >> 4) & kLow) | ((t >> 2) & kHigh));
    const typename In::Scales d(b.half_at(108), s - 32);
    auto h0 = b.bytes(0), h1 = b.bytes(16);  // a clear bit subtracts 4
    for (int half = 0; half < 2; ++half) {
      auto q0 = b.bytes(32 + 32 * half), q1 = b.bytes(48 + 32 * half);
      for (int k = 8 * half; k < 8 * half + 8; k += 2) {
        y.put(16 * k, d[k], (q0 & 3) | ((h0 << 2) & 4));
        y.put(16 * k + 16, d[k + 1], (q1 & 3) | ((h1 << 2) & 4));
        q0 = q0 >> 2;
        q1 = q1 >> 2;
        h0 = h0 >> 1;
        h1 = h1 >> 1;
      }
    }
  }
};

// Of Q4_K and Q5_K: 8 scales of 6 bits, then 8 minimums, and what they are multiples of.
template <class In>
struct ScalesAndMinimums {
  F32x16 d, m;
  typename In::Bytes s;
  [[gnu::always_inline]] explicit ScalesAndMinimums(const In& in) {
    const auto header = In::split(in.bytes(0));
    const auto a = header.v[1], b = header.v[2], c = header.v[3];
    d = In::half(header.v[0]);
    m = In::half(header.v[0] >> 16) * set(-1.0f);
    constexpr uint32_t kLow4 = 0x0f0f0f0f, kHigh2 = 0x30303030, kSix = 0x3f3f3f3f;
    s = In::join(a & kSix, (c & kLow4) | ((a >> 2) & kHigh2), b & kSix,
                 ((c >> 4) & kLow4) | ((b >> 2) & kHigh2));
  }
};

struct Q4_K : InOrder {
  static constexpr int64_t kElements = 256, kBytes = 144, kRun = 32, kBits = 4;
  static constexpr uint8_t kZero = 0;
  static constexpr bool kMinimum = true;
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const ScalesAndMinimums<In> all(b);
    const typename In::Scales d(all.d, all.s), m(all.m, all.s);
    for (int j = 0; j < 8; j += 2) {
      const auto q0 = b.bytes(16 + 16 * j), q1 = b.bytes(32 + 16 * j);
      y.put(32 * j, d[j], q0 & 15, m[j + 8]);
      y.put(32 * j + 16, d[j], q1 & 15, m[j + 8]);
      y.put(32 * j + 32, d[j + 1], q0 >> 4, m[j + 9]);
      y.put(32 * j + 48, d[j + 1], q1 >> 4, m[j + 9]);
    }
  }
};

struct Q5_K : InOrder {
  static constexpr int64_t kElements = 256, kBytes = 176, kRun = 32, kBits = 5;
  static constexpr uint8_t kZero = 0;
  static constexpr bool kMinimum = true;
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const ScalesAndMinimums<In> all(b);
    const typename In::Scales d(all.d, all.s), m(all.m, all.s);
    auto h0 = b.bytes(16), h1 = b.bytes(32);
    for (int j = 0; j < 8; j += 2) {
      const auto q0 = b.bytes(48 + 16 * j), q1 = b.bytes(64 + 16 * j);
      y.put(32 * j, d[j], (q0 & 15) | ((h0 << 4) & 16), m[j + 8]);
      y.put(32 * j + 16, d[j], (q1 & 15) | ((h1 << 4) & 16), m[j + 8]);
      y.put(32 * j + 32, d[j + 1], (q0 >> 4) | ((h0 << 3) & 16), m[j + 9]);
      y.put(32 * j + 48, d[j + 1], (q1 >> 4) | ((h1 << 3) & 16), m[j + 9]);
      h0 = h0 >> 2;
      h1 = h1 >> 2;
    }
  }
};

struct Q6_K {
  static constexpr int64_t kElements = 256, kBytes = 210, kRun = 16, kBits = 6;
  static constexpr uint8_t kZero = 32;
  static constexpr bool kMinimum = false;
  static constexpr int64_t tile_place(int64_t at) {
    if (at >= 192) return at - 192;                             // scales
    if (at >= 128) return 18 + (at - 128) / 32 * 96 + at % 32;  // high bits of a half
    return 18 + at / 64 * 96 + 32 + at % 64;                    // its low bits
  }
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const typename In::Scales d(b.half_at(208), b.bytes(192));
    for (int half = 0; half < 2; ++half) {
      const int low = 64 * half, k = 8 * half;
      auto h0 = b.bytes(128 + 32 * half), h1 = b.bytes(144 + 32 * half);
      auto a0 = b.bytes(low), a1 = b.bytes(low + 16);
      y.put(16 * k, d[k], (a0 & 15) | ((h0 << 4) & 48));
      y.put(16 * k + 16, d[k + 1], (a1 & 15) | ((h1 << 4) & 48));
      const auto b0 = b.bytes(low + 32), b1 = b.bytes(low + 48);
      y.put(16 * k + 32, d[k + 2], (b0 & 15) | ((h0 << 2) & 48));
      y.put(16 * k + 48, d[k + 3], (b1 & 15) | ((h1 << 2) & 48));
      y.put(16 * k + 64, d[k + 4], (a0 >> 4) | (h0 & 48));
      y.put(16 * k + 80, d[k + 5], (a1 >> 4) | (h1 & 48));
      y.put(16 * k + 96, d[k + 6], (b0 >> 4) | ((h0 >> 2) & 48));
      y.put(16 * k + 112, d[k + 7], (b1 >> 4) | ((h1 >> 2) & 48));
    }
  }
};

struct Iq4Xs : InOrder {
  static constexpr int64_t kElements = 256, kBytes = 136, kRun = 32, kBits = 8;
  static constexpr uint8_t kZero = 128;
  static constexpr bool kMinimum = false;
  template <class In, class Out>
  [[gnu::always_inline]] static void decode(const In& b, const Out& y) {
    const auto first = b.dword(0), high = first >> 16, low = b.dword(4);
    const F32x16 d = In::half(first);
    for (int j = 0; j < 8; ++j) {
      const auto scale = ((low >> (4 * j)) & 15) | (((high >> (2 * j)) & 3) << 4);
      const F32x16 s = d * (In::number(scale) - set(32.0f));
      const auto q = b.bytes(8 + 16 * j);
      y.put(32 * j, s, b.lookup(kIq4, q & 15));
      y.put(32 * j + 16, s, b.lookup(kIq4, q >> 4));
    }
  }
};

}  // namespace
}  // namespace fathom::FATHOM_SIMD_TARGET
