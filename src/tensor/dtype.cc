#include "tensor/dtype.h"

#include <array>
#include <cmath>

#include "base/check.h"

namespace fathom {

const DTypeInfo& dtype_info(DType dtype) {
  static constexpr std::array<DTypeInfo, kDTypeCount> kInfo = {{
      {"F32", 1, 4, true},        {"F16", 1, 2, true},      {"BF16", 1, 2, true},
      {"F8_E4M3", 1, 1, true},    {"Q8_0", 32, 34, true},   {"Q4_0", 32, 18, true},
      {"Q4_1", 32, 20, true},     {"Q5_0", 32, 22, true},   {"Q5_1", 32, 24, true},
      {"Q2_K", 256, 84, true},    {"Q3_K", 256, 110, true}, {"Q4_K", 256, 144, true},
      {"Q5_K", 256, 176, true},   {"Q6_K", 256, 210, true}, {"IQ4_NL", 32, 18, true},
      {"IQ4_XS", 256, 136, true}, {"MXFP4", 32, 17, true},  {"I8", 1, 1, false},
      {"I16", 1, 2, false},       {"I32", 1, 4, false},     {"I64", 1, 8, false},
      {"U8", 1, 1, false},        {"U16", 1, 2, false},     {"U32", 1, 4, false},
      {"U64", 1, 8, false},       {"F64", 1, 8, false},     {"BOOL", 1, 1, false},
      {"F8_E5M2", 1, 1, false},
  }};
  const auto i = static_cast<size_t>(dtype);
  FATHOM_CHECK(i < kInfo.size(), i);
  return kInfo[i];
}

float f16_to_f32(uint16_t x) {
  const uint32_t sign = uint32_t{x} >> 15 << 31;
  const uint32_t exponent = x >> 10 & 0x1f;
  const uint32_t mantissa = x & 0x3ff;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact in f32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  const uint32_t bits =
      exponent == 0x1f ? 0x7f800000 | mantissa << 13 : (exponent + 112) << 23 | mantissa << 13;
  return std::bit_cast<float>(bits | sign);
}

uint16_t f32_to_f16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);   // NaN
  if (magnitude >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds past 65504
  if (magnitude <
      0x38800000) {  // below 2^-14: the FPU rounds to a multiple of 2^-24 when we add 0.5
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000) >> 13);
}

float f8e4m3_to_f32(uint8_t x) {
  const uint32_t sign = uint32_t{x} >> 7 << 31;
  const uint32_t exponent = x >> 3 & 0xf;
  const uint32_t mantissa = x & 7;
  float magnitude = 0;
  if (exponent == 15 && mantissa == 7) {
    magnitude = std::bit_cast<float>(0x7fc00000u);
  } else if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  } else {
    magnitude = std::bit_cast<float>((exponent + 120) << 23 | mantissa << 20);
  }
  return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
}

}  // namespace fathom
