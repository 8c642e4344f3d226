// Linear layers with GGUF blocks at the ends of their range.
#include "kernels/gemm.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/kernels/gemm_weights.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/gemm_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_close;
using reference::instruction_sets;
using reference::PaddedRows;
using reference::Rounding;

constexpr float kInf = std::numeric_limits<float>::infinity(),
                kNan = std::numeric_limits<float>::quiet_NaN();

// The largest integers that a block and a rounded x can hold, and those that no x can be rounded
// to.
TEST(Linear, BlocksAtTheEndsOfTheirRange) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    const Weight w(DType::kQ8_0, 3, 64, 2);
    auto* data = const_cast<std::byte*>(w.view.data);
    for (int64_t row = 0; row < 3; ++row) {
      for (int64_t i = 0; i < 68; ++i)
        if (i % 34 >= 2)
          data[row * 68 + i] = static_cast<std::byte>(row == 0 ? 0x80 : row == 1 ? 0x7f : 0x81);
    }
    PaddedRows x(9, 64, 1), y(9, 3);
    const float values[] = {1.0f,     -1.0f,    0.0f, 0x1p-126f, 0x1p-101f,
                            0x1p-99f, 0x1p100f, kInf, kNan};
    for (int64_t r = 0; r < 9; ++r) {
      for (int64_t k = 0; k < 64; ++k) x.view.row(r)[k] = r < 7 ? values[r] : 1.0f;
      if (r >= 7) x.view.row(r)[40] = values[r];
    }
    linear(ctx, x.view, w.view, nullptr, y.view);
    const reference::LinearRef ref =
        reference::linear_ref(x.view, w.values(), 3, nullptr, Rounding::kInt8);
    expect_close(y.view, ref.y, ref.bounds);
    EXPECT_TRUE(std::isnan(y.view.row(7)[0]) && std::isnan(y.view.row(8)[0]));
  }
}

// All bits of all codes, and x as large as a block's can be, of both signs: what sums in 16 bits
// must hold.
TEST(Linear, LargestCodesOfEveryBlockFormat) {
  struct Format {
    DType dtype;
    int64_t floats_at, floats_size;  // f16 in a block, or MXFP4's exponent: stay finite
  };
  constexpr Format kFormats[] = {
      {DType::kQ8_0, 0, 2}, {DType::kQ4_0, 0, 2},   {DType::kQ4_1, 0, 4},   {DType::kQ5_0, 0, 2},
      {DType::kQ5_1, 0, 4}, {DType::kQ2_K, 80, 4},  {DType::kQ3_K, 108, 2}, {DType::kQ4_K, 0, 4},
      {DType::kQ5_K, 0, 4}, {DType::kQ6_K, 208, 2}, {DType::kIQ4_NL, 0, 2}, {DType::kIQ4_XS, 0, 2},
      {DType::kMXFP4, 0, 1}};
  for (Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    for (const Format& f : kFormats) {
      for (const int byte : {0xff, 0x77, 0x00}) {  // MXFP4's largest is 7
        const Weight w(f.dtype, 17, 512, 2);
        auto* const data = const_cast<std::byte*>(w.view.data);
        const int64_t bytes = 17 * row_bytes(f.dtype, 512);
        for (int64_t i = 0; i < bytes; ++i) {
          const int64_t at = i % dtype_info(f.dtype).block_bytes;
          if (at < f.floats_at || at >= f.floats_at + f.floats_size)
            data[i] = static_cast<std::byte>(byte);
        }
        const Tiles tiles(ctx, w);
        const std::vector<double> values = w.values();
        for (const int64_t m : {1, 2, 4, 9, 70}) {
          PaddedRows x(m, 512, 1), y(m, 17);
          for (int64_t i = 0; i < m; ++i)
            std::fill_n(x.view.row(i), 512, i % 2 == 0 ? 3.0f : -3.0f);
          const reference::LinearRef ref =
              reference::linear_ref(x.view, values, 17, nullptr, Rounding::kInt8);
          for (const WeightView& view : {w.view, tiles.view}) {
            SCOPED_TRACE(fmt::format("{} {} {:02x} M {} tiles {}", isa_name(isa),
                                     dtype_name(f.dtype), byte, m, view.tiles != nullptr));
            linear(ctx, x.view, view, nullptr, y.view);
            expect_close(y.view, ref.y, ref.bounds);
          }
        }
      }
    }
  }
}

// MXFP4's scales are 2^(byte - 127), the least two of them subnormal as half a scale; one x and one
// code, both exact, so that the output is a power of two times 127 or infinity.
TEST(Linear, EveryScaleOfMxfp4IsExact) {
  for (Isa isa : instruction_sets()) {
    Context ctx(1, isa), in_f32(1, isa, Precision::kF32);
    const Weight w(DType::kMXFP4, 256, 64, 2);
    auto* const bytes = const_cast<std::byte*>(w.view.data);
    const int64_t row_size = row_bytes(DType::kMXFP4, 64);
    for (int64_t r = 0; r < 256; ++r) {
      std::fill_n(bytes + r * row_size, row_size, std::byte{0});
      bytes[r * row_size] = static_cast<std::byte>(r);
      bytes[r * row_size + 1] = std::byte{1};  // 0.5
    }
    const Tiles tiles(ctx, w);
    for (const int64_t m : {1, 3, 9, 70}) {
      for (const WeightView& view : {w.view, tiles.view}) {
        SCOPED_TRACE(fmt::format("{} M {} tiles {}", isa_name(isa), m, view.tiles != nullptr));
        PaddedRows x(m, 64, 1), y(m, 256);
        for (int64_t i = 0; i < m; ++i) {
          std::fill_n(x.view.row(i), 64, 0.0f);
          x.view.row(i)[0] = 127;
        }
        for (Context* const c : {&ctx, &in_f32}) {
          if (c == &in_f32 && view.tiles != nullptr) continue;  // reads rows
          linear(*c, x.view, view, nullptr, y.view);
          for (int64_t i = 0; i < m; ++i) {
            for (int r = 0; r < 256; ++r)
              ASSERT_EQ(y.view.row(i)[r], std::ldexp(127.0f, r - 128)) << "scale " << r;
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace fathom
