// Block-quantised w times x in bytes. w is unpacked for 16 rows at once into bytes that lie four
// columns to a row, so that a dot product of four bytes in each lane sums one output, and nothing
// is ever added across a register. Integer sums are exact; each run of 16 or 32 columns then enters
// its output in one f32 FMA (gemm.h).
#include "kernels/gemm_int8-inl.h"

#include <type_traits>

#if defined(__SSE2__)  // every x86-64 has it, so the portable target may use it
#include <emmintrin.h>
#endif

#include "kernels/block_formats-inl.h"
#include "kernels/panel_block-inl.h"
#include "kernels/simd-inl.h"
#include "kernels/transpose-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

#if defined(FATHOM_SIMD_IS_avx512) || defined(FATHOM_SIMD_IS_avxvnni)
constexpr bool kTakesUnsigned = true;  // vpdpbusd multiplies unsigned by signed
#else
constexpr bool kTakesUnsigned = false;
#endif
// What the codes of a panel are above q. Bytes that take all 8 bits become signed where those
// cannot be multiplied as they are.
template <class Format>
constexpr uint8_t kPanelZero = kTakesUnsigned || Format::kBits < 8 ? Format::kZero : 0;

template <class Format>
inline Bytes16 to_codes(const Bytes16& u) {
  if constexpr (kPanelZero<Format> == Format::kZero) return u;
  return u ^ 128;
}

// Where a block of 16 rows goes.
template <class Format>
struct PanelWriter {
  static constexpr int64_t kRun = Format::kRun;
  Int8Panel* out;
  int64_t column;
  [[gnu::always_inline]] void put(int64_t at, F32x16 d, const Bytes16& u) const {
    at += column;
    const Bytes16 codes = to_codes<Format>(u);
    __builtin_memcpy(out->codes + at * 16, &codes, sizeof codes);
    if (at % kRun == 0) store(d, out->scale + at / kRun * 16);
  }
  [[gnu::always_inline]] void put(int64_t at, F32x16 d, const Bytes16& u, F32x16 m) const {
    put(at, d, u);
    if ((at + column) % kRun == 0) store(m, out->minimum + (at + column) / kRun * 16);
  }
};

// Flattened, like few(): what is not written out here passes its registers through memory. clang
// flattens one level only, so the writers' members say it themselves.
template <class Format, class Block>
[[gnu::flatten]] void unpack(const uint8_t* w, int64_t stride, int64_t cols, Int8Panel* out) {
  Block block(w, stride);
  for (int64_t c = 0; c < cols; c += Format::kElements, block.advance(Format::kBytes))
    Format::decode(block, PanelWriter<Format>{out, c});
}

template <class Format>
void make_tile(const uint8_t* w, int64_t stride, int64_t rows, int64_t cols, uint8_t* out) {
  constexpr int64_t kRest = Format::kBytes % 4, kHead = Format::kElements == 32 ? kRest : 0;
  for (int64_t c = 0; c < cols; c += Format::kElements) {
    const auto put = [&]<int64_t kWidth>(int64_t at) __attribute__((always_inline)) {
      uint8_t* const to = out + 16 * Format::tile_place(at);
      for (int64_t r = 0; r < rows; ++r)
        __builtin_memcpy(to + kWidth * r, w + r * stride + at, kWidth);
      __builtin_memset(to + kWidth * rows, 0, static_cast<size_t>(kWidth * (16 - rows)));
    };
    if constexpr (kHead > 0) put.template operator()<kHead>(0);
    int64_t at = kHead;
    for (; at + 4 <= Format::kBytes; at += 4) put.template operator()<4>(at);
    if constexpr (kRest > kHead) put.template operator()<kRest>(at);
    w += Format::kBytes;
    out += 16 * Format::kBytes;
  }
}

// Sums of 16 outputs, which begin with what takes the zero of the codes off again; dot() adds four
// products to each. kWide: codes of all 8 bits. Without vpdpbusd products are added two by two in 16
// bits, and kSteps of these before they are widened into the sum: Pairs holds them, `step` counts
// the dot products from 0.
#if defined(FATHOM_SIMD_IS_avx2) && !defined(FATHOM_SIMD_IS_avxvnni)
// As 2^(7 - bits) fit, (2^bits - 1) 2 127 2^(7 - bits) < 2^15; the sum is needed after `most`.
constexpr int64_t steps_in_16_bits(int bits, int64_t most) {
  const int64_t fit = bits < 7 ? 1 << (7 - bits) : 1;
  return fit < most ? fit : most;
}
struct Pairs {
  __m256i lo, hi;
};
#else
constexpr int64_t steps_in_16_bits(int, int64_t) { return 1; }
struct Pairs {};
#endif
#if defined(FATHOM_SIMD_IS_avx512)
struct Sum {
  __m512i v;
};
struct Codes {
  __m512i v;
};
inline Sum begin(int32_t start) { return {_mm512_set1_epi32(start)}; }
inline Codes load_codes(const uint8_t* p) { return {_mm512_load_si512(p)}; }
template <bool kWide, int64_t kSteps>
inline void dot(Sum& sum, Pairs&, Codes w, int32_t x, int64_t) {
  sum = {_mm512_dpbusd_epi32(sum.v, w.v, _mm512_set1_epi32(x))};
}
inline Codes codes_of(U8x64 v) { return {reinterpret_cast<__m512i>(v)}; }
inline Sum plus(Sum a, Sum b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline F32x16 total(Sum a) { return {_mm512_cvtepi32_ps(a.v)}; }
#elif defined(FATHOM_SIMD_IS_avx2)
struct Sum {
  __m256i lo, hi;
};
struct Codes {
  __m256i lo, hi;
};
inline Sum begin(int32_t start) { return {_mm256_set1_epi32(start), _mm256_set1_epi32(start)}; }
inline Codes load_codes(const uint8_t* p) {
  const auto* v = reinterpret_cast<const __m256i*>(p);
  return {_mm256_load_si256(v), _mm256_load_si256(v + 1)};
}
#if defined(FATHOM_SIMD_IS_avxvnni)
template <bool kWide, int64_t kSteps>
inline void dot(Sum& sum, Pairs&, Codes w, int32_t x, int64_t) {
  const __m256i four = _mm256_set1_epi32(x);
  sum = {_mm256_dpbusd_avx_epi32(sum.lo, w.lo, four), _mm256_dpbusd_avx_epi32(sum.hi, w.hi, four)};
}
#else
template <bool kWide, int64_t kSteps>
inline void dot_8(__m256i& sum, __m256i& pairs, __m256i w, __m256i x, int64_t step) {
  // |w| <= 128, |x| <= 127
  const __m256i two = kWide ? _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
                            : _mm256_maddubs_epi16(w, x);
  pairs = step % kSteps == 0 ? two : _mm256_add_epi16(pairs, two);
  asm("" : "+x"(pairs));  // gcc would add in another order, for which registers do not suffice
  if ((step + 1) % kSteps == 0)
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
template <bool kWide, int64_t kSteps>
inline void dot(Sum& sum, Pairs& pairs, Codes w, int32_t x, int64_t step) {
  const __m256i four = _mm256_set1_epi32(x);
  dot_8<kWide, kSteps>(sum.lo, pairs.lo, w.lo, four, step);
  dot_8<kWide, kSteps>(sum.hi, pairs.hi, w.hi, four, step);
}
#endif
inline Codes codes_of(U8x64 v) {
  Codes codes;
  __builtin_memcpy(&codes, &v, sizeof codes);
  return codes;
}
inline Sum plus(Sum a, Sum b) {
  return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
inline F32x16 total(Sum a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
#elif defined(__SSE2__)
struct Sum {
  __m128i v[4];
};
struct Codes {
  const uint8_t* p;
};
inline Sum begin(int32_t start) {
  const __m128i four = _mm_set1_epi32(start);
  return {{four, four, four, four}};
}
inline Codes load_codes(const uint8_t* p) { return {p}; }
template <bool kWide, int64_t kSteps>
inline void dot(Sum& sum, Pairs&, Codes w, int32_t x, int64_t) {
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
}
inline Codes codes_of(const U8x64& v) { return {reinterpret_cast<const uint8_t*>(&v)}; }
inline Sum plus(const Sum& a, const Sum& b) {
  Sum sum;
  for (int i = 0; i < 4; ++i) sum.v[i] = _mm_add_epi32(a.v[i], b.v[i]);
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
inline Sum begin(int32_t start) {
  Sum sum;
  for (int32_t& v : sum.v) v = start;
  return sum;
}
inline Codes load_codes(const uint8_t* p) { return {p}; }
template <bool kWide, int64_t kSteps>
inline void dot(Sum& sum, Pairs&, Codes w, int32_t x, int64_t) {
  int8_t four[4];
  __builtin_memcpy(four, &x, sizeof four);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 4; ++j) sum.v[i] += static_cast<int8_t>(w.p[4 * i + j]) * four[j];
  }
}
inline Codes codes_of(const U8x64& v) { return {reinterpret_cast<const uint8_t*>(&v)}; }
inline Sum plus(const Sum& a, const Sum& b) {
  Sum sum;
  for (int i = 0; i < 16; ++i) sum.v[i] = a.v[i] + b.v[i];
  return sum;
}
inline F32x16 total(const Sum& a) {
  F32x16 r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
#endif

// Rows, panels and runs at once, as many as pay (measured; Intel's cores need two runs, as a dot
// product takes 5 cycles there and 10 could start meanwhile); how many dot products in a row are
// written out; the rows of x in a bundle. Then up to how many rows of x blocks are multiplied as
// they are unpacked, anew for each bundle: from rows of w, and from tiles (measured).
#if defined(FATHOM_SIMD_IS_avx512)
constexpr int64_t kRows = 4, kTogether = kInt8Panels, kRunsTogether = 2, kUnroll = 8, kBundle = 8,
                  kFewRows = 16;
template <class Format>
constexpr int64_t kFewTileRows =
    Format::kElements == 256                                       ? 40
    : std::is_same_v<Format, Q5_0> || std::is_same_v<Format, Q5_1> ? 24
                                                                   : 64;
#elif defined(FATHOM_SIMD_IS_avx2)
constexpr int64_t kRows = 2, kTogether = 1, kUnroll = 8, kBundle = 4, kFewRows = 8;
#if defined(FATHOM_SIMD_IS_avxvnni)
constexpr int64_t kRunsTogether = 2;
#else
constexpr int64_t kRunsTogether = 1;
#endif
template <class>
constexpr int64_t kFewTileRows = 8;
#else
constexpr int64_t kRows = 1, kTogether = 1, kRunsTogether = 1, kUnroll = 1, kBundle = 1,
                  kFewRows = 1;
template <class>
constexpr int64_t kFewTileRows = 1;
#endif

// f(the width of a bundle of so many rows), a constant.
template <int64_t kWidth = kBundle, class F>
void with_width(int64_t rows, const F& f) {
  if constexpr (kWidth > 1) {
    if (rows <= kWidth / 2) return with_width<kWidth / 2>(rows, f);
  }
  f(std::integral_constant<int64_t, kWidth>{});
}

// The four codes of row r of a bundle from column k on.
template <int64_t kWidth>
[[gnu::always_inline]] inline int32_t four_codes(const int8_t* codes, int64_t k, int64_t r) {
  int32_t four;
  __builtin_memcpy(&four, codes + k * kWidth + 4 * r, sizeof four);
  return four;
}

// What is to be fetched meanwhile, a little at a time, as in FewWriter.
struct Ahead {
  const uint8_t *next, *end;
  int64_t step;
  [[gnu::always_inline]] void fetch() {
    for (const uint8_t* const to = next + step; next < to && next < end; next += 64)
      __builtin_prefetch(next, 0, 2);
  }
};

// R rows of a bundle of x, C panels.
template <int64_t R, int64_t C, int64_t kWidth, int64_t kRun, bool kMinimum, bool kWide,
          int64_t kSteps>
void tile(const Int8Panel* w, const Int8Rows& x, int64_t blocks, bool add, Ahead& ahead,
          float* sums) {
  F32x16 y[R][C];
  const auto all = [&](auto body) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int64_t r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int64_t c = 0; c < C; ++c) body(r, c);
    }
  };
  all([&](int64_t r, int64_t c) {
    y[r][c] = add ? load(sums + r * 16 * kInt8Panels + 16 * c) : zero();
  });
  const auto multiply_runs = [&]<int64_t kRuns>(int64_t first) __attribute__((always_inline)) {
    ahead.fetch();
    Sum sum[kRuns][R][C];
    Pairs pairs[kRuns][R][C];
#pragma GCC unroll 2
    for (int64_t i = 0; i < kRuns; ++i)
      all([&](int64_t r, int64_t c) { sum[i][r][c] = begin(x.start[(first + i) * kWidth + r]); });
#pragma GCC unroll kUnroll
    for (int64_t q = 0; q < kRun / 4; ++q) {
#pragma GCC unroll 2
      for (int64_t i = 0; i < kRuns; ++i) {
        const int64_t column = (first + i) * kRun + 4 * q;
        Codes codes[C];
        for (int64_t c = 0; c < C; ++c) codes[c] = load_codes(w[c].codes + column * 16);
#pragma GCC unroll 4
        for (int64_t r = 0; r < R; ++r) {
          const int32_t four = four_codes<kWidth>(x.codes, column, r);
          for (int64_t c = 0; c < C; ++c)
            dot<kWide, kSteps>(sum[i][r][c], pairs[i][r][c], codes[c], four, q);
        }
      }
    }
#pragma GCC unroll 2
    for (int64_t i = 0; i < kRuns; ++i) {
      const int64_t run = first + i;
      F32x16 d[C], low[C];
      for (int64_t c = 0; c < C; ++c) {
        d[c] = load(w[c].scale + run * 16);
        if (kMinimum) low[c] = load(w[c].minimum + run * 16);
      }
      all([&](int64_t r, int64_t c) {
        const F32x16 scale = set(x.scale[run * kRun / kRoundedBlock * kWidth + r]);
        y[r][c] = fma(total(sum[i][r][c]), d[c] * scale, y[r][c]);
        if (kMinimum) y[r][c] = fma(low[c], set(x.sum[run * kWidth + r]), y[r][c]);
      });
    }
  };
  const int64_t runs = blocks * kRoundedBlock / kRun;
  int64_t run = 0;
  for (; run + kRunsTogether <= runs; run += kRunsTogether)
    multiply_runs.template operator()<kRunsTogether>(run);
  for (; run < runs; ++run) multiply_runs.template operator()<1>(run);
  all([&](int64_t r, int64_t c) { store(y[r][c], sums + r * 16 * kInt8Panels + 16 * c); });
}

template <int64_t kRun, bool kMinimum, bool kWide, int64_t kSteps>
void multiply_panels(const Int8Tile& t) {
  const int64_t calls = (t.m + kRows - 1) / kRows * (kInt8Panels / kTogether),
                runs = t.blocks * kRoundedBlock / kRun,
                steps = calls * ((runs + kRunsTogether - 1) / kRunsTogether);
  Ahead ahead{t.next, t.next + t.next_bytes, ((t.next_bytes + steps - 1) / steps + 63) & -64};
  for (int64_t m = 0; m < t.m; m += kBundle) {
    with_width(t.m - m, [&](auto width) {
      constexpr int64_t kWidth = decltype(width)::value, R = kWidth < kRows ? kWidth : kRows;
      const Int8Rows x = t.x.at(m, kWidth, t.column);
      for (int64_t c = 0; c < kInt8Panels; c += kTogether) {
        for (int64_t r = 0; r < kWidth; r += R)
          tile<R, kTogether, kWidth, kRun, kMinimum, kWide, kSteps>(
              t.w + c, x.row(r), t.blocks, t.column > 0, ahead,
              t.total + (m + r) * 16 * kInt8Panels + 16 * c);
      }
    });
  }
}

// Few rows of x: every block of 16 rows of w is multiplied as it is unpacked, for a bundle of R
// rows of x. Instead of sum += q x over a run in one chain, which would have to wait for itself,
// few rows sum two halves, unless sums in 16 bits come between; the sums are exact.
template <class Format, int64_t R>
struct FewSums {
  static constexpr bool kWide = Format::kBits == 8;
  static constexpr int64_t kSteps = steps_in_16_bits(Format::kBits, 4),
                           kHalves = R <= 2 && kSteps == 1 ? 2 : 1;
  F32x16 y[R];
  Sum sum[R][kHalves];
};

template <class Format, int64_t R>
struct FewWriter {
  FewSums<Format, R>& sums;
  const Int8Rows& x;           // at the block's first column
  const uint8_t *next, *near;  // to be fetched while a block is multiplied, or null

  [[gnu::always_inline]] void add(int64_t at, const Bytes16& u) const {
    // spread evenly: a burst would wait for itself
    constexpr int64_t kBytes = 256 * Format::kBytes / Format::kElements;
    for (int64_t i = 0; next != nullptr && i < kBytes; i += 64)
      __builtin_prefetch(next + at / 16 * kBytes + i, 0, 2);
    for (int64_t i = 0; near != nullptr && i < kBytes; i += 64)
      __builtin_prefetch(near + at / 16 * kBytes + i);
    constexpr int64_t kHalves = FewSums<Format, R>::kHalves;
    using Sums = FewSums<Format, R>;
    if (at % Format::kRun == 0) {
#pragma GCC unroll 8
      for (int64_t r = 0; r < R; ++r) {
        sums.sum[r][0] = begin(kPanelZero<Format> == 0 ? 0 : x.start[at / Format::kRun * R + r]);
        if (kHalves == 2) sums.sum[r][1] = begin(0);
      }
    }
    const Bytes16 bytes = to_codes<Format>(u);
    Pairs pairs[R];
#pragma GCC unroll 4
    for (int64_t j = 0; j < 4; ++j) {
      const Codes codes = codes_of(bytes.v[j]);
#pragma GCC unroll 8
      for (int64_t r = 0; r < R; ++r) {
        dot<Sums::kWide, Sums::kSteps>(sums.sum[r][j % kHalves], pairs[r], codes,
                                       four_codes<R>(x.codes, at + 4 * j, r), j);
      }
    }
  }
  template <bool kMinimum>
  [[gnu::always_inline]] void finish(int64_t at, F32x16 d, F32x16 m) const {
    if ((at + 16) % Format::kRun != 0) return;
    constexpr int64_t kHalves = FewSums<Format, R>::kHalves;
#pragma GCC unroll 8
    for (int64_t r = 0; r < R; ++r) {
      Sum sum = sums.sum[r][0];
      if (kHalves == 2) sum = plus(sum, sums.sum[r][1]);
      const F32x16 scale = set(x.scale[at / kRoundedBlock * R + r]);
      F32x16& y = sums.y[r];
      y = fma(total(sum), d * scale, y);
      if (kMinimum) y = fma(m, set(x.sum[at / Format::kRun * R + r]), y);
    }
  }
  [[gnu::always_inline]] void put(int64_t at, F32x16 d, const Bytes16& u) const {
    add(at, u);
    finish<false>(at, d, zero());
  }
  [[gnu::always_inline]] void put(int64_t at, F32x16 d, const Bytes16& u, F32x16 m) const {
    add(at, u);
    finish<true>(at, d, m);
  }
};

// A bundle of R, of which `rows` have a place in `total`.
template <class Format, class Block, int64_t R>
[[gnu::flatten]] void few(const Int8Few& f, Int8Rows x, int64_t rows, float* total) {
  FewSums<Format, R> sums;
  for (int64_t r = 0; r < R; ++r)
    sums.y[r] = f.column > 0 && r < rows ? load(total + r * 16) : zero();
  Block block(f.w, f.stride);
  const uint8_t *next = f.next, *near = f.near;
  for (int64_t c = 0; c < f.cols; c += Format::kElements) {
    Format::decode(block, FewWriter<Format, R>{sums, x, next, near});
    block.advance(Format::kBytes);
    if (next != nullptr) next += 16 * Format::kBytes;
    if (near != nullptr) near += 16 * Format::kBytes;
    x.codes += Format::kElements * R;
    x.scale += Format::kElements / kRoundedBlock * R;
    x.start += Format::kElements / Format::kRun * R;
    x.sum += Format::kElements / Format::kRun * R;
  }
  for (int64_t r = 0; r < rows; ++r) store(sums.y[r], total + r * 16);
}

template <class Format, class Block>
void few_rows(const Int8Few& f) {
  for (int64_t m = 0; m < f.m; m += kBundle) {
    const int64_t rows = f.m - m < kBundle ? f.m - m : kBundle;
    with_width(rows, [&](auto width) {
      constexpr int64_t R = decltype(width)::value;
      few<Format, Block, R>(f, f.x.at(m, R, f.column), rows, f.total + m * 16);
    });
  }
}

// The largest |a|, |b|, or NaN if anything here is not finite; and integers below 128 as bytes,
// which returns their sum.
#if defined(FATHOM_SIMD_IS_avx512)
inline float most_of(F32x16 a, F32x16 b) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);  // ordered as the numbers are
  const int32_t most = _mm512_reduce_max_epi32(
      _mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a.v), magnitude),
                       _mm512_and_si512(_mm512_castps_si512(b.v), magnitude)));
  return most >= 0x7f800000 ? __builtin_nanf("") : __builtin_bit_cast(float, most);
}
inline int32_t store_codes(F32x16 a, int8_t* p) {
  const __m512i codes = _mm512_cvtps_epi32(a.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(codes));
  return _mm512_reduce_add_epi32(codes);
}
#else
inline float most_of(F32x16 a, F32x16 b) {
  const float finite = reduce_add(fma(a, zero(), b * zero()));  // 0 or NaN
  return finite != 0 ? finite : reduce_max(max(max(a, zero() - a), max(b, zero() - b)));
}
inline int32_t store_codes(F32x16 a, int8_t* p) {
  const F32x16 codes = round_nearest(a);
  float v[16];
  store(codes, v);
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(v[i]);
  return static_cast<int32_t>(reduce_add(codes));
}
#endif

// 32 values of a row of x, one of a bundle of `width`; out begins at them.
inline void round_block(F32x16 a, F32x16 b, int32_t zero_of_w, int64_t width, const Int8Rows& out) {
  const float most = most_of(a, b);
  const bool some = most >= 0x1p-100f;  // else 127 / most would overflow
  const float scale = some ? most / 127.0f : most == most ? 0.0f : most;
  const F32x16 inverse = set(some ? 127.0f / most : 0.0f);
  const bool finite = most == most;
  int8_t codes[kRoundedBlock];
  const int32_t first = store_codes(finite ? a * inverse : zero(), codes),
                second = store_codes(finite ? b * inverse : zero(), codes + 16);
  for (int64_t k = 0; k < kRoundedBlock; k += 4)
    __builtin_memcpy(out.codes + k * width, codes + k, 4);
  const int32_t sums[2] = {out.run == kRoundedBlock ? first + second : first, second};
  for (int64_t i = 0; i < kRoundedBlock / out.run; ++i) {
    out.start[i * width] = -zero_of_w * sums[i];
    out.sum[i * width] = scale * static_cast<float>(sums[i]);
  }
  *out.scale = scale;
}

#if defined(FATHOM_SIMD_IS_avx512)
// Eight rows, a bundle, at once, to the bits of round_block(): a[r] holds the first 16 values of
// row r, a[8 + r] the others. Turned around, a lane is half a row, and nothing waits for the sums
// of one.
inline void round_eight(F32x16 (&a)[16], int32_t zero_of_w, const Int8Rows& out) {
  transpose_16(a);
  const auto with_other_half = [](__m512i v) { return _mm512_shuffle_i64x2(v, v, 0x4e); };
  __m512i most = _mm512_setzero_si512();  // magnitudes are ordered as integers
  for (const F32x16& v : a)
    most = _mm512_max_epi32(
        most, _mm512_and_si512(_mm512_castps_si512(v.v), _mm512_set1_epi32(0x7fffffff)));
  most = _mm512_max_epi32(most, with_other_half(most));
  const __m512 number = _mm512_castsi512_ps(most), levels = _mm512_set1_ps(127.0f);
  const __mmask16 finite = _mm512_cmplt_epi32_mask(most, _mm512_set1_epi32(0x7f800000)),
                  some = _mm512_mask_cmp_ps_mask(finite, number, _mm512_set1_ps(0x1p-100f),
                                                 _CMP_GE_OQ);
  const __m512 scale = _mm512_mask_blend_ps(finite, _mm512_set1_ps(__builtin_nanf("")),
                                            _mm512_maskz_div_ps(some, number, levels)),
               inverse = _mm512_maskz_div_ps(some, levels, number);
  __m512i sums = _mm512_setzero_si512();
  for (int64_t q = 0; q < 4; ++q) {
    __m512i c[4];
    for (int64_t i = 0; i < 4; ++i) {
      c[i] = _mm512_cvtps_epi32(_mm512_maskz_mul_ps(some, a[4 * q + i].v, inverse));
      sums = _mm512_add_epi32(sums, c[i]);
    }
    // four bytes of one lane after the other, of four lanes
    const __m512i bytes =
        _mm512_packs_epi16(_mm512_packs_epi32(c[0], c[1]), _mm512_packs_epi32(c[2], c[3]));
    const __m512i by_lane = _mm512_shuffle_epi8(
        bytes, _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.codes + 32 * q),
                        _mm512_castsi512_si256(by_lane));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.codes + 32 * (4 + q)),
                        _mm512_extracti64x4_epi64(by_lane, 1));
  }
  const bool whole = out.run == kRoundedBlock;
  if (whole) sums = _mm512_add_epi32(sums, with_other_half(sums));
  const __mmask16 runs = whole ? 0x00ff : 0xffff;
  _mm512_mask_storeu_epi32(out.start, runs,
                           _mm512_mullo_epi32(sums, _mm512_set1_epi32(-zero_of_w)));
  _mm512_mask_storeu_ps(out.sum, runs, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sums)));
  _mm512_mask_storeu_ps(out.scale, 0x00ff, scale);
}
#endif

// `cols` columns, whole blocks, of `rows` rows into a bundle: values(row, column) are 16.
template <class Values>
void round_bundle(const Values& values, int64_t rows, int64_t cols, int32_t zero_of_w,
                  int64_t width, const Int8Rows& out) {
  for (int64_t k = 0; k < cols; k += kRoundedBlock) {
    const Int8Rows to = out.at(0, width, k);
#if defined(FATHOM_SIMD_IS_avx512)
    if (width == 8) {
      F32x16 a[16];
      for (int64_t r = 0; r < 8; ++r) {
        a[r] = r < rows ? values(r, k) : zero();
        a[8 + r] = r < rows ? values(r, k + 16) : zero();
      }
      round_eight(a, zero_of_w, to);
      continue;
    }
#endif
    for (int64_t r = 0; r < rows; ++r)
      round_block(values(r, k), values(r, k + 16), zero_of_w, width, to.row(r));
  }
}

template <class Format>
Int8Kernels kernels_of() {
  static_assert(kBundle <= kInt8MostBundle);
  static_assert(Format::kBits < 8 || Format::kZero == 128);  // to_codes()
  static_assert(kFewRows <= kInt8MostFew && kFewTileRows<Format> <= kInt8MostFew);
  constexpr bool kWide = Format::kBits == 8;
  constexpr int64_t kSteps = steps_in_16_bits(Format::kBits, Format::kRun / 4);
  static_assert(Format::kRun / 4 % kSteps == 0);
  return {{unpack<Format, PanelBlock>, few_rows<Format, PanelBlock>, kFewRows},
          {unpack<Format, TileBlock<Format>>, few_rows<Format, TileBlock<Format>>,
           kFewTileRows<Format>},
          multiply_panels<Format::kRun, Format::kMinimum, kWide, kSteps>,
          make_tile<Format>,
          Format::kRun,
          kPanelZero<Format>,
          kBundle};
}

}  // namespace

#define FATHOM_INT8(name, format) \
  Int8Kernels int8_##name() { return kernels_of<format>(); }
FATHOM_INT8(q8_0, Q8_0)
FATHOM_INT8(q4_0, Q4_0)
FATHOM_INT8(q4_1, Q4_1)
FATHOM_INT8(q5_0, Q5_0)
FATHOM_INT8(q5_1, Q5_1)
FATHOM_INT8(q2_k, Q2_K)
FATHOM_INT8(q3_k, Q3_K)
FATHOM_INT8(q4_k, Q4_K)
FATHOM_INT8(q5_k, Q5_K)
FATHOM_INT8(q6_k, Q6_K)
FATHOM_INT8(iq4_nl, Iq4Nl)
FATHOM_INT8(iq4_xs, Iq4Xs)
FATHOM_INT8(mxfp4, Mxfp4)
#undef FATHOM_INT8

void int8_round(const float* x, int64_t stride, int64_t rows, int64_t cols, int32_t zero_of_w,
                int64_t width, const Int8Rows& out) {
  round_bundle([&](int64_t r, int64_t k) { return load(x + r * stride + k); }, rows, cols,
               zero_of_w, width, out);
}

void int8_round_swiglu(const float* gate, const float* up, int64_t stride, int64_t rows,
                       int64_t cols, int32_t zero_of_w, int64_t width, const Int8Rows& out) {
  round_bundle(
      [&](int64_t r, int64_t k) {
        return silu_times(load(gate + r * stride + k), load(up + r * stride + k));
      },
      rows, cols, zero_of_w, width, out);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
