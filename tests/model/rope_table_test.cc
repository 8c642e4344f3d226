#include "model/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>

namespace fathom {
namespace {

ModelConfig mla_config(double theta, double factor, double original, double beta_fast,
                       double beta_slow, double mscale) {
  ModelConfig c;
  c.kv_lora_rank = 512;
  c.qk_nope_head_dim = 128;
  c.qk_rope_head_dim = 64;
  c.rope.rope_theta = theta;
  if (factor > 1) c.rope.type = RopeScalingType::kYarn;
  c.rope.factor = factor;
  c.rope.original_max_position_embeddings = original;
  c.rope.beta_fast = beta_fast;
  c.rope.beta_slow = beta_slow;
  c.rope.mscale = c.rope.mscale_all_dim = mscale;
  return c;
}

void expect_near_relative(double found, double expected) {
  EXPECT_NEAR(found / expected, 1.0, 1e-8) << found << " " << expected;
}

TEST(RopeTable, YarnFrequenciesOfV3AreThePublishedOnes) {
  const auto f = rope_inv_freq(mla_config(10000, 40, 4096, 32, 1, 1.0));
  ASSERT_EQ(f.size(), 32u);
  const std::pair<size_t, double> kExpected[] = {{0, 1},
                                                 {10, 0.0562341325},
                                                 {11, 0.0390069266},
                                                 {15, 0.00833450895},
                                                 {16, 0.0055},
                                                 {20, 7.90569415e-4},
                                                 {23, 3.33380358e-5},
                                                 {24, 2.5e-5},
                                                 {31, 3.33380358e-6}};
  for (const auto& [i, value] : kExpected) expect_near_relative(f[i], value);
}

TEST(RopeTable, YarnFrequenciesOfKimiK2AreThePublishedOnes) {
  const auto f = rope_inv_freq(mla_config(50000, 32, 4096, 1, 1, 1.0));
  const std::pair<size_t, double> kExpected[] = {{0, 1},
                                                 {10, 0.0340072782},
                                                 {11, 0.0242509670},
                                                 {15, 0.00627130338},
                                                 {16, 0.00447213595},
                                                 {20, 3.61404677e-5},
                                                 {23, 1.31058542e-5},
                                                 {24, 9.34592988e-6},
                                                 {31, 8.76441291e-7}};
  for (const auto& [i, value] : kExpected) expect_near_relative(f[i], value);
}

TEST(RopeTable, Llama3FrequenciesAreThePublishedOnes) {
  ModelConfig c;
  c.head_dim = 128;
  c.rope.rope_theta = 500000;
  c.rope.type = RopeScalingType::kLlama3;
  c.rope.factor = 8;
  c.rope.low_freq_factor = 1;
  c.rope.high_freq_factor = 4;
  c.rope.original_max_position_embeddings = 8192;
  const auto f = rope_inv_freq(c);
  const std::pair<size_t, double> kExpected[] = {{0, 1},
                                                 {1, 0.814617234},
                                                 {28, 3.21144599e-3},
                                                 {29, 2.16657076e-3},
                                                 {30, 1.37189357e-3},
                                                 {31, 8.56751413e-4},
                                                 {32, 5.24846161e-4},
                                                 {33, 3.12693750e-4},
                                                 {34, 1.78507813e-4},
                                                 {35, 9.55621235e-5},
                                                 {40, 3.42810220e-5},
                                                 {63, 3.06892599e-7}};
  for (const auto& [i, value] : kExpected) expect_near_relative(f[i], value);
}

TEST(RopeTable, SoftmaxScaleCarriesYarnsFactorSquared) {
  expect_near_relative(softmax_scale(mla_config(10000, 1, 0, 32, 1, 0)), 1 / std::sqrt(192.0));
  const std::pair<ModelConfig, double> kExpected[] = {
      {mla_config(10000, 40, 4096, 32, 1, 1.0), 0.13523378},
      {mla_config(10000, 40, 4096, 32, 1, 0.707), 0.11472139},
      {mla_config(50000, 32, 4096, 1, 1, 1.0), 0.13086080},
      {mla_config(50000, 64, 4096, 1, 1, 1.0), 0.14467963}};
  for (const auto& [config, value] : kExpected) EXPECT_NEAR(softmax_scale(config), value, 1e-8);
}

TEST(RopeTable, MagnitudeIsTheRatioOfTheTwoMscales) {
  EXPECT_EQ(rope_magnitude(mla_config(10000, 40, 4096, 32, 1, 0.707)), 1.0);
  ModelConfig c = mla_config(10000, 40, 4096, 32, 1, 1.0);
  c.rope.mscale_all_dim = 0;
  EXPECT_NEAR(rope_magnitude(c), 0.1 * std::log(40.0) + 1, 1e-15);
}

TEST(RopeTable, DivisorsOfAGgufDivide) {
  ModelConfig c;
  c.head_dim = 4;
  c.rope.freq_divisors = {1, 8};
  EXPECT_EQ(rope_inv_freq(c), (std::vector<double>{1.0, 0.01 / 8}));
}

}  // namespace
}  // namespace fathom
