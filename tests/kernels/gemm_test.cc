#include "kernels/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/quantize.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/gemm_ref.h"

namespace fathom {
namespace {

using reference::expect_close;
using reference::expect_same_bits;

std::vector<Isa> instruction_sets() {
  std::vector<Isa> sets;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= detect_isa()) sets.push_back(isa);
  }
  return sets;
}

float noise(uint64_t stream, int64_t i) {
  return static_cast<float>(random_uniform({.seed = 1, .sequence = stream}, static_cast<uint64_t>(i)) * 2 - 1);
}

// Rows with a stride of their own, on an odd address; the padding is NaN, so that reading it shows.
struct Matrix {
  Matrix(int64_t rows, int64_t cols, uint64_t stream) : memory(static_cast<size_t>(rows * (cols + 3) + 1), kNan) {
    view = {memory.data() + 1, rows, cols, cols + 3};
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) view.row(r)[c] = noise(stream, r * cols + c);
    }
  }
  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> memory;
  Rows view;
};

// A weight of any dtype over random bytes; block scales kept ordinary so that values stay near 1.
struct Weight {
  Weight(DType dtype, int64_t rows, int64_t cols, uint64_t stream) {
    const int64_t bytes = row_bytes(dtype, cols) * rows;
    const int64_t skip = dtype == DType::kF32 ? 4 : dtype == DType::kF16 || dtype == DType::kBF16 ? 2 : 1;
    memory.resize(static_cast<size_t>(bytes + skip));
    std::byte* data = memory.data() + skip;
    for (int64_t i = 0; i < rows * cols && dtype_info(dtype).block_elements == 1; ++i) {
      const float value = noise(stream, i);
      const uint16_t half = dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
      if (dtype == DType::kF32) std::memcpy(data + i * 4, &value, 4);
      if (dtype == DType::kF16 || dtype == DType::kBF16) std::memcpy(data + i * 2, &half, 2);
      if (dtype == DType::kF8E4M3) data[i] = static_cast<std::byte>(static_cast<int>(value * 100) & 0xbf);
    }
    if (dtype_info(dtype).block_elements > 1) {
      for (int64_t i = 0; i < bytes; ++i) {  // small bytes everywhere: every half and every exponent is then finite
        data[i] = static_cast<std::byte>(random_bits({.seed = 2, .sequence = stream}, static_cast<uint64_t>(i)) & 0x3b);
      }
    }
    view = {dtype, rows, cols, data};
    if (dtype == DType::kF8E4M3) {
      view.scale_cols = (cols + 127) / 128;
      for (int64_t i = 0; i < (rows + 127) / 128 * view.scale_cols; ++i) scales.push_back(0.5f + 0.25f * noise(9, i));
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

void check_linear(Context& ctx, DType dtype, int64_t m, int64_t n, int64_t k, bool with_bias) {
  SCOPED_TRACE(std::string(isa_name(ctx.isa())) + " " + std::string(dtype_name(dtype)) + " M " + std::to_string(m) +
               " N " + std::to_string(n) + " K " + std::to_string(k));
  const Matrix x(m, k, 1), bias(1, n, 3);
  const Weight w(dtype, n, k, 2);
  Matrix y(m, n, 4);
  const std::vector<float> before = y.memory;
  const float* b = with_bias ? bias.view.data : nullptr;
  linear(ctx, x.view, w.view, b, y.view);
  const reference::LinearRef ref = reference::linear_ref(x.view, w.values(), n, b, dtype == DType::kBF16);
  expect_close(y.view, ref.y, ref.bounds);
  for (int64_t r = 0; r < m; ++r) {  // nothing beside the result was written
    EXPECT_EQ(std::memcmp(y.view.row(r) + n, before.data() + 1 + r * (n + 3) + n, 3 * 4), 0);
  }
}

TEST(Linear, EqualsTheTwinForAllSmallShapes) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (int64_t m : {0, 1, 2, 3, 4, 5, 6, 7, 9, 17, 70}) {
        for (int64_t n : {0, 1, 2, 5, 6, 7, 13, 31, 70}) {
          const int64_t k = (m * 7 + n * 3) % 71;
          check_linear(ctx, dtype, m, n, k, n % 2 == 1);
        }
      }
      for (int64_t k = 0; k <= 70; ++k) {
        check_linear(ctx, dtype, 1, 7, k, true);
        check_linear(ctx, dtype, 6, 7, k, false);
      }
    }
  }
}

TEST(Linear, EqualsTheTwinForEveryWeightType) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (int d = 0; d < kDTypeCount; ++d) {
      const auto dtype = static_cast<DType>(d);
      if (!dtype_info(dtype).computable) continue;
      for (int64_t m : {1, 3, 11}) check_linear(ctx, dtype, m, 131, 2304, true);
    }
  }
}

}  // namespace
}  // namespace fathom
