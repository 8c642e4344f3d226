// Which parameter is updated how: by AdamW or Muon, with which rate and decay.
#include "train/optimizer.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "tests/base/test_files.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/test_rows.h"
#include "train/muon.h"

namespace fathom {
namespace {

using reference::expect_close;
using reference::expect_same_bits;
using reference::kUnit;
using reference::noise;

// One of each kind, with gaps between them.
ParameterTable small_table() {
  ParameterTable t;
  append_parameter(t, "model.embed_tokens.weight", {11, 6}, ParameterKind::kEmbedding);
  append_parameter(t, "model.layers.0.input_layernorm.weight", {6}, ParameterKind::kVector);
  append_parameter(t, "model.layers.0.self_attn.q_proj.weight", {10, 6}, ParameterKind::kMatrix);
  append_parameter(t, "model.layers.0.self_attn.q_proj.bias", {10}, ParameterKind::kVector);
  append_parameter(t, "model.layers.0.mlp.gate.weight", {4, 6}, ParameterKind::kRouter);
  append_parameter(t, "model.layers.0.mlp.gate.e_score_correction_bias", {4},
                   ParameterKind::kBuffer);
  append_parameter(t, "model.layers.0.mlp.experts.0.up_proj.weight", {5, 6},
                   ParameterKind::kMatrix);
  append_parameter(t, "model.layers.0.mlp.experts.1.up_proj.weight", {5, 6},
                   ParameterKind::kMatrix);
  append_parameter(t, "lm_head.weight", {11, 6}, ParameterKind::kEmbedding);
  return t;
}

struct Arrays {
  std::vector<float> master, gradients;
  explicit Arrays(const ParameterTable& table)
      : master(static_cast<size_t>(table.total)), gradients(master.size()) {
    for (const Parameter& p : table.parameters) {
      for (int64_t i = p.offset; i < p.offset + p.count; ++i) {
        master[static_cast<size_t>(i)] = noise(1, i);
        if (p.kind != ParameterKind::kBuffer) gradients[static_cast<size_t>(i)] = noise(2, i);
      }
    }
  }
};

std::span<float> of(std::vector<float>& array, const Parameter& p) {
  return std::span(array).subspan(static_cast<size_t>(p.offset), static_cast<size_t>(p.count));
}

// The first step in double: m = (1 - beta1) g and v = (1 - beta2) g^2, corrected to g and g^2.
void expect_adamw(const Parameter& p, Arrays& before, std::vector<float>& after, double lr,
                  double decay) {
  std::vector<double> expected, bounds;
  const std::span<float> w = of(before.master, p), g = of(before.gradients, p);
  for (size_t i = 0; i < w.size(); ++i) {
    const double update = lr * g[i] / (std::abs(double{g[i]}) + 1e-8);
    expected.push_back(w[i] * (1 - lr * decay) - update);
    // The f32 rates and corrections have relative errors of a few u / (1 - beta) beside the step's
    // own.
    bounds.push_back(8 * kUnit * std::abs(w[i]) + 100 * kUnit * std::abs(update));
  }
  SCOPED_TRACE(p.name);
  expect_close(std::span<const float>(of(after, p)), expected, bounds);
}

TEST(Optimizer, GroupsScaleTheRateAndReplaceTheDecay) {
  const ParameterTable table = small_table();
  OptimizerOptions options;
  options.clip = 0;
  options.weight_decay = 0.2;
  options.groups = {{.match = {"embed_tokens", "lm_head"}, .lr_scale = 0.5, .weight_decay = 0.0},
                    {.match = {"norm"}, .weight_decay = 0.3},
                    {.match = {"experts.1"}, .lr_scale = 4},
                    {.match = {"experts"}, .lr_scale = 0}};
  Optimizer optimizer(table, options, table.total);
  Arrays arrays(table), before = arrays;
  Context ctx(1);
  optimizer.step(ctx, 0.1, table.total, arrays.master, arrays.gradients, {});
  const struct {
    double lr, decay;
  } kExpected[] = {{0.05, 0}, {0.1, 0.3}, {0.1, 0.2}, {0.1, 0}, {0.1, 0.2},
                   {0, 0},    {0, 0.2},   {0.4, 0.2}, {0.05, 0}};
  for (size_t i = 0; i < table.parameters.size(); ++i) {
    expect_adamw(table.parameters[i], before, arrays.master, kExpected[i].lr, kExpected[i].decay);
  }
}

TEST(Optimizer, MuonUpdatesTheLayersMatricesEachOnItsOwnAndAdamWTheRest) {
  const ParameterTable table = small_table();
  OptimizerOptions options;
  options.kind = OptimizerKind::kMuon;
  options.clip = 0;
  options.groups = {{.match = {"experts.1"}, .lr_scale = 0.5, .weight_decay = 0.4}};
  Optimizer optimizer(table, options, table.total);
  Arrays arrays(table), before = arrays;
  Context ctx(1);
  optimizer.step(ctx, 0.1, table.total, arrays.master, arrays.gradients, {});
  for (const Parameter& p : table.parameters) {
    SCOPED_TRACE(p.name);
    if (p.kind != ParameterKind::kMatrix) {
      const bool buffer = p.kind == ParameterKind::kBuffer,
                 decays = p.kind != ParameterKind::kVector && !buffer;
      expect_adamw(p, before, arrays.master, buffer ? 0 : 0.1, decays ? 0.1 : 0);
      continue;
    }
    const bool grouped = p.name.find("experts.1") != std::string::npos;
    std::vector<float> momentum(static_cast<size_t>(p.count));
    const std::span<float> alone = of(before.master, p);
    muon(ctx, {.lr = grouped ? 0.05f : 0.1f, .weight_decay = grouped ? 0.4f : 0.1f},
         {alone.data(), p.shape[0], p.shape[1], p.shape[1]}, of(before.gradients, p), momentum, {});
    expect_same_bits(of(arrays.master, p), alone);
    for (int64_t i = p.offset; i < p.offset + p.count; ++i)
      EXPECT_EQ(optimizer.second_moment()[static_cast<size_t>(i)], 0.0f);
    expect_same_bits(
        optimizer.first_moment().subspan(static_cast<size_t>(p.offset), momentum.size()), momentum);
  }
  for (const float g : arrays.gradients) EXPECT_EQ(g, 0.0f);
}

// Clipped, a gradient that is twice as large is the same step.
TEST(Optimizer, ClippingComesBeforeMuon) {
  const ParameterTable table = small_table();
  OptimizerOptions options;
  options.kind = OptimizerKind::kMuon;
  Context ctx(1);
  std::vector<std::vector<float>> momenta;
  for (const float scale : {100.0f, 200.0f}) {
    Optimizer optimizer(table, options, table.total);
    Arrays arrays(table);
    for (float& g : arrays.gradients) g *= scale;
    optimizer.step(ctx, 0.1, table.total, arrays.master, arrays.gradients, {});
    momenta.emplace_back(optimizer.first_moment().begin(), optimizer.first_moment().end());
  }
  expect_close(std::span<const float>(momenta[0]), std::span<const float>(momenta[1]), 1e-6);
}

TEST(Optimizer, WhatIsNotTrainedAndWhatIsNotFiniteStays) {
  const ParameterTable table = small_table();
  OptimizerOptions options;
  options.kind = OptimizerKind::kMuon;
  Context ctx(1);
  const int64_t border = table.parameters[6].offset;
  Optimizer optimizer(table, options, border);
  Arrays arrays(table), before = arrays;
  optimizer.step(ctx, 0.1, border, arrays.master, arrays.gradients, {});
  const auto rest = static_cast<size_t>(border);
  expect_same_bits(std::span(arrays.master).subspan(rest), std::span(before.master).subspan(rest));
  EXPECT_NE(arrays.master[0], before.master[0]);

  before = arrays;
  arrays.gradients[static_cast<size_t>(table.parameters[2].offset)] =
      std::numeric_limits<float>::infinity();
  EXPECT_TRUE(optimizer.step(ctx, 0.1, table.total, arrays.master, arrays.gradients, {}).skipped);
  expect_same_bits(arrays.master, before.master);
  EXPECT_EQ(optimizer.steps(), 1);
}

TEST(Optimizer, AGroupThatMatchesNothingIsNamed) {
  const ParameterTable table = small_table();
  OptimizerOptions options;
  options.groups = {{.match = {"norm", "up_prj"}}};
  EXPECT_EQ(error_of([&] { Optimizer(table, options, table.total); }, ExitCode::kBadInput),
            "optimizer.groups: match 'up_prj': no parameter of this model that an earlier group "
            "leaves, expected a part of a name such as 'mlp.experts'");
  options.groups = {{.match = {"all"}}, {.match = {"norm"}}};
  EXPECT_EQ(error_of([&] { Optimizer(table, options, table.total); }, ExitCode::kBadInput),
            "optimizer.groups: match 'norm': no parameter of this model that an earlier group "
            "leaves, expected a part of a name such as 'mlp.experts'");
  options.groups = {{.match = {"all"}}};
  Optimizer(table, options, table.total);
}

}  // namespace
}  // namespace fathom
