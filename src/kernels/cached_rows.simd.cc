// One row to bytes and back.
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

constexpr int64_t kBlock = 64;

}  // namespace

void to_int8_row(const float* __restrict x, int64_t n, uint8_t* __restrict codes,
                 float* __restrict scales) {
  for (int64_t begin = 0; begin < n; begin += kBlock, ++scales) {
    const int64_t count = n - begin < kBlock ? n - begin : kBlock;
    uint32_t largest = 0;  // as bits, where NaN is above infinity
    for (int64_t i = begin; i < begin + count; ++i) {
      const uint32_t bits = __builtin_bit_cast(uint32_t, x[i]) & 0x7fffffff;
      largest = bits > largest ? bits : largest;
    }
    const auto max = __builtin_bit_cast(float, largest);
    const bool finite = largest < 0x7f800000, zero = max < 0x1p-100f;
    *scales = !finite ? __builtin_nanf("") : zero ? 0.0f : max / 127;
    const float inverse = !finite || zero ? 0.0f : 127 / max;
    for (int64_t i = begin; i < begin + count; ++i) {
      // Adding 1.5 2^23 leaves the nearest integer in the lowest bits.
      const float shifted = (finite ? x[i] : 0.0f) * inverse + 0x1.8p23f;
      codes[i] = static_cast<uint8_t>(__builtin_bit_cast(uint32_t, shifted) ^ 0x80);
    }
  }
}

void from_int8_row(const uint8_t* __restrict codes, const float* __restrict scales, int64_t begin,
                   int64_t n, float* __restrict out) {
  for (int64_t i = 0; i < n; ++i) {
    const int64_t column = begin + i;
    out[i] = static_cast<float>(codes[column] - 128) * scales[column / kBlock];
  }
}

}  // namespace fathom::FATHOM_SIMD_TARGET
