#include "kernels/cached_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::instruction_sets;
using reference::noise;

std::vector<std::byte> stored(Isa isa, DType dtype, const std::vector<float>& x) {
  const auto width = std::ssize(x);
  std::vector<std::byte> row(static_cast<size_t>(cached_row_bytes(dtype, width)), std::byte{0xaa});
  store_cached_row(isa, dtype, x.data(), width, row.data());
  return row;
}

std::vector<float> loaded(Isa isa, DType dtype, const std::vector<std::byte>& row, int64_t width,
                          int64_t begin, int64_t n) {
  std::vector<float> x(static_cast<size_t>(n));
  load_cached_row(isa, dtype, row.data(), width, begin, n, x.data());
  return x;
}

std::vector<float> some_row(int64_t width) {
  std::vector<float> x(static_cast<size_t>(width));
  for (int64_t i = 0; i < width; ++i)
    x[static_cast<size_t>(i)] = noise(9, i) * static_cast<float>(1 + i / kInt8Block * 10);
  return x;
}

TEST(CachedRows, Int8IsWithinHalfAScaleAndTheSameOnEveryInstructionSet) {
  for (int64_t width = 1; width <= 200; ++width) {
    const std::vector<float> x = some_row(width);
    const std::vector<std::byte> row = stored(Isa::kPortable, DType::kI8, x);
    for (const Isa isa : instruction_sets()) {
      EXPECT_EQ(stored(isa, DType::kI8, x), row) << width;
      const std::vector<float> back = loaded(isa, DType::kI8, row, width, 0, width);
      for (int64_t i = 0; i < width; ++i) {
        const int64_t begin = i / kInt8Block * kInt8Block,
                      end = std::min(width, begin + kInt8Block);
        float most = 0;
        for (int64_t k = begin; k < end; ++k)
          most = std::max(most, std::abs(x[static_cast<size_t>(k)]));
        EXPECT_NEAR(back[static_cast<size_t>(i)], x[static_cast<size_t>(i)],
                    most / 254 * (1 + 0x1p-14))
            << width << ", " << i;
      }
      const int64_t begin = width / 3;
      EXPECT_EQ(loaded(isa, DType::kI8, row, width, begin, width - begin),
                std::vector<float>(back.begin() + begin, back.end()));
    }
  }
}

TEST(CachedRows, WholeNumbersUpTo127StayExact) {
  std::vector<float> x(kInt8Block);
  for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i) * 4 - 127 + (i > 32 ? 1 : 0);
  for (const Isa isa : instruction_sets())
    EXPECT_EQ(loaded(isa, DType::kI8, stored(isa, DType::kI8, x), 64, 0, 64), x);
}

TEST(CachedRows, NothingIsLeftOfTinyBlocksAndNanAndInfinityFillTheirs) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const Isa isa : instruction_sets()) {
    for (const float bad : {kNan, -kNan, std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()}) {
      std::vector<float> x = some_row(192);
      x[70] = bad;
      for (size_t i = 128; i < 192; ++i) x[i] = 0x1p-101f;
      const std::vector<float> back =
          loaded(isa, DType::kI8, stored(isa, DType::kI8, x), 192, 0, 192);
      for (size_t i = 0; i < 192; ++i) {
        EXPECT_EQ(std::isnan(back[i]), i / 64 == 1) << i;
        if (i >= 128) {
          EXPECT_EQ(back[i], 0.0f) << i;
        }
      }
    }
  }
}

TEST(CachedRows, F32AndBf16AreTheirElements) {
  const std::vector<float> x = some_row(77);
  for (const Isa isa : instruction_sets()) {
    EXPECT_EQ(loaded(isa, DType::kF32, stored(isa, DType::kF32, x), 77, 5, 70),
              std::vector<float>(x.begin() + 5, x.begin() + 75));
    const std::vector<float> back =
        loaded(isa, DType::kBF16, stored(isa, DType::kBF16, x), 77, 5, 70);
    for (size_t i = 0; i < 70; ++i) EXPECT_EQ(back[i], bf16_to_f32(f32_to_bf16(x[i + 5])));
  }
}

}  // namespace
}  // namespace fathom
