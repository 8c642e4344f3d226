#include "kernels/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/reference/expect_close.h"
#include "tests/reference/ops_backward_ref.h"
#include "tests/reference/ops_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;
using reference::kUnit;
using reference::PaddedRows;

constexpr RopeLayout kLayouts[] = {RopeLayout::kInterleaved, RopeLayout::kHalfSplit};

TEST(RopeAngles, KeepTheirPhaseUpToTheLastPosition) {
  const std::vector<int32_t> positions = {0, 1, 4095, 163839, 16777217, 2147483647};
  std::vector<double> inv_freq;
  for (int i = 0; i < 32; ++i) inv_freq.push_back(std::pow(10000.0, -i / 32.0));
  for (const double magnitude : {1.0, 1.25}) {
    Context ctx(2);
    PaddedRows out(6, 64);
    rope_angles(ctx, positions, inv_freq, magnitude, out.view);
    const auto expected = reference::rope_angles_ref(positions, inv_freq, magnitude);
    std::vector<double> bounds;
    for (const int32_t position : positions) {
      for (const double f : inv_freq)
        bounds.insert(bounds.end(), 2, magnitude * (kUnit + position * f * 0x1p-53));
    }
    expect_close(out.view, expected, bounds);
    EXPECT_TRUE(out.intact());
  }
}

TEST(Rope, MatchesTheTwinForEveryDimOffsetAndLayout) {
  for (const RopeLayout layout : kLayouts) {
    for (const Isa isa : instruction_sets()) {
      Context ctx(1, isa);
      for (int64_t dim = 2; dim <= 70; dim += 2) {
        const int64_t heads = 3, offset = dim % 7, head_stride = dim + offset + 1;
        const PaddedRows x(4, heads * head_stride, 1), cos_sin(4, dim, 2);
        const auto expected =
            reference::rope_ref(cos_sin.view, layout, heads, head_stride, offset, x.view);
        rope(ctx, cos_sin.view, layout, heads, head_stride, offset, x.view);
        // two rounded products and their rounded sum, all at most 2
        expect_close(x.view, expected, 4 * kUnit);
        EXPECT_TRUE(x.intact());
      }
    }
  }
}

TEST(Rope, TurnsTheRightPairsByTheRightAngle) {
  // A quarter turn takes (a, b) to (-b, a).
  const std::vector<float> quarter = {0, 1, 0, 1};
  std::vector<float> interleaved = {9, 1, 2, 3, 4}, half_split = interleaved;
  Context ctx(1);
  const ConstRows cos_sin{quarter.data(), 1, 4, 4};
  rope(ctx, cos_sin, RopeLayout::kInterleaved, 1, 5, 1, {interleaved.data(), 1, 5, 5});
  rope(ctx, cos_sin, RopeLayout::kHalfSplit, 1, 5, 1, {half_split.data(), 1, 5, 5});
  EXPECT_EQ(interleaved, (std::vector<float>{9, -2, 1, -4, 3}));
  EXPECT_EQ(half_split, (std::vector<float>{9, -3, -4, 1, 2}));
}

TEST(Rope, HasTheSameBitsOnEveryInstructionSetAndThreadCount) {
  for (const RopeLayout layout : kLayouts) {
    const PaddedRows cos_sin(300, 64, 2);
    PaddedRows first(300, 5 * 64, 1);
    Context portable(1, Isa::kPortable);
    rope(portable, cos_sin.view, layout, 5, 64, 0, first.view);
    for (const Isa isa : instruction_sets()) {
      Context ctx(3, isa);
      PaddedRows x(300, 5 * 64, 1);
      rope(ctx, cos_sin.view, layout, 5, 64, 0, x.view);
      expect_same_bits(x.view, first.view);
    }
  }
}

TEST(RopeBackward, MatchesTheTwinForEveryDimOffsetAndLayout) {
  for (const RopeLayout layout : kLayouts) {
    for (const Isa isa : instruction_sets()) {
      Context ctx(2, isa);
      for (int64_t dim = 2; dim <= 70; dim += 2) {
        const int64_t heads = 3, offset = dim % 7, head_stride = dim + offset + 1;
        const PaddedRows dx(4, heads * head_stride, 1), before(4, heads * head_stride, 1),
            cos_sin(4, dim, 2);
        auto expected = reference::dense(before.view);
        for (int64_t h = 0; h < heads; ++h) {
          const int64_t begin = h * head_stride + offset;
          const auto turned = reference::rope_gradient(
              cos_sin.view, layout, reference::dense(before.view.columns(begin, dim)));
          for (int64_t i = 0; i < 4 * dim; ++i) {
            expected[static_cast<size_t>(i / dim * heads * head_stride + begin + i % dim)] =
                turned[static_cast<size_t>(i)];
          }
        }
        rope_backward(ctx, cos_sin.view, layout, heads, head_stride, offset, dx.view);
        expect_close(dx.view, expected, 4 * kUnit);
        EXPECT_TRUE(dx.intact());
      }
    }
  }
}

TEST(RopeBackward, HasTheSameBitsOnEveryInstructionSetAndThreadCount) {
  const PaddedRows cos_sin(300, 64, 2), first(300, 5 * 64, 1);
  Context portable(1, Isa::kPortable);
  rope_backward(portable, cos_sin.view, RopeLayout::kInterleaved, 5, 64, 0, first.view);
  for (const Isa isa : instruction_sets()) {
    for (const int threads : {2, 3}) {
      Context ctx(threads, isa);
      const PaddedRows dx(300, 5 * 64, 1);
      rope_backward(ctx, cos_sin.view, RopeLayout::kInterleaved, 5, 64, 0, dx.view);
      expect_same_bits(dx.view, first.view);
    }
  }
}

}  // namespace
}  // namespace fathom
