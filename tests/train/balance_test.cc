#include "train/balance.h"

#include <gtest/gtest.h>

namespace fathom {
namespace {

ParameterTable two_layers() {
  ParameterTable table;
  append_parameter(table, "model.layers.0.mlp.gate.weight", {4, 2}, ParameterKind::kRouter);
  append_parameter(table, "model.layers.0.mlp.gate.e_score_correction_bias", {4},
                   ParameterKind::kBuffer);
  append_parameter(table, "model.layers.1.mlp.gate.e_score_correction_bias", {4},
                   ParameterKind::kBuffer);
  return table;
}

TEST(RouterBias, MovesAgainstTheLoadAndOnlyThere) {
  const ParameterTable table = two_layers();
  std::vector<float> master(static_cast<size_t>(table.total), 1.0f);
  const std::vector<int64_t> tokens = {10, 5, 5, 0, 3, 3, 3, 3};  // mean 5, then perfect balance
  update_router_bias(table, tokens, 0.25, master);
  const float* first = master.data() + table.parameters[1].offset;
  EXPECT_EQ(first[0], 0.75f);
  EXPECT_EQ(first[1], 1.0f);
  EXPECT_EQ(first[2], 1.0f);
  EXPECT_EQ(first[3], 1.25f);
  const float* second = master.data() + table.parameters[2].offset;
  for (int e = 0; e < 4; ++e) EXPECT_EQ(second[e], 1.0f);
  for (int i = 0; i < 8; ++i) EXPECT_EQ(master[static_cast<size_t>(i)], 1.0f);  // the router itself
}

TEST(Load, IsTheFullestExpertOverTheMean) {
  const std::vector<int64_t> tokens = {10, 5, 5, 0, 3, 3, 3, 3, 0, 0, 0, 0};
  EXPECT_EQ(load_max_over_mean(tokens, 4), (std::vector<double>{2.0, 1.0, 0.0}));
  EXPECT_TRUE(load_max_over_mean({}, 0).empty());
}

}  // namespace
}  // namespace fathom
