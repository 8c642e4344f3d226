#include "kernels/quantizer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/quantizer_fit.h"

namespace fathom {

using FitBlock = void(const float* x, const float* w, BlockFit* out);
FATHOM_SIMD_DECLARE(FitBlock fit_q4_0, fit_q4_1, fit_q5_0, fit_q5_1, fit_iq4_nl, fit_mxfp4,
                    fit_q2_k, fit_q3_k, fit_q4_k, fit_q5_k, fit_q6_k, fit_iq4_xs)

namespace {

uint8_t low_byte(int value) { return static_cast<uint8_t>(value & 255); }

void put_u16(uint16_t value, uint8_t* at) { std::memcpy(at, &value, sizeof value); }
void put_f16(float value, uint8_t* at) { put_u16(f32_to_f16(value), at); }

// The low 4 bits of 32 codes, the first 16 in the lower nibbles.
void put_nibbles(const uint8_t* code, uint8_t* at) {
  for (int j = 0; j < 16; ++j) at[j] = low_byte((code[j] & 15) | (code[j + 16] & 15) << 4);
}
// Their fifth bits.
void put_fifth_bits(const uint8_t* code, uint8_t* at) {
  uint32_t bits = 0;
  for (int j = 0; j < 32; ++j) bits |= uint32_t{static_cast<uint8_t>(code[j] >> 4 & 1)} << j;
  std::memcpy(at, &bits, sizeof bits);
}

// ---- one block each; the layouts are those of quantize.simd.cc, read backwards ----

void pack_q4_0(const BlockFit& f, uint8_t* b) {  // also IQ4_NL
  put_f16(f.d, b);
  put_nibbles(f.code, b + 2);
}
void pack_q4_1(const BlockFit& f, uint8_t* b) {
  put_f16(f.d, b), put_f16(f.minimum, b + 2);
  put_nibbles(f.code, b + 4);
}
void pack_q5_0(const BlockFit& f, uint8_t* b) {
  put_f16(f.d, b);
  put_fifth_bits(f.code, b + 2);
  put_nibbles(f.code, b + 6);
}
void pack_q5_1(const BlockFit& f, uint8_t* b) {
  put_f16(f.d, b), put_f16(f.minimum, b + 2);
  put_fifth_bits(f.code, b + 4);
  put_nibbles(f.code, b + 8);
}
void pack_mxfp4(const BlockFit& f, uint8_t* b) {
  constexpr uint8_t kCode[15] = {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7};
  b[0] = low_byte(std::ilogb(f.d) + 128);
  uint8_t code[32];
  for (int j = 0; j < 32; ++j) code[j] = kCode[f.code[j]];
  put_nibbles(code, b + 1);
}

// Two bits of each of 256 codes: four groups of 32 share 32 bytes.
void put_pairs(const uint8_t* code, int shift, uint8_t* at) {
  std::fill_n(at, 64, uint8_t{0});
  for (int i = 0; i < 256; ++i)
    at[i / 128 * 32 + i % 32] |= low_byte((code[i] >> shift & 3) << i % 128 / 32 * 2);
}

void pack_q2_k(const BlockFit& f, uint8_t* b) {
  for (int j = 0; j < 16; ++j) b[j] = low_byte(f.scale[j] | f.offset[j] << 4);
  put_pairs(f.code, 0, b + 16);
  put_f16(f.d, b + 80), put_f16(f.minimum, b + 82);
}

void pack_q3_k(const BlockFit& f, uint8_t* b) {
  std::fill_n(b, 32, uint8_t{0});
  for (int i = 0; i < 256; ++i) b[i % 32] |= low_byte((f.code[i] >> 2) << i / 32);
  put_pairs(f.code, 0, b + 32);
  uint8_t* s = b + 96;
  std::fill_n(s, 12, uint8_t{0});
  for (int j = 0; j < 16; ++j) {
    const int scale = f.scale[j] + 32;
    s[j % 8] |= low_byte((scale & 15) << j / 8 * 4);
    s[8 + j % 4] |= low_byte((scale >> 4) << j / 4 * 2);
  }
  put_f16(f.d, b + 108);
}

// d, minimum and the 6-bit scales and offsets of Q4_K and Q5_K.
void put_scales(const BlockFit& f, uint8_t* b) {
  put_f16(f.d, b), put_f16(f.minimum, b + 2);
  for (int j = 0; j < 4; ++j) {
    b[4 + j] = low_byte(f.scale[j] | f.scale[j + 4] >> 4 << 6);
    b[8 + j] = low_byte(f.offset[j] | f.offset[j + 4] >> 4 << 6);
    b[12 + j] = low_byte((f.scale[j + 4] & 15) | (f.offset[j + 4] & 15) << 4);
  }
}
// The low 4 bits of 256 codes: two groups of 32 share 32 bytes.
void put_nibbles_k(const uint8_t* code, uint8_t* at) {
  for (int i = 0; i < 128; ++i) {
    const uint8_t* c = code + i / 32 * 64 + i % 32;
    at[i] = low_byte((c[0] & 15) | (c[32] & 15) << 4);
  }
}
void pack_q4_k(const BlockFit& f, uint8_t* b) {
  put_scales(f, b);
  put_nibbles_k(f.code, b + 16);
}
void pack_q5_k(const BlockFit& f, uint8_t* b) {
  put_scales(f, b);
  std::fill_n(b + 16, 32, uint8_t{0});
  for (int i = 0; i < 256; ++i) b[16 + i % 32] |= low_byte((f.code[i] >> 4) << i / 32);
  put_nibbles_k(f.code, b + 48);
}

void pack_q6_k(const BlockFit& f, uint8_t* b) {
  for (int i = 0; i < 128; ++i) {
    const uint8_t* c = f.code + i / 64 * 128 + i % 64;
    b[i] = low_byte((c[0] & 15) | (c[64] & 15) << 4);
  }
  put_pairs(f.code, 4, b + 128);
  for (int j = 0; j < 16; ++j) b[192 + j] = low_byte(f.scale[j]);
  put_f16(f.d, b + 208);
}

void pack_iq4_xs(const BlockFit& f, uint8_t* b) {
  put_f16(f.d, b);
  std::fill_n(b + 2, 6, uint8_t{0});
  for (int j = 0; j < 8; ++j) {
    const int scale = f.scale[j] + 32;
    b[2 + j / 4] |= low_byte((scale >> 4) << j % 4 * 2);
    b[4 + j / 2] |= low_byte((scale & 15) << j % 2 * 4);
    put_nibbles(f.code + 32 * j, b + 8 + 16 * j);
  }
}

void quantize_q8_0(const float* x, int64_t cols, std::byte* row) {
  for (int64_t begin = 0; begin < cols; begin += 32, row += 34) {
    float largest = 0;
    for (int64_t i = 0; i < 32; ++i) largest = std::max(largest, std::abs(x[begin + i]));
    const float scale = largest / 127.0f;
    const uint16_t stored = f32_to_f16(scale);
    // Where f16 holds no such scale all values are zero; 1 / scale may be infinite there.
    const float inverse = stored != 0 ? 1.0f / scale : 0.0f;
    std::memcpy(row, &stored, sizeof stored);
    for (int64_t i = 0; i < 32; ++i)
      row[2 + i] = static_cast<std::byte>(static_cast<int8_t>(std::round(x[begin + i] * inverse)));
  }
}

// The weights of one block, on average 1: sums of squares then neither overflow nor vanish,
// whatever the scale of the importance.
void block_weights(const float* importance, int64_t n, float* w) {
  double sum = 0;
  for (int64_t i = 0; importance != nullptr && i < n; ++i)
    sum += static_cast<double>(importance[i]);
  const bool usable = sum > 0 && std::isfinite(sum);
  for (int64_t i = 0; i < n; ++i)
    w[i] = usable ? static_cast<float>(importance[i] * (static_cast<double>(n) / sum)) : 1.0f;
}

using PackBlock = void(const BlockFit& fit, uint8_t* block);

void quantize_blocks(DType dtype, FitBlock* fit, PackBlock* pack, const float* x,
                     const float* importance, int64_t cols, std::byte* row) {
  const DTypeInfo& info = dtype_info(dtype);
  auto* block = reinterpret_cast<uint8_t*>(row);
  for (int64_t begin = 0; begin < cols; begin += info.block_elements, block += info.block_bytes) {
    float w[256];
    block_weights(importance == nullptr ? nullptr : importance + begin, info.block_elements, w);
    BlockFit f;
    fit(x + begin, w, &f);
    pack(f, block);
  }
}

}  // namespace

bool can_quantize(DType dtype) { return dtype_info(dtype).computable && dtype != DType::kF8E4M3; }

float largest_magnitude(DType dtype) {
  constexpr float kHalf = 65504;
  switch (dtype) {
    case DType::kF32:
      return std::numeric_limits<float>::max();
    case DType::kBF16:
      return 0x1.fep127f;  // the largest bf16: what lies above could round to infinity
    case DType::kF16:
      return kHalf;
    case DType::kQ8_0:
    case DType::kIQ4_NL:
      return 127 * kHalf;
    case DType::kQ4_0:
      return 8 * kHalf;
    case DType::kQ5_0:
      return 16 * kHalf;
    case DType::kQ4_1:
    case DType::kQ5_1:
      return kHalf;  // minimums are f16 themselves
    case DType::kQ2_K:
      return 15 * kHalf;
    case DType::kQ4_K:
    case DType::kQ5_K:
      return 63 * kHalf;
    case DType::kQ3_K:
      return 4 * 32 * kHalf;
    case DType::kQ6_K:
      return 32 * 128 * kHalf;
    case DType::kIQ4_XS:
      return 127 * 32 * kHalf;
    case DType::kMXFP4:
      return 12 * 0x1p124f;
    default:
      FATHOM_CHECK(false, dtype_name(dtype));
      return 0;
  }
}

void quantize_row(Isa isa, DType dtype, const float* x, const float* importance, int64_t cols,
                  std::byte* row) {
  FATHOM_DCHECK(cols % dtype_info(dtype).block_elements == 0, dtype_name(dtype), cols);
  switch (dtype) {
    case DType::kF32:
      if (cols > 0) std::memcpy(row, x, static_cast<size_t>(cols) * sizeof(float));
      return;
    case DType::kF16:
    case DType::kBF16:
      for (int64_t i = 0; i < cols; ++i) {
        const uint16_t value = dtype == DType::kF16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
        std::memcpy(row + 2 * i, &value, sizeof value);
      }
      return;
    case DType::kQ8_0:
      return quantize_q8_0(x, cols, row);
#define FATHOM_BLOCKS(type, name, layout)                                                          \
  case DType::type:                                                                                \
    return quantize_blocks(dtype, FATHOM_SIMD_CALL(isa, fit_##name), pack_##layout, x, importance, \
                           cols, row)
      FATHOM_BLOCKS(kQ4_0, q4_0, q4_0);
      FATHOM_BLOCKS(kQ4_1, q4_1, q4_1);
      FATHOM_BLOCKS(kQ5_0, q5_0, q5_0);
      FATHOM_BLOCKS(kQ5_1, q5_1, q5_1);
      FATHOM_BLOCKS(kQ2_K, q2_k, q2_k);
      FATHOM_BLOCKS(kQ3_K, q3_k, q3_k);
      FATHOM_BLOCKS(kQ4_K, q4_k, q4_k);
      FATHOM_BLOCKS(kQ5_K, q5_k, q5_k);
      FATHOM_BLOCKS(kQ6_K, q6_k, q6_k);
      FATHOM_BLOCKS(kIQ4_NL, iq4_nl, q4_0);
      FATHOM_BLOCKS(kIQ4_XS, iq4_xs, iq4_xs);
      FATHOM_BLOCKS(kMXFP4, mxfp4, mxfp4);
#undef FATHOM_BLOCKS
    default:
      FATHOM_CHECK(false, dtype_name(dtype));
  }
}

}  // namespace fathom
