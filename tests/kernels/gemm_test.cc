#include "kernels/gemm.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/dispatch.h"
#include "kernels/gemm-inl.h"
#include "tests/kernels/gemm_weights.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/gemm_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
FATHOM_SIMD_DECLARE(void f8_to_bf16(const uint8_t* in, int64_t n, uint16_t* out))
#if defined(__x86_64__)
namespace avx512 {
void gemm_native_bf16(const GemmBlock& b);
void gemm_split_bf16(const GemmBlock& b);
void gemm_native_f8(const GemmBlock& b);
void gemm_split_f8(const GemmBlock& b);
void split_bf16(const uint16_t* in, int64_t n, float* out);
void gemm_split_f8_by_lookup(const GemmBlock& b);
void f8_to_bf16_by_lookup(const uint8_t* in, int64_t n, uint16_t* out);
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

Rounding rounding(const Context& ctx, DType dtype) {
  if (ctx.precision() == Precision::kF32) return Rounding::kNone;
  if (dtype_info(dtype).block_elements > 1) return Rounding::kInt8;
  if (dtype == DType::kF8E4M3) return Rounding::kBf16ForF8;
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

TEST(Linear, EqualsTheTwinForAllSmallShapes) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
      for (int64_t m : {0, 1, 2, 3, 4, 5, 6, 7, 9, 17, 65, 70, 77}) {
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
        for (int64_t m : {1, 3, 11, 30, 67}) check_linear(ctx, dtype, m, 131, 2304, true);
      }
    }
  }
}

TEST(Linear, PrecisionF32KeepsXBesideBf16Weights) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa, Precision::kF32);
    for (int64_t m : {1, 3, 8, 70}) check_linear(ctx, DType::kBF16, m, 19, 1100, true);
  }
}

TEST(Linear, BlocksOfAnyNumberOfRowsAndOutputs) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : {DType::kQ8_0, DType::kQ5_1}) {
      for (int64_t m = 0; m <= 20; ++m)
        check_linear(ctx, dtype, m, 5 + 3 * m, 32 * (m % 19), m % 2);
      check_linear(ctx, dtype, 520, 33, 64, true);
      for (int64_t k = 32; k <= 288; k += 32) check_linear(ctx, dtype, 65, 33, k, false);
      check_linear(ctx, dtype, 65, 33, 544, false);
    }
  }
}

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
        for (const int64_t m : {1, 2, 3, 5, 9, 16, 17, 24, 25, 40, 41, 64, 65, 517}) {
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

// Their bytes fill no lines: each begins at one.
TEST(Linear, TilesOfSeveralWeightsLieOneBehindTheOther) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    const Weight a(DType::kQ6_K, 10, 256, 2), b(DType::kQ6_K, 10, 256, 3),
        c(DType::kQ6_K, 10, 256, 4);
    const WeightView views[] = {a.view, b.view, c.view};
    const int64_t each = bytes_of_tiles(a.view);
    EXPECT_GT(each, 16 * row_bytes(DType::kQ6_K, 256));
    EXPECT_EQ(each % 64, 0);
    Arena memory;
    const ArenaScope scope(memory);
    auto* const all = memory.allocate(static_cast<uint64_t>(3 * each));
    make_tiles(ctx, views, all);
    const std::byte* at = all;
    for (const Weight* w : {&a, &b, &c}) {
      EXPECT_EQ(std::memcmp(at, Tiles(ctx, *w).view.tiles,
                            static_cast<size_t>(16 * row_bytes(DType::kQ6_K, 256))),
                0);
      at += each;
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
      for (int64_t rows : {1, 2, 3, 4, 6, 7, 8, 9, 16, 17, 25, 64, 65}) {
        for (int64_t first : {int64_t{0}, int64_t{7}, m - rows}) {
          PaddedRows some(rows, n);
          linear(ctx, x.view.slice(first, rows), w.view, nullptr, some.view);
          expect_same_bits(some.view, all.view.slice(first, rows));
        }
      }
    }
  }
}

// Few rows widen F16 and FP8 in registers, more of them in panels, many packed: every code,
// subnormals and NaN, and scales of any size; steps and scale blocks not whole.
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
          const PaddedRows x(70, k, 1);
          PaddedRows all(70, n);
          const auto compute = [&](ConstRows some, Rows y) {
            linear(ctx, some, w.view, nullptr, y);
            for (int64_t i = 0; i < y.rows; ++i) {  // which NaN of several is open
              for (float& v : std::span(y.row(i), static_cast<size_t>(n)))
                v = std::isnan(v) ? kNan : v;
            }
          };
          compute(x.view, all.view);
          for (int64_t rows : {1, 2, 3, 5, 33}) {
            PaddedRows some(rows, n);
            compute(x.view.slice(4, rows), some.view);
            expect_same_bits(some.view, all.view.slice(4, rows));
          }
        }
      }
    }
  }
}

// Several blocks of rows, two items of panels, k in parts whose sums wait in memory (on every
// target), none of them whole; a bias at the end.
TEST(Linear, PartsOfKAndBlocksOfRowsChangeNothing) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
      SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::string(dtype_name(dtype)));
      for (const auto& [m, n, k] :
           {std::tuple<int64_t, int64_t, int64_t>{530, 21, 300}, {67, 71, 24677}}) {
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
      for (int64_t m : {1, 5, 40, 70}) {
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
      // the last: so narrow that threads share it by rows
      for (const auto& [m, n] :
           {std::pair<int64_t, int64_t>{1, 200}, {40, 200}, {100, 200}, {300, 20}}) {
        const PaddedRows x(m, 2048, 1);
        const Weight w(dtype, n, 2048, 2);
        PaddedRows one(m, n);
        Context single(1, isa);
        linear(single, x.view, w.view, nullptr, one.view);
        for (int threads : {2, 3, 7}) {
          Context ctx(threads, isa);
          PaddedRows many(m, n);
          linear(ctx, x.view, w.view, nullptr, many.view);
          expect_same_bits(many.view, one.view);
        }
      }
    }
  }
}

TEST(Linear, EverySetButThePortableOneComputesTheSameBits) {
  std::vector<std::unique_ptr<Context>> contexts;
  for (const Isa isa : instruction_sets())
    if (isa != Isa::kPortable) contexts.push_back(std::make_unique<Context>(2, isa));
  if (contexts.size() < 2) GTEST_SKIP() << "this machine has no two of them";
  for (int d = 0; d < kDTypeCount; ++d) {
    const auto dtype = static_cast<DType>(d);
    if (!dtype_info(dtype).computable) continue;
    for (int64_t m : {1, 10, 29, 67}) {
      const PaddedRows x(m, 1280, 1);
      const Weight w(dtype, 37, 1280, 2);
      PaddedRows first(m, 37);
      linear(*contexts[0], x.view, w.view, nullptr, first.view);
      for (size_t i = 1; i < contexts.size(); ++i) {
        PaddedRows y(m, 37);
        linear(*contexts[i], x.view, w.view, nullptr, y.view);
        expect_same_bits(y.view, first.view);
      }
    }
  }
}

// NaN and infinities reach the outputs they belong to and no other: rows of w lie side by side, and
// k ends inside a vector.
TEST(Linear, NanAndInfinityStayInTheirRowAndColumn) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
      for (int64_t k : {1, 15, 17, 33, 47, 100}) {
        for (int64_t m : {1, 2, 3, 5, 20, 30, 70}) {
          SCOPED_TRACE(std::string(dtype_name(dtype)) + " M " + std::to_string(m) + " K " +
                       std::to_string(k));
          const PaddedRows x(m, k, 1);
          Weight w(dtype, 11, k, 2);
          auto* data = const_cast<std::byte*>(w.view.data);
          const auto poison = [&](int64_t row, int64_t col, float value) {
            const uint16_t half = dtype == DType::kF16 ? f32_to_f16(value) : f32_to_bf16(value);
            if (dtype == DType::kF8E4M3) {  // knows NaN only
              data[row * k + col] = std::byte{0x7f};
            } else if (dtype == DType::kF32) {
              std::memcpy(data + (row * k + col) * 4, &value, 4);
            } else {
              std::memcpy(data + (row * k + col) * 2, &half, 2);
            }
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
bool widens_f8_by_vbmi() { return looks_up_f8(detect_isa()); }
#endif

// Of each number of codes, and nothing behind the last 32 of them.
TEST(Linear, CodesOfFp8AreExactInBf16) {
  using Convert = void (*)(const uint8_t*, int64_t, uint16_t*);
  std::vector<Convert> ways;
  for (Isa isa : instruction_sets()) ways.push_back(FATHOM_SIMD_CALL(isa, f8_to_bf16));
#if defined(__x86_64__)
  if (widens_f8_by_vbmi()) ways.push_back(avx512::f8_to_bf16_by_lookup);
#endif
  std::vector<uint8_t> codes(256);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(i);
  for (const Convert convert : ways) {
    for (int64_t n = 0; n <= 256; ++n) {
      std::vector<bf16> out(289, 1);
      const uint8_t* const from = codes.data() + 256 - n;
      convert(from, n, out.data());
      for (int64_t i = 0; i < std::ssize(out); ++i) {
        const bf16 found = out[static_cast<size_t>(i)];
        if (i >= n) {
          EXPECT_EQ(found, i < (n + 31) / 32 * 32 ? 0 : 1) << i << " of " << n;
        } else if (const float value = f8e4m3_to_f32(from[i]); std::isnan(value)) {
          EXPECT_TRUE(std::isnan(bf16_to_f32(found))) << i << " of " << n;
        } else {
          EXPECT_EQ(found, f32_to_bf16(value)) << i << " of " << n;
          EXPECT_EQ(bf16_to_f32(found), value) << i << " of " << n;
        }
      }
    }
  }
}

#if defined(__x86_64__)
// `count` rows of 16 * steps elements as PackedBlock has them.
std::vector<float> packed_rows(const void* rows, int64_t count, int64_t width, int64_t steps) {
  std::vector<float> out(static_cast<size_t>(16 * steps * width));
  for (int64_t r = 0; r < width; r += 16) {
    const int64_t some = std::clamp<int64_t>(count - r, 0, 16);
    avx512::pack_lanes(static_cast<const float*>(rows) + r * steps * 16, steps * 16, some, steps,
                       std::min<int64_t>(16, width - r), out.data() + r, steps * width, width);
  }
  return out;
}

// The packed way in one of its forms, into which x [m, padded] and w [n, padded] are brought
// already; scales: those of FP8, or null.
std::vector<float> packed_product(bool native, const void* x, int64_t m, const void* w, int64_t n,
                                  int64_t padded, const float* scales) {
  constexpr int64_t kRows = avx512::kPackedTile.rows, kColumns = avx512::kPackedTile.columns;
  const int64_t values = native ? 32 : 16, steps = padded / values;
  const std::vector<float> px = packed_rows(x, m, kRows, steps),
                           pw = packed_rows(w, n, kColumns, steps);
  std::vector<float> y(static_cast<size_t>(m * n), -1);
  const PackedBlock p{.x = px.data(),
                      .w = pw.data(),
                      .x_lane = steps * kRows,
                      .w_lane = steps * kColumns,
                      .m = m,
                      .n = n,
                      .steps = steps,
                      .scales = scales,
                      .run_steps = kScaleColumns / values,
                      .y = y.data(),
                      .y_stride = n};
  native ? avx512::packed_native_bf16(p) : avx512::packed_split_bf16(p);
  return y;
}

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

      std::vector<bf16> padded_w(static_cast<size_t>(n * padded));
      for (int64_t r = 0; r < n; ++r)
        std::copy_n(w.begin() + r * k, k, padded_w.begin() + r * padded);
      std::vector<bf16> padded_x = x;
      for (int64_t r = 0; r < m; ++r)
        std::fill_n(padded_x.begin() + r * padded + k, padded - k, bf16{});
      std::vector<float> split_w(static_cast<size_t>(n * padded));
      for (int64_t r = 0; r < n; ++r)
        avx512::split_bf16(padded_w.data() + r * padded, padded, split_w.data() + r * padded);
      expect_same_bits(
          packed_product(true, padded_x.data(), m, padded_w.data(), n, padded, nullptr), native_y);
      expect_same_bits(packed_product(false, split.data(), m, split_w.data(), n, padded, nullptr),
                       native_y);
      if (exponent == 0) {
        EXPECT_NE(native_y[0], 0.0f);
      }
    }
  }
}

// The same of FP8, from codes and from what these are in bf16: every code but NaN, runs that are
// not whole, and sums that are subnormal once they are scaled.
TEST(Linear, AllWaysThroughFp8GiveTheSameBits) {
  if (!widens_f8_by_vbmi()) GTEST_SKIP() << "this machine widens no FP8 by VBMI";
  for (const float scale : {1.0f, -0x1p-110f, 0x1p-126f}) {
    for (const int64_t k : {77, 128, 256 + 77}) {
      for (const int64_t m : {1, 2, 3, 11}) {
        SCOPED_TRACE(fmt::format("scale {} K {} M {}", scale, k, m));
        const int64_t n = 13, padded = (k + 31) / 32 * 32;
        std::vector<bf16> x(static_cast<size_t>(m * padded)), wide(static_cast<size_t>(n * padded));
        std::vector<uint8_t> w(static_cast<size_t>(n * k));
        std::vector<float> split_x(x.size()), split_w(wide.size()), scales;
        for (int64_t i = 0; i < n * k; ++i) {
          w[static_cast<size_t>(i)] = static_cast<uint8_t>(i * 37 % 255);
          if ((w[static_cast<size_t>(i)] & 0x7f) == 0x7f) w[static_cast<size_t>(i)] = 0x81;
        }
        for (int64_t r = 0; r < m; ++r) {
          for (int64_t i = 0; i < k; ++i)
            x[static_cast<size_t>(r * padded + i)] = f32_to_bf16(noise(1, r * k + i));
          avx512::split_bf16(x.data() + r * padded, k, split_x.data() + r * padded);
        }
        for (int64_t r = 0; r < n; ++r) {
          avx512::f8_to_bf16(w.data() + r * k, k, wide.data() + r * padded);
          avx512::split_bf16(wide.data() + r * padded, padded, split_w.data() + r * padded);
        }
        for (int64_t r = 0; r * 128 < k; ++r) scales.push_back(scale * (1.0f + 0.1f * noise(3, r)));
        std::vector<float> expected(static_cast<size_t>(m * n)), y(expected.size());
        GemmBlock b{.x = split_x.data(),
                    .w = w.data(),
                    .x_stride = padded,
                    .w_stride = k,
                    .m = m,
                    .n = n,
                    .k = k,
                    .scales = scales.data(),
                    .y = expected.data(),
                    .y_stride = n};
        avx512::gemm_split_f8(b);
        const auto expect_same = [&](auto run, const void* operand, bool widened) {
          b.x = operand;
          b.w = widened ? static_cast<const void*>(wide.data()) : w.data();
          b.w_stride = widened ? padded : k;
          b.y = y.data();
          y.assign(y.size(), -1);
          run(b);
          expect_same_bits(y, expected);
        };
        expect_same(avx512::gemm_split_f8_by_lookup, split_x.data(), false);
        expect_same(avx512::gemm_split_bf16, split_x.data(), true);
        expect_same_bits(
            packed_product(false, split_x.data(), m, split_w.data(), n, padded, scales.data()),
            expected);
        if (has_bf16_dot()) {
          expect_same(avx512::gemm_native_f8, x.data(), false);
          expect_same(avx512::gemm_native_bf16, x.data(), true);
          expect_same_bits(packed_product(true, x.data(), m, wide.data(), n, padded, scales.data()),
                           expected);
        }
        if (scale == 1.0f) {
          EXPECT_NE(expected[0], 0.0f);
        }
      }
    }
  }
}
#endif

}  // namespace
}  // namespace fathom
