// Storage types of weights and caches: the safetensors and GGUF types this program reads, with
// their block geometry and the scalar conversions. This is the one place that lists dtypes; block
// contents are decoded in kernels/quantize.h.
#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace fathom {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF8E4M3,  // floating point; kF8E4M3 weights carry 128x128 block scales
  kQ8_0,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,  // GGUF blocks of 32
  kQ2_K,
  kQ3_K,
  kQ4_K,
  kQ5_K,
  kQ6_K,  // GGUF blocks of 256
  kIQ4_NL,
  kIQ4_XS,
  kMXFP4,
  kI8,
  kI16,
  kI32,
  kI64,
  kU8,
  kU16,
  kU32,
  kU64,
  kF64,
  kBool,
  kF8E5M2,  // readable by `show`, never computed with
};
inline constexpr int kDTypeCount = static_cast<int>(DType::kF8E5M2) + 1;

struct DTypeInfo {
  std::string_view name;  // "BF16", "Q4_K", ...
  int64_t block_elements;
  int64_t block_bytes;
  bool computable;  // may be the weight of a linear layer
};
const DTypeInfo& dtype_info(DType dtype);
inline std::string_view dtype_name(DType dtype) { return dtype_info(dtype).name; }

// Bytes of one row of `cols` elements. REQUIRES: cols is a multiple of the block.
inline int64_t row_bytes(DType dtype, int64_t cols) {
  const DTypeInfo& info = dtype_info(dtype);
  return cols / info.block_elements * info.block_bytes;
}

// bfloat16: the upper half of an IEEE single. Conversion rounds to nearest even; NaN stays NaN.
using bf16 = uint16_t;
inline float bf16_to_f32(bf16 x) { return std::bit_cast<float>(uint32_t{x} << 16); }
inline bf16 f32_to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<bf16>(bits >> 16 | 0x40);
  return static_cast<bf16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// IEEE half; subnormals, infinities and NaN kept. f32_to_f16 rounds to nearest even.
float f16_to_f32(uint16_t x);
uint16_t f32_to_f16(float x);

// OCP E4M3 without infinities: 0x7f and 0xff are NaN, largest finite value 448.
float f8e4m3_to_f32(uint8_t x);

}  // namespace fathom
