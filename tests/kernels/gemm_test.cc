#include "kernels/gemm.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/elementwise.h"
#include "kernels/gemm-inl.h"
#include "kernels/moe_permute.h"
#include "kernels/quantize.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/gemm_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
#if defined(__x86_64__)
namespace avx512 {
void gemm_native_bf16(const GemmBlock& b);
void gemm_split_bf16(const GemmBlock& b);
void split_bf16(const uint16_t* in, int64_t n, float* out);
void packed_native_bf16(const PackedBlock& b);
void packed_split_bf16(const PackedBlock& b);
void pack_lanes(const float* in, int64_t in_stride, int64_t rows, int64_t steps, int64_t width,
                float* out, int64_t lane, int64_t row_length);
}  // namespace avx512
#endif
namespace {

using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;
using reference::noise;
using reference::PaddedRows;
using reference::Rounding;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

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
      const float value = noise(stream, i);
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
        scales.push_back(0.5f + 0.25f * noise(9, i));
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

Rounding rounding(const Context& ctx, DType dtype) {
  if (ctx.precision() == Precision::kF32) return Rounding::kNone;
  if (dtype_info(dtype).block_elements > 1) return Rounding::kInt8;
  return dtype == DType::kBF16 ? Rounding::kBf16 : Rounding::kNone;
}

void check_linear(Context& ctx, DType dtype, int64_t m, int64_t n, int64_t k, bool with_bias) {
  SCOPED_TRACE(std::string(isa_name(ctx.isa())) + " " + std::string(dtype_name(dtype)) + " M " +
               std::to_string(m) + " N " + std::to_string(n) + " K " + std::to_string(k));
  const PaddedRows x(m, k, 1), bias(1, n, 3);
  const Weight w(dtype, n, k, 2);
  PaddedRows y(m, n, 4);
  const float* b = with_bias ? bias.view.data : nullptr;
  linear(ctx, x.view, w.view, b, y.view);
  const reference::LinearRef ref =
      reference::linear_ref(x.view, w.values(), n, b, rounding(ctx, dtype));
  expect_close(y.view, ref.y, ref.bounds);
  EXPECT_TRUE(y.intact());
}

// Types that take different ways through gemm.cc: in place, split or native bf16, widened in
// panels; and through gemm_int8.cc: runs of 32 and of 16, with a minimum and without.
constexpr DType kWays[] = {DType::kF32,  DType::kBF16, DType::kF16,  DType::kF8E4M3,
                           DType::kQ8_0, DType::kQ4_K, DType::kQ6_K, DType::kQ2_K};

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
    for (const Precision precision : {Precision::kNative, Precision::kF32}) {
      Context ctx(2, isa, precision);
      for (int d = 0; d < kDTypeCount; ++d) {
        const auto dtype = static_cast<DType>(d);
        if (!dtype_info(dtype).computable) continue;
        // alone, a few together, few beyond what is multiplied at a time, through panels
        for (int64_t m : {1, 3, 11, 33}) check_linear(ctx, dtype, m, 131, 2304, true);
      }
    }
  }
}

TEST(Linear, PrecisionF32KeepsXBesideBf16Weights) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa, Precision::kF32);
    for (int64_t m : {1, 3, 8}) check_linear(ctx, DType::kBF16, m, 19, 1100, true);
  }
}

TEST(Linear, BlocksOfAnyNumberOfRowsAndOutputs) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : {DType::kQ8_0, DType::kQ5_1}) {
      for (int64_t m = 0; m <= 20; ++m)
        check_linear(ctx, dtype, m, 5 + 3 * m, 32 * (m % 19), m % 2);
      check_linear(ctx, dtype, 520, 33, 64, true);
    }
  }
}

// Tiles of w: w.view as it was, and one that has nothing else.
struct Tiles {
  Tiles(Context& ctx, const Weight& w) {
    const auto bytes = static_cast<size_t>(bytes_of_tiles(w.view));
    memory.assign(bytes + 128, std::byte{0x7f});
    auto* const begin = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    make_tiles(ctx, w.view, begin);
    for (size_t i = bytes; i < bytes + 64; ++i) EXPECT_EQ(begin[i], std::byte{0x7f});
    view = w.view;
    view.tiles = begin;
    view.data = begin;  // not rows: would give other bits
  }
  std::vector<std::byte> memory;
  WeightView view;
};

TEST(Linear, TilesOfBlocksChangeNoBit) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (int d = 0; d < kDTypeCount; ++d) {
      const auto dtype = static_cast<DType>(d);
      const DTypeInfo& info = dtype_info(dtype);
      const std::pair<int64_t, int64_t> shapes[] = {{1, 1}, {16, 5}, {55, 5}, {130, 9}};
      for (const auto& [n, blocks] : shapes) {
        const int64_t k = info.block_elements * blocks;
        const Weight w(dtype, n, k, 2);
        if (!info.computable || info.block_elements == 1) {
          EXPECT_EQ(bytes_of_tiles(w.view), 0) << info.name;
          continue;
        }
        const Tiles tiles(ctx, w);
        const PaddedRows bias(1, n, 3);
        for (const int64_t m : {1, 2, 3, 5, 9, 16, 17, 40, 41, 300}) {
          SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::string(info.name) + " M " +
                       std::to_string(m) + " N " + std::to_string(n));
          const PaddedRows x(m, k, 1);
          PaddedRows rows(m, n, 4), same(m, n, 5);
          linear(ctx, x.view, w.view, bias.view.data, rows.view);
          linear(ctx, x.view, tiles.view, bias.view.data, same.view);
          expect_same_bits(same.view, rows.view);
          EXPECT_TRUE(same.intact());
        }
      }
    }
  }
}

// Parts of a weight, as heads are: with tiles where one begins, else their rows; and experts.
TEST(Linear, PartsAndGroupsOfTilesChangeNoBit) {
  Context ctx(2);
  const Weight w(DType::kQ4_K, 100, 512, 2);
  const Tiles tiles(ctx, w);
  WeightView both = w.view;
  both.tiles = tiles.view.tiles;
  EXPECT_EQ(both.slice(8, 20).tiles, nullptr);
  EXPECT_NE(both.slice(32, 21).tiles, nullptr);
  const std::vector<int64_t> offsets = {0, 2, 2, 47};
  std::vector<WeightView> rows, parts;
  for (const int64_t begin : {int64_t{32}, int64_t{8}, int64_t{64}}) {
    rows.push_back(w.view.slice(begin, 21));
    parts.push_back(both.slice(begin, 21));
    if (parts.back().tiles != nullptr) parts.back().data = tiles.view.tiles;
  }
  const PaddedRows x(47, 512, 1);
  PaddedRows expected(47, 21, 4), same(47, 21, 5);
  grouped_linear(ctx, x.view, offsets, rows, expected.view);
  grouped_linear(ctx, x.view, offsets, parts, same.view);
  expect_same_bits(same.view, expected.view);
  EXPECT_TRUE(same.intact());
}

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

TEST(Linear, ARowIsTheSameBitsAloneAndInAnyBatch) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : kWays) {
      SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::string(dtype_name(dtype)));
      const int64_t m = 300, n = 61, k = 2304;  // tiles, whole and not; panels, whole and not
      const PaddedRows x(m, k, 1);
      const Weight w(dtype, n, k, 2);
      PaddedRows all(m, n);
      linear(ctx, x.view, w.view, nullptr, all.view);
      for (int64_t rows : {1, 2, 3, 4, 6, 7, 8, 9, 16, 17, 25}) {
        for (int64_t first : {int64_t{0}, int64_t{7}, m - rows}) {
          PaddedRows some(rows, n);
          linear(ctx, x.view.slice(first, rows), w.view, nullptr, some.view);
          expect_same_bits(some.view, all.view.slice(first, rows));
        }
      }
    }
  }
}

// Few rows widen F16 and FP8 in registers, many in panels: every code, subnormals and NaN, and
// every scale, those included that a factor of 2^8 would make infinite; steps and scale blocks not whole.
TEST(Linear, EveryCodeAndScaleIsTheSameBitsForFewRowsAndMany) {
  for (Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    for (const DType dtype : {DType::kF16, DType::kF8E4M3}) {
      for (const int64_t k : {1, 15, 16, 17, 127, 128, 129, 144, 400}) {
        for (const int64_t n : {1, 9, 270}) {
          SCOPED_TRACE(fmt::format("{} {} N {} K {}", isa_name(isa), dtype_name(dtype), n, k));
          Weight w(dtype, n, k, 2);
          const int64_t size = dtype == DType::kF16 ? 2 : 1;
          auto* const bytes = const_cast<std::byte*>(w.view.data);
          for (int64_t r = 0; r < n; ++r) {  // one code of the first rows each, in one place
            const auto code = static_cast<uint16_t>(size == 1 ? r : 0x3ff * r);
            std::memcpy(bytes + (r * k + r % k) * size, &code, static_cast<size_t>(size));
          }
          constexpr float kScales[] = {1.5f,      0x1.8p120f, -0x1p-130f, 0x1.2p118f, 0x1p119f,
                                       -0x1p127f, 0.0f,       kInf,       0x1.8p-20f};
          for (size_t i = 0; i < w.scales.size(); ++i)
            w.scales[i] = kScales[(i + static_cast<size_t>(n)) % std::size(kScales)];
          const PaddedRows x(20, k, 1);
          PaddedRows all(20, n);
          const auto compute = [&](ConstRows some, Rows y) {
            linear(ctx, some, w.view, nullptr, y);
            for (int64_t i = 0; i < y.rows; ++i) {  // which NaN of several is open
              for (float& v : std::span(y.row(i), static_cast<size_t>(n)))
                v = std::isnan(v) ? kNan : v;
            }
          };
          compute(x.view, all.view);
          for (int64_t rows : {1, 2, 3, 5}) {
            PaddedRows some(rows, n);
            compute(x.view.slice(4, rows), some.view);
            expect_same_bits(some.view, all.view.slice(4, rows));
          }
        }
      }
    }
  }
}

// Two blocks of rows, two items of panels, k in parts whose sums wait in memory (on every target),
// none of them whole; a bias at the end.
TEST(Linear, PartsOfKAndBlocksOfRowsChangeNothing) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::string(dtype_name(dtype)));
      for (const auto& [m, n, k] :
           {std::tuple<int64_t, int64_t, int64_t>{530, 21, 300}, {13, 71, 24677}}) {
        const PaddedRows x(m, k, 1), bias(1, n, 3);
        const Weight w(dtype, n, k, 2);
        PaddedRows all(m, n), alone(1, n);
        linear(ctx, x.view, w.view, bias.view.row(0), all.view);
        EXPECT_TRUE(all.intact());
        for (int64_t row : {int64_t{0}, m / 2, m - 2, m - 1}) {
          linear(ctx, x.view.slice(row, 1), w.view, bias.view.row(0), alone.view);
          expect_same_bits(alone.view, all.view.slice(row, 1));
        }
      }
    }
  }
}

TEST(Linear, AnOutputIsTheSameBitsForAnyNumberOfOutputs) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kQ8_0}) {
      for (int64_t m : {1, 5, 40}) {
        const PaddedRows x(m, 288, 1);
        const Weight w(dtype, 150, 288, 2);
        PaddedRows all(m, 150), some(m, 11);
        linear(ctx, x.view, w.view, nullptr, all.view);
        linear(ctx, x.view, w.view.slice(13, 11), nullptr, some.view);
        expect_same_bits(some.view, all.view.columns(13, 11));
      }
    }
  }
}

TEST(Linear, ThreadsDoNotChangeABit) {
  for (Isa isa : instruction_sets()) {
    for (DType dtype : kWays) {
      for (int64_t m : {1, 100}) {
        const PaddedRows x(m, 2048, 1);
        const Weight w(dtype, 200, 2048, 2);
        PaddedRows one(m, 200);
        Context single(1, isa);
        linear(single, x.view, w.view, nullptr, one.view);
        for (int threads : {2, 3, 7}) {
          Context ctx(threads, isa);
          PaddedRows many(m, 200);
          linear(ctx, x.view, w.view, nullptr, many.view);
          expect_same_bits(many.view, one.view);
        }
      }
    }
  }
}

TEST(Linear, Avx2AndAvx512ComputeTheSameBits) {
  if (detect_isa() < Isa::kAvx512) GTEST_SKIP() << "this machine has no AVX-512";
  Context avx2(2, Isa::kAvx2), avx512(2, Isa::kAvx512);
  for (int d = 0; d < kDTypeCount; ++d) {
    const auto dtype = static_cast<DType>(d);
    if (!dtype_info(dtype).computable) continue;
    for (int64_t m : {1, 10, 29}) {
      const PaddedRows x(m, 1280, 1);
      const Weight w(dtype, 37, 1280, 2);
      PaddedRows a(m, 37), b(m, 37);
      linear(avx2, x.view, w.view, nullptr, a.view);
      linear(avx512, x.view, w.view, nullptr, b.view);
      expect_same_bits(a.view, b.view);
    }
  }
}

// NaN and infinities reach the outputs they belong to and no other: rows of w lie side by side, and
// k ends inside a vector.
TEST(Linear, NanAndInfinityStayInTheirRowAndColumn) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
      for (int64_t k : {1, 15, 17, 33, 47, 100}) {
        for (int64_t m : {1, 2, 3, 5, 20}) {
          SCOPED_TRACE(std::string(dtype_name(dtype)) + " M " + std::to_string(m) + " K " +
                       std::to_string(k));
          const PaddedRows x(m, k, 1);
          Weight w(dtype, 11, k, 2);
          auto* data = const_cast<std::byte*>(w.view.data);
          const auto poison = [&](int64_t row, int64_t col, float value) {
            const uint16_t half = dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
            if (dtype == DType::kF32) std::memcpy(data + (row * k + col) * 4, &value, 4);
            if (dtype != DType::kF32) std::memcpy(data + (row * k + col) * 2, &half, 2);
          };
          poison(1, 0, kInf);
          poison(4, k - 1, -kInf);
          poison(9, k / 2, kNan);
          if (m > 1) x.view.row(1)[k - 1] = kNan;
          if (m > 3) x.view.row(3)[0] = 0.0f;  // 0 * inf in column 1
          PaddedRows y(m, 11);
          linear(ctx, x.view, w.view, nullptr, y.view);
          const reference::LinearRef ref =
              reference::linear_ref(x.view, w.values(), 11, nullptr, rounding(ctx, dtype));
          expect_close(y.view, ref.y, ref.bounds);
        }
      }
    }
  }
}

TEST(Linear, F32KeepsSubnormalsAndOverflowsToInfinity) {
  for (Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    const std::vector<float> x = {0x1p-140f, 0x1p-149f, 0x1p127f, -0x1p127f}, w = {1.0f, 4.0f};
    std::vector<float> y(8);
    const WeightView view{DType::kF32, 2, 1, reinterpret_cast<const std::byte*>(w.data())};
    linear(ctx, {x.data(), 4, 1, 1}, view, nullptr, {y.data(), 4, 2, 2});
    expect_same_bits(y, std::vector<float>{0x1p-140f, 0x1p-138f, 0x1p-149f, 0x1p-147f, 0x1p127f,
                                           kInf, -0x1p127f, -kInf});
  }
}

TEST(Linear, LargeSumsOfOneSignDoNotDrift) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      PaddedRows x(2, 20000, 1);
      for (int64_t i = 0; i < 20000; ++i) x.view.row(1)[i] = 1000 + x.view.row(0)[i];
      const Weight w(dtype, 3, 20000, 2);
      PaddedRows y(2, 3);
      linear(ctx, x.view, w.view, nullptr, y.view);
      const reference::LinearRef ref =
          reference::linear_ref(x.view, w.values(), 3, nullptr, rounding(ctx, dtype));
      expect_close(y.view, ref.y, ref.bounds);
    }
  }
}

#if defined(__x86_64__)
// The CPU decides which of the two serves (gemm.cc): a subnormal operand, product or sum shows that
// both flush alike.
TEST(Linear, BothWaysThroughBf16GiveTheSameBits) {
  if (!has_bf16_dot()) GTEST_SKIP() << "this machine has no vdpbf16ps";
  for (int exponent : {0, -60, -66, -70, -126}) {
    for (int64_t m : {1, 2, 3, 7}) {
      const int64_t n = 13, k = 77, padded = 96;
      std::vector<bf16> x(static_cast<size_t>(m * padded)), w(static_cast<size_t>(n * k));
      for (size_t i = 0; i < x.size(); ++i)
        x[i] = f32_to_bf16(std::ldexp(noise(1, static_cast<int64_t>(i)), exponent));
      for (size_t i = 0; i < w.size(); ++i)
        w[i] = f32_to_bf16(std::ldexp(noise(2, static_cast<int64_t>(i)), exponent));
      std::vector<float> split(x.size()), native_y(static_cast<size_t>(m * n)),
          split_y(native_y.size());
      for (int64_t r = 0; r < m; ++r)
        avx512::split_bf16(x.data() + r * padded, k, split.data() + r * padded);
      GemmBlock b{.x = x.data(),
                  .w = w.data(),
                  .x_stride = padded,
                  .w_stride = k,
                  .m = m,
                  .n = n,
                  .k = k,
                  .y = native_y.data(),
                  .y_stride = n};
      avx512::gemm_native_bf16(b);
      b.x = split.data();
      b.y = split_y.data();
      avx512::gemm_split_bf16(b);
      expect_same_bits(split_y, native_y);

      // Packed: three steps of pairs a row are six of split elements.
      const auto packed = [&](const void* rows, int64_t count, int64_t width, int64_t steps) {
        std::vector<float> out(static_cast<size_t>(16 * steps * width));
        for (int64_t r = 0; r < width; r += 16) {
          const int64_t some = std::clamp<int64_t>(count - r, 0, 16);
          avx512::pack_lanes(static_cast<const float*>(rows) + r * steps * 16, steps * 16, some,
                             steps, std::min<int64_t>(16, width - r), out.data() + r, steps * width,
                             width);
        }
        return out;
      };
      std::vector<bf16> padded_w(static_cast<size_t>(n * padded));
      for (int64_t r = 0; r < n; ++r)
        std::copy_n(w.begin() + r * k, k, padded_w.begin() + r * padded);
      std::vector<bf16> padded_x = x;
      for (int64_t r = 0; r < m; ++r)
        std::fill_n(padded_x.begin() + r * padded + k, padded - k, bf16{});
      std::vector<float> split_w(static_cast<size_t>(n * padded));
      for (int64_t r = 0; r < n; ++r)
        avx512::split_bf16(padded_w.data() + r * padded, padded, split_w.data() + r * padded);
      constexpr int64_t kRows = avx512::kPackedTile.rows, kColumns = avx512::kPackedTile.columns;
      std::vector<float> packed_y(native_y.size());
      for (const bool native : {true, false}) {
        const int64_t steps = native ? 3 : 6;
        const std::vector<float> px = packed(
            native ? static_cast<const void*>(padded_x.data()) : split.data(), m, kRows, steps);
        const std::vector<float> pw =
            packed(native ? static_cast<const void*>(padded_w.data()) : split_w.data(), n, kColumns,
                   steps);
        PackedBlock p{.x = px.data(),
                      .w = pw.data(),
                      .x_lane = steps * kRows,
                      .w_lane = steps * kColumns,
                      .m = m,
                      .n = n,
                      .steps = steps,
                      .y = packed_y.data(),
                      .y_stride = n};
        native ? avx512::packed_native_bf16(p) : avx512::packed_split_bf16(p);
        expect_same_bits(packed_y, native_y);
      }
      if (exponent == 0) {
        EXPECT_NE(native_y[0], 0.0f);
      }
    }
  }
}
#endif

TEST(GroupedLinear, EqualsLinearOfEachExpertBitForBit) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : kWays) {
      const std::vector<int64_t> counts = {0, 1, 0, 2, 5, 131, 0, 9, 3, 0};
      std::vector<int64_t> offsets = {0};
      std::vector<std::unique_ptr<Weight>> weights;
      std::vector<WeightView> experts;
      for (int64_t count : counts) {
        offsets.push_back(offsets.back() + count);
        weights.push_back(std::make_unique<Weight>(dtype, 67, 256, 10 + weights.size()));
        experts.push_back(weights.back()->view);
        if (count == 0) experts.back().data = nullptr;  // not read
      }
      const PaddedRows x(offsets.back(), 256, 1);
      PaddedRows y(offsets.back(), 67);
      grouped_linear(ctx, x.view, offsets, experts, y.view);
      EXPECT_TRUE(y.intact());
      for (size_t e = 0; e < counts.size(); ++e) {
        if (counts[e] == 0) continue;
        PaddedRows alone(counts[e], 67);
        linear(ctx, x.view.slice(offsets[e], counts[e]), experts[e], nullptr, alone.view);
        expect_same_bits(y.view.slice(offsets[e], counts[e]), alone.view);
      }
    }
  }
}

TEST(GroupedLinear, LayersOfOneXTogetherAreTheSameBitsAsAlone) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (const int64_t rows : {1, 5, 40, 300}) {
      const std::vector<int64_t> offsets = {0, rows, rows, rows + 3};
      const PaddedRows x(rows + 3, 512, 1), bias(1, 300, 3);
      std::vector<std::unique_ptr<Weight>> weights;
      std::vector<std::vector<WeightView>> experts;
      std::vector<std::unique_ptr<PaddedRows>> y;
      std::vector<LinearPart> parts;
      // blocks of one type beside each other and apart, other ways between, nothing to compute
      for (const auto& [dtype, cols] : {std::pair{DType::kQ4_K, 300},
                                        {DType::kQ4_K, 17},
                                        {DType::kQ6_K, 48},
                                        {DType::kF32, 7},
                                        {DType::kBF16, 9},
                                        {DType::kQ4_K, 0},
                                        {DType::kQ4_K, 64}}) {
        experts.emplace_back();
        for (int e = 0; e < 3; ++e) {
          weights.push_back(std::make_unique<Weight>(dtype, cols, 512, 10 + weights.size()));
          experts.back().push_back(weights.back()->view);
        }
        y.push_back(std::make_unique<PaddedRows>(rows + 3, cols));
      }
      for (size_t i = 0; i < experts.size(); ++i)
        parts.push_back({experts[i], i % 2 == 0 ? bias.view.data : nullptr, y[i]->view});
      grouped_linears(ctx, x.view, offsets, parts);
      for (const LinearPart& part : parts) {
        SCOPED_TRACE(std::string(dtype_name(part.experts[0].dtype)) + " x " +
                     std::to_string(part.y.cols) + ", rows " + std::to_string(rows));
        for (const size_t e : {0, 2}) {
          const int64_t count = offsets[e + 1] - offsets[e];
          PaddedRows alone(count, part.y.cols);
          linear(ctx, x.view.slice(offsets[e], count), part.experts[e], part.bias, alone.view);
          expect_same_bits(part.y.slice(offsets[e], count), alone.view);
        }
      }
      for (const auto& each : y) EXPECT_TRUE(each->intact());
    }
  }
}

// Experts in blocks: beside each other, with tiles or without.
struct BlockExperts {
  BlockExperts(Context& ctx, DType dtype, size_t count, int64_t rows, int64_t cols,
               uint64_t stream) {
    for (size_t e = 0; e < count; ++e) {
      weights.push_back(std::make_unique<Weight>(dtype, rows, cols, stream + e));
      views.push_back(weights.back()->view);
      tiles.push_back(std::make_unique<Tiles>(ctx, *weights.back()));
      tiled.push_back(tiles.back()->view);
    }
  }
  std::vector<std::unique_ptr<Weight>> weights;
  std::vector<std::unique_ptr<Tiles>> tiles;
  std::vector<WeightView> views, tiled;
};

TEST(SwigluMlp, HasTheBitsOfItsLayersOneAfterTheOther) {
  constexpr int64_t kIn = 512, kInner = 608, kOut = 53, kExperts = 4;
  for (Isa isa : instruction_sets()) {
    Context ctx(3, isa);
    for (const auto& [outer, inner] : {std::pair{DType::kQ4_K, DType::kQ5_0},
                                       {DType::kQ8_0, DType::kQ8_0},
                                       {DType::kQ6_K, DType::kQ4_1},
                                       {DType::kQ4_0, DType::kIQ4_NL}}) {
      const BlockExperts gate(ctx, outer, kExperts, kInner, kIn, 100),
          up(ctx, outer, kExperts, kInner, kIn, 200), down(ctx, inner, kExperts, kOut, kInner, 300);
      for (const int64_t tokens : {1, 2, 7, 45, 300}) {
        SCOPED_TRACE(fmt::format("{} {} {}, {} tokens", isa_name(isa), dtype_name(outer),
                                 dtype_name(inner), tokens));
        // two experts a token, one of them without any
        std::vector<int32_t> chosen;
        for (int32_t t = 0; t < tokens; ++t) {
          chosen.push_back(t % 5 == 0 ? 0 : 2);
          chosen.push_back(3);
        }
        std::vector<int64_t> offsets(kExperts + 1), position(chosen.size());
        sort_by_expert(chosen, offsets, position);
        const auto slots = static_cast<int64_t>(position.size());
        const PaddedRows x(tokens, kIn, 7, 3);
        PaddedRows sorted(slots, kIn), gate_y(slots, kInner), up_y(slots, kInner),
            expected(slots, kOut), y(slots, kOut), grouped_y(slots, kOut);
        gather_by_expert(ctx, x.view, position, sorted.view);
        grouped_linear(ctx, sorted.view, offsets, gate.views, gate_y.view);
        grouped_linear(ctx, sorted.view, offsets, up.views, up_y.view);
        swiglu(ctx, gate_y.view, up_y.view, gate_y.view);
        grouped_linear(ctx, gate_y.view, offsets, down.views, expected.view);

        for (const SwigluExperts& w : {SwigluExperts{gate.views, up.views, down.views},
                                       SwigluExperts{gate.tiled, up.tiled, down.tiled},
                                       SwigluExperts{gate.tiled, up.views, down.tiled}}) {
          ASSERT_TRUE(has_swiglu_mlp(ctx, w));
          swiglu_mlp(ctx, x.view, position, offsets, w, y.view);
          expect_same_bits(y.view, expected.view);
          swiglu_mlp(ctx, sorted.view, {}, offsets, w, grouped_y.view);
          expect_same_bits(grouped_y.view, expected.view);
          EXPECT_TRUE(y.intact() && grouped_y.intact());
        }
      }
    }
  }
}

TEST(SwigluMlp, IsForBlocksComputedInIntegers) {
  Context ctx(1), exact(1, detect_isa(), Precision::kF32);
  const Weight blocks(DType::kQ8_0, 32, 32, 1), others(DType::kQ4_0, 32, 32, 2),
      plain(DType::kBF16, 32, 32, 3);
  const auto has = [&](const Context& c, const Weight& gate, const Weight& up, const Weight& down) {
    return has_swiglu_mlp(c, {{&gate.view, 1}, {&up.view, 1}, {&down.view, 1}});
  };
  EXPECT_TRUE(has(ctx, blocks, blocks, others));
  EXPECT_FALSE(has(ctx, blocks, others, others));
  EXPECT_FALSE(has(ctx, blocks, blocks, plain));
  EXPECT_FALSE(has(ctx, plain, plain, blocks));
  EXPECT_FALSE(has(exact, blocks, blocks, others));
  EXPECT_FALSE(has_swiglu_mlp(ctx, {}));
}

// NaN in one token's x stays in its rows.
TEST(SwigluMlp, NanStaysInItsRow) {
  Context ctx(2);
  const Weight gate(DType::kQ8_0, 64, 64, 1), up(DType::kQ8_0, 64, 64, 2),
      down(DType::kQ8_0, 40, 64, 3);
  PaddedRows x(9, 64, 1), y(9, 40);
  x.view.row(4)[63] = kNan;
  x.view.row(7)[0] = kInf;
  const std::vector<int64_t> offsets = {0, 9};
  swiglu_mlp(ctx, x.view, {}, offsets, {{&gate.view, 1}, {&up.view, 1}, {&down.view, 1}}, y.view);
  for (int64_t t = 0; t < 9; ++t) {
    for (int64_t i = 0; i < 40; ++i) EXPECT_EQ(std::isnan(y.view.row(t)[i]), t == 4 || t == 7) << t;
  }
}

TEST(HeadLinears, AreLinearLayersOfTheColumnsOfEachHead) {
  constexpr int64_t kHeads = 3, kIn = 64, kOut = 35, kInStride = 80, kOutStride = 41;
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
      std::vector<std::unique_ptr<Weight>> weights;
      std::vector<WeightView> heads;
      for (int64_t h = 0; h < kHeads; ++h) {
        weights.push_back(std::make_unique<Weight>(dtype, kOut, kIn, 10 + h));
        heads.push_back(weights.back()->view);
      }
      for (const int64_t tokens : {1, 3, 50}) {
        SCOPED_TRACE(fmt::format("{} {}, {}", isa_name(isa), dtype_name(dtype), tokens));
        const PaddedRows x(tokens, kHeads * kInStride, 1);
        PaddedRows y(tokens, kHeads * kOutStride, 2), before(tokens, kHeads * kOutStride, 2);
        head_linears(ctx, {x.view.data, tokens, kIn, x.view.stride}, kInStride, heads,
                     y.view.columns(0, kOut), kOutStride);
        for (int64_t h = 0; h < kHeads; ++h) {
          PaddedRows alone(tokens, kOut);
          linear(ctx, {x.view.data + h * kInStride, tokens, kIn, x.view.stride},
                 heads[static_cast<size_t>(h)], nullptr, alone.view);
          expect_same_bits(y.view.columns(h * kOutStride, kOut), alone.view);
          const int64_t between = h * kOutStride + kOut;
          expect_same_bits(y.view.columns(between, kOutStride - kOut),
                           before.view.columns(between, kOutStride - kOut));
        }
        EXPECT_TRUE(y.intact());
      }
    }
  }
}

TEST(GroupedLinear, AcceptsNoRowsAndNoExperts) {
  Context ctx(2);
  const std::vector<int64_t> none = {0}, empty = {0, 0, 0};
  const Weight w(DType::kF32, 3, 4, 1);
  grouped_linear(ctx, {nullptr, 0, 4, 4}, none, {}, {nullptr, 0, 3, 3});
  grouped_linear(ctx, {nullptr, 0, 4, 4}, empty, std::vector<WeightView>{w.view, w.view},
                 {nullptr, 0, 3, 3});
}

}  // namespace
}  // namespace fathom
