// Block-quantised w times x in bytes. w is unpacked for 16 rows at once into bytes that lie four
// columns to a row, so that a dot product of four bytes in each lane sums one output, and nothing
// is ever added across a register. Integer sums are exact; each run of 16 or 32 columns then enters
// its output in one f32 FMA (gemm.h).
#include "kernels/gemm_int8-inl.h"

#if defined(__SSE2__)  // every x86-64 has it, so the portable target may use it
#include <emmintrin.h>
#endif

#include "kernels/block_formats-inl.h"
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

typedef uint8_t U8x64 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef int32_t I32x16 __attribute__((vector_size(64)));

#if defined(FATHOM_SIMD_IS_avx512)
constexpr uint8_t kFlip = 128;
#else
constexpr uint8_t kFlip = 0;
#endif

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

// One block of each of 16 rows, `stride` bytes apart (block_formats-inl.h). Lane r is row r.
struct PanelBlock {
  using Bytes = Bytes16;
  using Dword = U32x16;
  const uint8_t* p;
  int64_t stride;

#if defined(FATHOM_SIMD_IS_avx512)
  __m512i rows_of_four(int64_t at, int64_t first) const {
    const auto row = [&](int64_t r) __attribute__((always_inline)) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + (first + r) * stride + at));
    };
    __m512i a = _mm512_castsi128_si512(row(0));
    a = _mm512_inserti32x4(a, row(4), 1);
    a = _mm512_inserti32x4(a, row(8), 2);
    return _mm512_inserti32x4(a, row(12), 3);
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
#else
  [[gnu::always_inline]] Bytes16 bytes(int64_t at) const {
    uint32_t to[4][16];
    for (int64_t r = 0; r < 16; ++r) {
      uint32_t from[4];
      __builtin_memcpy(from, p + r * stride + at, sizeof from);
      for (int j = 0; j < 4; ++j) to[j][r] = from[j];
    }
    Bytes16 b;
    __builtin_memcpy(&b, to, sizeof b);
    return b;
  }
#endif
  template <class T>
  U32x16 integers(int64_t at) const {
    uint32_t to[16];
    for (int64_t r = 0; r < 16; ++r) {
      T x;
      __builtin_memcpy(&x, p + r * stride + at, sizeof x);
      to[r] = x;
    }
    U32x16 v;
    __builtin_memcpy(&v, to, sizeof v);
    return v;
  }
  U32x16 dword(int64_t at) const { return integers<uint32_t>(at); }
  U32x16 u16(int64_t at) const { return integers<uint16_t>(at); }
  U32x16 u8(int64_t at) const { return integers<uint8_t>(at); }
  [[gnu::always_inline]] F32x16 f16(int64_t at) const {
    uint16_t half[16];
    for (int64_t r = 0; r < 16; ++r) __builtin_memcpy(half + r, p + r * stride + at, 2);
    return load_f16(half);
  }
  Bytes16 fifth_bits(int64_t at) const {
    const U32x16 bits = u16(at);
    return each([&](int j) {  // bits 4j to 4j + 3 to bit 4 of four bytes
      const U32x16 b = bits >> (4 * j);
      return reinterpret_cast<U8x64>(((b & 1) << 4) | ((b & 2) << 11) | ((b & 4) << 18) |
                                     ((b & 8) << 25));
    });
  }
  static Bytes16 join(U32x16 a, U32x16 b, U32x16 c, U32x16 d) {
    return {{reinterpret_cast<U8x64>(a), reinterpret_cast<U8x64>(b), reinterpret_cast<U8x64>(c),
             reinterpret_cast<U8x64>(d)}};
  }
  static F32x16 number(U32x16 n) { return to_f32(reinterpret_cast<I32x16>(n)); }
  static F32x16 power(U32x16 bits) {
    F32x16 r;
    __builtin_memcpy(&r, &bits, sizeof r);
    return r;
  }
  static Bytes16 lookup(const int8_t* table, const Bytes16& codes) {
#if defined(FATHOM_SIMD_IS_avx512)
    const __m512i t =
        _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
    return each([&](int j) {
      return reinterpret_cast<U8x64>(_mm512_shuffle_epi8(t, reinterpret_cast<__m512i>(codes.v[j])));
    });
#else
    Bytes16 r;
    uint8_t from[256], to[256];
    __builtin_memcpy(from, &codes, sizeof from);
    for (int i = 0; i < 256; ++i) to[i] = static_cast<uint8_t>(table[from[i]]);
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

// Where a block of 16 rows goes.
template <int64_t kRun>
struct PanelWriter {
  Int8Panel* out;
  int64_t column;
  [[gnu::always_inline]] void put(int64_t at, F32x16 d, const Bytes16& q) const {
    at += column;
    for (int64_t j = 0; j < 4; ++j) {
      const U8x64 code = q.v[j] ^ kFlip;
      __builtin_memcpy(out->codes + (at / 4 + j) * 64, &code, sizeof code);
    }
    if (at % kRun == 0) store(d, out->scale + at / kRun * 16);
  }
  [[gnu::always_inline]] void put(int64_t at, F32x16 d, const Bytes16& q, F32x16 m) const {
    put(at, d, q);
    if ((at + column) % kRun == 0) store(m, out->minimum + (at + column) / kRun * 16);
  }
};

template <class Format>
void unpack(const uint8_t* w, int64_t stride, int64_t cols, Int8Panel* out) {
  for (int64_t c = 0; c < cols; c += Format::kElements, w += Format::kBytes)
    Format::decode(PanelBlock{w, stride}, PanelWriter<Format::kRun>{out, c});
}

// Sums of 16 outputs. start: what the sums begin with where codes are 128 too high.
#if defined(FATHOM_SIMD_IS_avx512)
struct Sum {
  __m512i v;
};
struct Codes {
  __m512i v;
};
inline Sum begin(int32_t start) { return {_mm512_set1_epi32(start)}; }
inline Codes load_codes(const uint8_t* p) { return {_mm512_load_si512(p)}; }
inline Sum dot(Sum sum, Codes w, int32_t x) {
  return {_mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(x))};
}
inline F32x16 total(Sum a) { return {_mm512_cvtepi32_ps(a.v)}; }
#elif defined(FATHOM_SIMD_IS_avx2)
struct Sum {
  __m256i lo, hi;
};
struct Codes {
  __m256i lo, hi;
};
inline Sum begin(int32_t) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Codes load_codes(const uint8_t* p) {
  const auto* v = reinterpret_cast<const __m256i*>(p);
  return {_mm256_load_si256(v), _mm256_load_si256(v + 1)};
}
// |w| <= 128 and |x| <= 127: two products fit into 16 bits.
inline __m256i dot_8(__m256i sum, __m256i w, __m256i x) {
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline Sum dot(Sum sum, Codes w, int32_t x) {
  const __m256i four = _mm256_set1_epi32(x);
  return {dot_8(sum.lo, w.lo, four), dot_8(sum.hi, w.hi, four)};
}
inline F32x16 total(Sum a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
#elif defined(__SSE2__)
struct Sum {
  __m128i v[4];
};
struct Codes {
  const uint8_t* p;
};
inline Sum begin(int32_t) { return {}; }
inline Codes load_codes(const uint8_t* p) { return {p}; }
inline Sum dot(Sum sum, Codes w, int32_t x) {
  const __m128i bytes = _mm_set1_epi32(x),
                four = _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
  for (int i = 0; i < 4; ++i) {
    const __m128i codes = _mm_load_si128(reinterpret_cast<const __m128i*>(w.p) + i);
    const __m128i low = _mm_srai_epi16(_mm_unpacklo_epi8(codes, codes), 8),
                  high = _mm_srai_epi16(_mm_unpackhi_epi8(codes, codes), 8);
    const __m128 pairs[2] = {_mm_castsi128_ps(_mm_madd_epi16(low, four)),
                             _mm_castsi128_ps(_mm_madd_epi16(high, four))};
    const __m128i even = _mm_castps_si128(_mm_shuffle_ps(pairs[0], pairs[1], 0x88)),
                  odd = _mm_castps_si128(_mm_shuffle_ps(pairs[0], pairs[1], 0xdd));
    sum.v[i] = _mm_add_epi32(sum.v[i], _mm_add_epi32(even, odd));
  }
  return sum;
}
inline F32x16 total(const Sum& a) {
  F32x16 r;
  for (int i = 0; i < 4; ++i) _mm_storeu_ps(r.v + 4 * i, _mm_cvtepi32_ps(a.v[i]));
  return r;
}
#else
struct Sum {
  int32_t v[16];
};
struct Codes {
  const uint8_t* p;
};
inline Sum begin(int32_t) { return {}; }
inline Codes load_codes(const uint8_t* p) { return {p}; }
inline Sum dot(Sum sum, Codes w, int32_t x) {
  int8_t four[4];
  __builtin_memcpy(four, &x, sizeof four);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 4; ++j) sum.v[i] += static_cast<int8_t>(w.p[4 * i + j]) * four[j];
  }
  return sum;
}
inline F32x16 total(const Sum& a) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
#endif

// As many rows and panels at once as the registers hold, and how many dot products in a row are
// written out.
#if defined(FATHOM_SIMD_IS_avx512)
constexpr int64_t kRows = 6, kTogether = kInt8Panels, kUnroll = 8;
#elif defined(FATHOM_SIMD_IS_avx2)
constexpr int64_t kRows = 2, kTogether = 1, kUnroll = 4;
#else
constexpr int64_t kRows = 1, kTogether = 1, kUnroll = 1;
#endif

template <class T>
const T* row_of(const T* first, int64_t r, int64_t stride) {
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(first) + r * stride);
}

// R rows of x, C panels.
template <int64_t R, int64_t C, int64_t kRun, bool kMinimum>
void tile(const Int8Panel* w, const Int8Tile& t, int64_t m, float* sums) {
  F32x16 y[R][C];
  const auto all = [&](auto body) __attribute__((always_inline)) {
#pragma GCC unroll 6
    for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int64_t c = 0; c < C; ++c) body(r, c);
    }
  };
  all([&](int64_t r, int64_t c) { y[r][c] = load(sums + r * 16 * kInt8Panels + 16 * c); });
  for (int64_t run = 0; run < t.blocks * kInt8Block / kRun; ++run) {
    Sum sum[R][C];
    all([&](int64_t r, int64_t c) {
      sum[r][c] = begin(row_of(t.x.start, m + r, t.x_stride)[run]);
    });
#pragma GCC unroll kUnroll
    for (int64_t q = 0; q < kRun / 4; ++q) {
      const int64_t column = run * kRun + 4 * q;
      Codes codes[C];
      for (int64_t c = 0; c < C; ++c) codes[c] = load_codes(w[c].codes + column * 16);
#pragma GCC unroll 6
      for (int64_t r = 0; r < R; ++r) {
        int32_t x;
        __builtin_memcpy(&x, row_of(t.x.codes, m + r, t.x_stride) + column, sizeof x);
        for (int64_t c = 0; c < C; ++c) sum[r][c] = dot(sum[r][c], codes[c], x);
      }
    }
    F32x16 d[C], low[C];
    for (int64_t c = 0; c < C; ++c) {
      d[c] = load(w[c].scale + run * 16);
      if (kMinimum) low[c] = load(w[c].minimum + run * 16);
    }
    all([&](int64_t r, int64_t c) {
      const F32x16 scale = set(row_of(t.x.scale, m + r, t.x_stride)[run * kRun / kInt8Block]);
      y[r][c] = fma(total(sum[r][c]), d[c] * scale, y[r][c]);
      if (kMinimum) y[r][c] = fma(low[c], set(row_of(t.x.sum, m + r, t.x_stride)[run]), y[r][c]);
    });
  }
  all([&](int64_t r, int64_t c) { store(y[r][c], sums + r * 16 * kInt8Panels + 16 * c); });
}

template <int64_t R, int64_t kRun, bool kMinimum>
void rows(const Int8Tile& t, int64_t m) {
  for (int64_t c = 0; c < kInt8Panels; c += kTogether)
    tile<R, kTogether, kRun, kMinimum>(t.w + c, t, m, t.total + m * 16 * kInt8Panels + 16 * c);
}

// The last m rows, fewer than a tile's.
template <int64_t R, int64_t kRun, bool kMinimum>
void rest(const Int8Tile& t, int64_t m) {
  if constexpr (R > 0) {
    if (t.m - m == R) return rows<R, kRun, kMinimum>(t, m);
    rest<R - 1, kRun, kMinimum>(t, m);
  }
}

template <int64_t kRun, bool kMinimum>
void multiply_panels(const Int8Tile& t) {
  int64_t m = 0;
  for (; m + kRows <= t.m; m += kRows) rows<kRows, kRun, kMinimum>(t, m);
  rest<kRows - 1, kRun, kMinimum>(t, m);
}

// 16 integers below 128 as bytes.
inline void store_codes(F32x16 a, int8_t* p) {
#if defined(FATHOM_SIMD_IS_avx512)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
#else
  float v[16];
  store(a, v);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v[i]);
#endif
}

}  // namespace

void int8_multiply_16(const Int8Tile& t) { multiply_panels<16, false>(t); }
void int8_multiply_16_minimum(const Int8Tile& t) { multiply_panels<16, true>(t); }
void int8_multiply_32(const Int8Tile& t) { multiply_panels<32, false>(t); }
void int8_multiply_32_minimum(const Int8Tile& t) { multiply_panels<32, true>(t); }

#define FATHOM_UNPACK(name, format)                                                         \
  void int8_unpack_##name(const uint8_t* w, int64_t stride, int64_t cols, Int8Panel* out) { \
    unpack<format>(w, stride, cols, out);                                                   \
  }
FATHOM_UNPACK(q8_0, Q8_0)
FATHOM_UNPACK(q4_0, Q4_0)
FATHOM_UNPACK(q4_1, Q4_1)
FATHOM_UNPACK(q5_0, Q5_0)
FATHOM_UNPACK(q5_1, Q5_1)
FATHOM_UNPACK(q2_k, Q2_K)
FATHOM_UNPACK(q3_k, Q3_K)
FATHOM_UNPACK(q4_k, Q4_K)
FATHOM_UNPACK(q5_k, Q5_K)
FATHOM_UNPACK(q6_k, Q6_K)
FATHOM_UNPACK(iq4_nl, Iq4Nl)
FATHOM_UNPACK(iq4_xs, Iq4Xs)
FATHOM_UNPACK(mxfp4, Mxfp4)

void int8_round_row(const float* x, int64_t blocks, int64_t run, const Int8Row& out) {
  for (int64_t b = 0; b < blocks; ++b) {
    F32x16 v[2] = {load(x + 32 * b), load(x + 32 * b + 16)};
    const float most = reduce_max(max(max(v[0], zero() - v[0]), max(v[1], zero() - v[1])));
    // 0, or NaN if anything here is not finite: the outputs are then NaN
    const float finite = reduce_add(fma(v[0], zero(), v[1] * zero()));
    const bool nothing = !(most >= 0x1p-100f) || finite != 0;  // 127 / most would overflow
    const float scale = nothing ? finite : most / 127.0f;
    const F32x16 inverse = set(nothing ? 0.0f : 127.0f / most);
    int32_t sums[2] = {0, 0};
    for (int i = 0; i < 2; ++i) {
      const F32x16 codes = finite != 0 ? zero() : round_nearest(v[i] * inverse);
      store_codes(codes, out.codes + 32 * b + 16 * i);
      sums[i] = static_cast<int32_t>(reduce_add(codes));
    }
    out.scale[b] = scale;
    if (run == 32) sums[0] += sums[1];
    for (int64_t i = 0; i < 32 / run; ++i) {
      out.start[b * (32 / run) + i] = -128 * sums[i];
      out.sum[b * (32 / run) + i] = scale * static_cast<float>(sums[i]);
    }
  }
}

}  // namespace fathom::FATHOM_SIMD_TARGET
