#include "tests/reference/quantize_ref.h"

#include <cmath>
#include <cstring>

#include "base/check.h"

namespace fathom::reference {
namespace {

constexpr int kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr float kE2m1[16] = {0, 0.5,  1,  1.5,  2,  3,  4,  6,
                             0, -0.5, -1, -1.5, -2, -3, -4, -6};  // GGUF has no -0

// One block; offsets and bits as the format tables name them.
struct Block {
  const std::byte* data;
  int u8(int64_t i) const { return std::to_integer<int>(data[i]); }
  int i8(int64_t i) const { return static_cast<int8_t>(u8(i)); }
  float f16(int64_t i) const { return f16_to_f32(static_cast<uint16_t>(u8(i) | u8(i + 1) << 8)); }
  int bit(int64_t base, int64_t i) const { return u8(base + i / 8) >> (i % 8) & 1; }
  // Nibble of element i where the low nibbles of n bytes come first, then the high ones.
  int nibble(int64_t base, int64_t i, int64_t n) const {
    return u8(base + i % n) >> (i / n * 4) & 15;
  }
};

// Exact in this order; only the sign of a zero depends on it.
float product(float d, int scale, int q) {
  return d * static_cast<float>(scale) * static_cast<float>(q);
}

float k4(const Block& b, int64_t run, int q) {  // Q4_K and Q5_K share scales and formula
  const Block s{b.data + 4};
  const int scale = run < 4 ? s.u8(run) & 63 : (s.u8(run + 4) & 15) | s.u8(run - 4) >> 6 << 4;
  const int minimum = run < 4 ? s.u8(run + 4) & 63 : s.u8(run + 4) >> 4 | s.u8(run) >> 6 << 4;
  return b.f16(0) * static_cast<float>(scale * q) - b.f16(2) * static_cast<float>(minimum);
}

float q3k(const Block& b, int64_t i) {
  const int64_t run = i / 16, low = run % 8, group = run / 4;  // 12 bytes hold 16 scales of 6 bits
  const int low4 = run < 8 ? b.u8(96 + low) & 15 : b.u8(96 + low) >> 4;
  const int high2 = b.u8(104 + run % 4) >> (2 * group) & 3;
  const int64_t half = i / 128, step = i % 128 / 32, l = i % 32;
  const int q = b.u8(32 + 32 * half + l) >> (2 * step) & 3;
  const int high = b.u8(l) >> (4 * half + step) & 1;
  return product(b.f16(108), (low4 | high2 << 4) - 32, q - (high ? 0 : 4));
}

float q6k(const Block& b, int64_t i) {
  const int64_t half = i / 128, quarter = i % 128 / 32, l = i % 32;
  const int low = b.u8(64 * half + quarter % 2 * 32 + l) >> (quarter / 2 * 4) & 15;
  const int high = b.u8(128 + 32 * half + l) >> (2 * quarter) & 3;
  return product(b.f16(208), b.i8(192 + i / 16), (low | high << 4) - 32);
}

}  // namespace

float dequantize_element(DType dtype, const std::byte* row, int64_t i) {
  const DTypeInfo& info = dtype_info(dtype);
  const Block b{row + i / info.block_elements * info.block_bytes};
  i %= info.block_elements;
  const auto scaled = [&](int q) { return b.f16(0) * static_cast<float>(q); };
  switch (dtype) {
    case DType::kF32: {
      float x;
      std::memcpy(&x, b.data, sizeof x);
      return x;
    }
    case DType::kF16:
      return b.f16(0);
    case DType::kBF16:
      return bf16_to_f32(static_cast<bf16>(b.u8(0) | b.u8(1) << 8));
    case DType::kF8E4M3:
      return f8e4m3_to_f32(static_cast<uint8_t>(b.u8(0)));
    case DType::kQ8_0:
      return scaled(b.i8(2 + i));
    case DType::kQ4_0:
      return scaled(b.nibble(2, i, 16) - 8);
    case DType::kQ4_1:
      return scaled(b.nibble(4, i, 16)) + b.f16(2);
    case DType::kQ5_0:
      return scaled(b.nibble(6, i, 16) + 16 * b.bit(2, i) - 16);
    case DType::kQ5_1:
      return scaled(b.nibble(8, i, 16) + 16 * b.bit(4, i)) + b.f16(2);
    case DType::kQ2_K: {
      const int q = b.u8(16 + i / 128 * 32 + i % 32) >> (i % 128 / 32 * 2) & 3;
      const int s = b.u8(i / 16);
      return b.f16(80) * static_cast<float>((s & 15) * q) - b.f16(82) * static_cast<float>(s >> 4);
    }
    case DType::kQ3_K:
      return q3k(b, i);
    case DType::kQ4_K:
      return k4(b, i / 32, b.nibble(16 + i / 64 * 32, i % 64, 32));
    case DType::kQ5_K:
      return k4(b, i / 32,
                b.nibble(48 + i / 64 * 32, i % 64, 32) + 16 * (b.u8(16 + i % 32) >> (i / 32) & 1));
    case DType::kQ6_K:
      return q6k(b, i);
    case DType::kIQ4_NL:
      return scaled(kIq4[b.nibble(2, i, 16)]);
    case DType::kIQ4_XS: {
      const int64_t run = i / 32;
      const int low = b.u8(4 + run / 2) >> (run % 2 * 4) & 15;
      const int high = (b.u8(2) | b.u8(3) << 8) >> (2 * run) & 3;
      return product(b.f16(0), (low | high << 4) - 32, kIq4[b.nibble(8 + 16 * run, i % 32, 16)]);
    }
    case DType::kMXFP4:
      return std::ldexp(kE2m1[b.nibble(1, i, 16)], b.u8(0) - 127);
    default:
      FATHOM_CHECK(false, dtype_name(dtype));
  }
  return 0;
}

float weight_element(const WeightView& w, int64_t r, int64_t c) {
  const float x = dequantize_element(w.dtype, w.row(r), c);
  return w.dtype == DType::kF8E4M3 ? x * w.block_scales[r / 128 * w.scale_cols + c / 128] : x;
}

}  // namespace fathom::reference
