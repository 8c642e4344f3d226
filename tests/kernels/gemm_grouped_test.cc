// Linear layers of experts and of heads, and whole MLPs: the bits of plain linear layers.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/moe_permute.h"
#include "tests/kernels/gemm_weights.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_same_bits;
using reference::instruction_sets;
using reference::PaddedRows;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(GroupedLinear, EqualsLinearOfEachExpertBitForBit) {
  for (Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (DType dtype : kWays) {
      const std::vector<int64_t> counts = {0, 1, 0, 2, 5, 131, 0, 9, 40, 3, 0};
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
      for (const int64_t tokens : {1, 2, 7, 45, 517}) {
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
      for (const int64_t tokens : {1, 3, 50, 70}) {
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
