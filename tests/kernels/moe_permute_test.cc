#include "kernels/moe_permute.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "base/random.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/ops_backward_ref.h"
#include "tests/reference/ops_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::dense;
using reference::Doubles;
using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;
using reference::kUnit;
using reference::noise;
using reference::PaddedRows;

// k distinct experts per token in increasing order, as the router leaves them.
std::vector<int32_t> random_experts(int64_t tokens, int64_t k, int64_t n_experts, uint64_t stream) {
  std::vector<int32_t> experts;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto start =
        static_cast<int64_t>(random_bits({.sequence = stream}, static_cast<uint64_t>(t)) % 1000);
    std::vector<int32_t> row;
    for (int64_t j = 0; j < k; ++j)
      row.push_back(static_cast<int32_t>((start + j * j + j) % n_experts));
    std::sort(row.begin(), row.end());
    experts.insert(experts.end(), row.begin(), row.end());
  }
  return experts;
}

TEST(SortByExpert, IsAStablePermutationWithTheRightOffsets) {
  for (const int64_t tokens : {0, 1, 2, 17, 300}) {
    for (const int64_t k : {1, 3, 8}) {
      constexpr int64_t kExperts = 23;
      const std::vector<int32_t> experts = random_experts(tokens, k, kExperts, 5);
      std::vector<int64_t> offsets(kExperts + 1, -7), position(experts.size(), -7);
      sort_by_expert(experts, offsets, position);
      std::vector<int64_t> slot_at(experts.size(), -1);
      for (size_t i = 0; i < experts.size(); ++i) {
        ASSERT_TRUE(position[i] >= 0 && position[i] < static_cast<int64_t>(experts.size()));
        EXPECT_EQ(slot_at[static_cast<size_t>(position[i])], -1);
        slot_at[static_cast<size_t>(position[i])] = static_cast<int64_t>(i);
      }
      EXPECT_EQ(offsets.front(), 0);
      EXPECT_EQ(offsets.back(), static_cast<int64_t>(experts.size()));
      for (size_t e = 0; e < kExperts; ++e) {
        ASSERT_LE(offsets[e], offsets[e + 1]);
        for (int64_t row = offsets[e]; row < offsets[e + 1]; ++row) {
          const int64_t slot = slot_at[static_cast<size_t>(row)];
          EXPECT_EQ(experts[static_cast<size_t>(slot)], static_cast<int32_t>(e));
          EXPECT_TRUE(row == offsets[e] || slot > slot_at[static_cast<size_t>(row - 1)]);
        }
      }
    }
  }
}

TEST(SortByExpert, KnownExample) {
  const std::vector<int32_t> experts = {1, 3, 0, 1, 1, 3};
  std::vector<int64_t> offsets(6), position(6);
  sort_by_expert(experts, offsets, position);
  EXPECT_EQ(offsets, (std::vector<int64_t>{0, 1, 4, 4, 6, 6}));
  EXPECT_EQ(position, (std::vector<int64_t>{1, 4, 0, 2, 3, 5}));
}

TEST(GatherByExpert, PutsEachTokenWhereItsSlotsLand) {
  Context ctx(3);
  for (const int64_t cols : {1, 5, 64, 3000}) {
    const int64_t tokens = 20, k = 3;
    const std::vector<int32_t> experts = random_experts(tokens, k, 9, 6);
    std::vector<int64_t> offsets(10), position(experts.size());
    sort_by_expert(experts, offsets, position);
    const PaddedRows x(tokens, cols, 1), out(tokens * k, cols);
    gather_by_expert(ctx, x.view, position, out.view);
    for (int64_t i = 0; i < tokens * k; ++i) {
      expect_same_bits(out.view.slice(position[static_cast<size_t>(i)], 1), x.view.slice(i / k, 1));
    }
    EXPECT_TRUE(out.intact());
  }
}

TEST(ScatterAddWeighted, MatchesTheTwinAtEveryLength) {
  const int64_t tokens = 4, k = 6;
  const std::vector<int32_t> experts = random_experts(tokens, k, 16, 7);
  std::vector<int64_t> offsets(17), position(experts.size());
  sort_by_expert(experts, offsets, position);
  std::vector<float> weights;
  for (int64_t i = 0; i < tokens * k; ++i) weights.push_back(noise(8, i));
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (int64_t n = 0; n <= 70; ++n) {
      SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::to_string(n));
      const PaddedRows y(tokens * k, n, 1), inout(tokens, n, 2);
      const auto expected =
          reference::scatter_add_weighted_ref(y.view, position, weights, inout.view);
      scatter_add_weighted(ctx, y.view, position, weights, inout.view);
      // k products and sums of terms at most 1, then one sum at most k + 1.
      expect_close(inout.view, expected, (2 * k * k + k + 1) * kUnit);
      EXPECT_TRUE(inout.intact());
    }
  }
}

TEST(ScatterAddWeighted, ATokenHasTheSameBitsInAnyBatchAndOnAnyNumberOfThreads) {
  const int64_t tokens = 40, k = 4, cols = 5000;
  const std::vector<int32_t> experts = random_experts(tokens, k, 16, 9);
  std::vector<float> weights;
  for (int64_t i = 0; i < tokens * k; ++i) weights.push_back(noise(8, i));
  for (const Isa isa : instruction_sets()) {
    Context one(1, isa), three(3, isa);
    const PaddedRows y(tokens * k, cols, 1), together(tokens, cols, 2), alone(tokens, cols, 2);
    std::vector<int64_t> offsets(17), position(experts.size());
    sort_by_expert(experts, offsets, position);
    scatter_add_weighted(three, y.view, position, weights, together.view);
    for (int64_t t = 0; t < tokens; ++t) {
      const auto mine = static_cast<size_t>(t * k);
      // The same rows of y, sorted for this token alone.
      const PaddedRows own(k, cols);
      std::vector<int64_t> own_position(static_cast<size_t>(k));
      std::iota(own_position.begin(), own_position.end(), int64_t{0});
      for (int64_t j = 0; j < k; ++j) {
        std::copy_n(y.view.row(position[mine + static_cast<size_t>(j)]), cols, own.view.row(j));
      }
      scatter_add_weighted(one, own.view, own_position,
                           std::span(weights).subspan(mine, static_cast<size_t>(k)),
                           alone.view.slice(t, 1));
    }
    expect_same_bits(together.view, alone.view);
  }
}

// Tokens, their slots' places and weights.
struct Slots {
  Slots(int64_t tokens_, int64_t k_)
      : tokens(tokens_), k(k_), position(static_cast<size_t>(tokens * k)) {
    const std::vector<int32_t> experts = random_experts(tokens, k, 16, 7);
    std::vector<int64_t> offsets(17);
    sort_by_expert(experts, offsets, position);
    for (int64_t i = 0; i < tokens * k; ++i) weights.push_back(noise(8, i));
  }
  int64_t tokens, k;
  std::vector<int64_t> position;
  std::vector<float> weights;
};

TEST(GatherByExpertBackward, SumsTheSlotsOfEachToken) {
  const Slots slots(4, 6);
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (int64_t n = 0; n <= 70; ++n) {
      const PaddedRows dout(24, n, 1), dx(4, n, 2);
      gather_by_expert_backward(ctx, dout.view, slots.position, dx.view);
      expect_close(dx.view, reference::gather_gradient(dense(dout.view), slots.position, 6, n),
                   6 * 6 * kUnit);
      EXPECT_TRUE(dx.intact());
    }
  }
}

TEST(ScatterAddWeightedBackward, MatchesTheTwinAtEveryLength) {
  const Slots slots(4, 6);
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (int64_t n = 0; n <= 70; ++n) {
      SCOPED_TRACE(std::string(isa_name(isa)) + " " + std::to_string(n));
      const PaddedRows dout(4, n, 1), y(24, n, 2), dy(24, n, 3);
      std::vector<float> dweights(24);
      const auto expected = reference::scatter_gradient(
          dense(y.view), slots.position, Doubles(slots.weights.begin(), slots.weights.end()), 6, n,
          dense(dout.view));
      scatter_add_weighted_backward(ctx, dout.view, y.view, slots.position, slots.weights, dy.view,
                                    dweights);
      expect_close(dy.view, expected.dy, kUnit);
      const auto length = static_cast<double>(n);
      // n terms of at most 1
      expect_close(dweights, expected.dweights, (length / 16 + 5) * kUnit * length);
      EXPECT_TRUE(dy.intact());
    }
  }
}

TEST(PermuteBackward, HasTheSameBitsInPlaceAndOnAnyNumberOfThreads) {
  const Slots slots(40, 4);
  const int64_t cols = 5000;
  for (const Isa isa : instruction_sets()) {
    Context one(1, isa);
    const PaddedRows dout(40, cols, 1), y(160, cols, 2), dy(160, cols), dx(40, cols);
    std::vector<float> dweights(160), own(160);
    scatter_add_weighted_backward(one, dout.view, y.view, slots.position, slots.weights, dy.view,
                                  dweights);
    gather_by_expert_backward(one, dy.view, slots.position, dx.view);
    for (const int threads : {2, 3}) {
      Context ctx(threads, isa);
      const PaddedRows inout(160, cols, 2), own_dx(40, cols);
      scatter_add_weighted_backward(ctx, dout.view, inout.view, slots.position, slots.weights,
                                    inout.view, own);
      gather_by_expert_backward(ctx, inout.view, slots.position, own_dx.view);
      expect_same_bits(inout.view, dy.view);
      expect_same_bits(own_dx.view, dx.view);
      expect_same_bits(own, dweights);
    }
  }
}

}  // namespace
}  // namespace fathom
