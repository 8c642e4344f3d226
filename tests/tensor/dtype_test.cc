// Conversions of the small float formats, exhaustively: every code against its definition, and the
// rounding of f32 around every pair of neighbouring codes.
#include "tensor/dtype.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <set>

namespace fathom {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// Value of a code with these fields by the IEEE rule, in double: exact for all three formats.
double ieee_value(uint32_t code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t exponent = code >> mantissa_bits & ((1u << exponent_bits) - 1);
  const uint32_t mantissa = code & ((1u << mantissa_bits) - 1);
  const double magnitude = exponent == 0
                               ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                               : std::ldexp(mantissa + (1 << mantissa_bits),
                                            static_cast<int>(exponent) - bias - mantissa_bits);
  return code >> (exponent_bits + mantissa_bits) & 1 ? -magnitude : magnitude;
}

void expect_value(float actual, double expected, uint32_t code) {
  ASSERT_EQ(static_cast<double>(actual), expected) << code;
  ASSERT_EQ(std::signbit(actual), std::signbit(expected)) << code;
}

TEST(DType, EveryF16CodeIsItsValue) {
  for (uint32_t code = 0; code < 65536; ++code) {
    const float x = f16_to_f32(static_cast<uint16_t>(code));
    if ((code & 0x7fff) > 0x7c00) {
      ASSERT_TRUE(std::isnan(x)) << code;
    } else if ((code & 0x7fff) == 0x7c00) {
      ASSERT_EQ(x, code >> 15 ? -kInf : kInf);
    } else {
      expect_value(x, ieee_value(code, 5, 10), code);
    }
  }
}

TEST(DType, EveryBf16CodeIsItsValue) {
  for (uint32_t code = 0; code < 65536; ++code) {
    const float x = bf16_to_f32(static_cast<bf16>(code));
    if ((code & 0x7fff) > 0x7f80) {
      ASSERT_TRUE(std::isnan(x)) << code;
    } else if ((code & 0x7fff) == 0x7f80) {
      ASSERT_EQ(x, code >> 15 ? -kInf : kInf);
    } else {
      expect_value(x, ieee_value(code, 8, 7), code);
    }
  }
}

TEST(DType, EveryE4m3CodeIsItsValueAndOnly7fIsNan) {
  for (uint32_t code = 0; code < 256; ++code) {
    const float x = f8e4m3_to_f32(static_cast<uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      ASSERT_TRUE(std::isnan(x)) << code;
    } else {
      expect_value(x, ieee_value(code, 4, 3), code);
    }
  }
  EXPECT_EQ(f8e4m3_to_f32(0x7e), 448.0f);
}

// What f32 rounding to a 16-bit format must do, seen around every pair of neighbours c, c+1: c
// itself is kept, the middle goes to the even one, and the floats beside the middle to the nearer
// one. All f32 lie between two of these points, and rounding is monotone between them only if each
// of these holds.
template <class ToF32, class FromF32>
void expect_nearest_even(uint32_t infinity, double past_largest, ToF32 to_f32, FromF32 from_f32) {
  for (uint32_t sign : {0u, 0x8000u}) {
    const float side = sign ? -1.0f : 1.0f;
    for (uint32_t c = 0; c < infinity; ++c) {
      const auto code = static_cast<uint16_t>(c | sign), next = static_cast<uint16_t>(code + 1);
      const double low = std::fabs(static_cast<double>(to_f32(code)));
      // Past the largest finite value the next step would be 2^(emax+1); from its middle on all is
      // infinity.
      const double high =
          c + 1 == infinity ? past_largest : std::fabs(static_cast<double>(to_f32(next)));
      const auto middle = static_cast<float>((low + high) / 2);
      ASSERT_EQ(static_cast<double>(middle), (low + high) / 2) << c;
      ASSERT_EQ(from_f32(to_f32(code)), code);
      ASSERT_EQ(from_f32(side * middle), c % 2 == 0 ? code : next);
      ASSERT_EQ(from_f32(side * std::nextafter(middle, 0.0f)), code);
      ASSERT_EQ(from_f32(side * std::nextafter(middle, kInf)), next);
      ASSERT_EQ(from_f32(side * std::nextafter(std::fabs(to_f32(code)), kInf)), code);
    }
    ASSERT_EQ(from_f32(side * kInf), infinity | sign);
    ASSERT_EQ(from_f32(side * std::numeric_limits<float>::max()), infinity | sign);
  }
}

TEST(DType, F32RoundsToTheNearestF16TiesToEven) {
  expect_nearest_even(0x7c00, 0x1p16, f16_to_f32, f32_to_f16);
}

TEST(DType, F32RoundsToTheNearestBf16TiesToEven) {
  expect_nearest_even(0x7f80, 0x1p128, bf16_to_f32, f32_to_bf16);
}

TEST(DType, NanStaysNanWhicheverBitsItCarries) {
  for (uint32_t sign : {0u, 0x80000000u}) {
    for (uint32_t payload : {0x1u, 0xfffu, 0x1fffu, 0x8000u, 0x400000u, 0x7fffffu}) {
      const float nan = std::bit_cast<float>(sign | 0x7f800000u | payload);
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(nan)))) << payload;
      EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(nan)))) << payload;
      EXPECT_EQ(f32_to_f16(nan) >> 15, sign >> 31);
      EXPECT_EQ(f32_to_bf16(nan) >> 15, sign >> 31);
    }
  }
}

TEST(DType, NamesAreUniqueAndRowsAreWholeBlocks) {
  std::set<std::string_view> names;
  for (int i = 0; i < kDTypeCount; ++i) {
    const DType dtype = static_cast<DType>(i);
    const DTypeInfo& info = dtype_info(dtype);
    EXPECT_TRUE(names.insert(info.name).second) << info.name;
    EXPECT_EQ(row_bytes(dtype, 0), 0);
    EXPECT_EQ(row_bytes(dtype, 5 * info.block_elements), 5 * info.block_bytes);
  }
  // first and last: the table has the order of the enum
  EXPECT_EQ(dtype_name(DType::kF8E5M2), "F8_E5M2");
  EXPECT_EQ(dtype_name(DType::kF32), "F32");
  EXPECT_EQ(row_bytes(DType::kQ4_K, 7168), 7168 / 256 * 144);
}

TEST(DTypeDeathTest, ANumberThatIsNoDtypeStopsTheProgram) {
  EXPECT_DEATH(dtype_info(static_cast<DType>(kDTypeCount)), "kInfo");
}

}  // namespace
}  // namespace fathom
