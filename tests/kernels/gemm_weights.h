// Weights for tests of linear layers.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/random.h"
#include "kernels/gemm.h"
#include "kernels/quantize.h"
#include "tests/reference/test_rows.h"

namespace fathom {

// A weight of any dtype over random bytes; block scales kept ordinary so that values stay near 1.
struct Weight {
  Weight(DType dtype, int64_t rows, int64_t cols, uint64_t stream) {
    const int64_t bytes = row_bytes(dtype, cols) * rows;
    const int64_t skip = dtype == DType::kF32                            ? 4
                         : dtype == DType::kF16 || dtype == DType::kBF16 ? 2
                                                                         : 1;
    memory.resize(static_cast<size_t>(bytes + skip));
    std::byte* data = memory.data() + skip;
    for (int64_t i = 0; i < rows * cols && dtype_info(dtype).block_elements == 1; ++i) {
      const float value = reference::noise(stream, i);
      const uint16_t half = dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
      if (dtype == DType::kF32) std::memcpy(data + i * 4, &value, 4);
      if (dtype == DType::kF16 || dtype == DType::kBF16) std::memcpy(data + i * 2, &half, 2);
      if (dtype == DType::kF8E4M3)
        data[i] = static_cast<std::byte>(static_cast<int>(value * 100) & 0xbf);
    }
    if (dtype_info(dtype).block_elements > 1) {
      // small bytes everywhere: every half and every exponent is then finite
      for (int64_t i = 0; i < bytes; ++i) {
        data[i] = static_cast<std::byte>(
            random_bits({.seed = 2, .sequence = stream}, static_cast<uint64_t>(i)) & 0x3b);
      }
    }
    view = {dtype, rows, cols, data};
    if (dtype == DType::kF8E4M3) {
      view.scale_cols = (cols + 127) / 128;
      for (int64_t i = 0; i < (rows + 127) / 128 * view.scale_cols; ++i)
        scales.push_back(0.5f + 0.25f * reference::noise(9, i));
      view.block_scales = scales.data();
    }
  }
  std::vector<double> values() const {
    std::vector<double> all;
    std::vector<float> row(static_cast<size_t>(view.cols));
    for (int64_t r = 0; r < view.rows; ++r) {
      if (view.cols > 0) dequantize_weight(Isa::kPortable, view, r, 0, view.cols, row.data());
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  }
  std::vector<std::byte> memory;
  std::vector<float> scales;
  WeightView view;
};

// Tiles of w: w.view as it was, and one that has nothing else.
struct Tiles {
  Tiles(Context& ctx, const Weight& w) {
    const auto bytes = static_cast<size_t>(bytes_of_tiles(w.view));
    memory.assign(bytes + 128, std::byte{0x7f});
    auto* const begin = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    make_tiles(ctx, {&w.view, 1}, begin);
    for (size_t i = bytes; i < bytes + 64; ++i) EXPECT_EQ(begin[i], std::byte{0x7f});
    view = w.view;
    view.tiles = begin;
    view.data = begin;  // not rows: would give other bits
  }
  std::vector<std::byte> memory;
  WeightView view;
};

// Types that take different ways through gemm.cc: in place, split or native bf16, widened in
// panels; and through gemm_int8.cc: runs of 32 and of 16, with a minimum and without.
inline constexpr DType kWays[] = {DType::kF32,  DType::kBF16, DType::kF16,  DType::kF8E4M3,
                                  DType::kQ8_0, DType::kQ4_K, DType::kQ6_K, DType::kQ2_K};

}  // namespace fathom
