// LoRA beside frozen weights: starts as the base, learns nothing else, and equals its merged
// weight.
#include "model/lora.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "engine/feeder.h"
#include "model/gradient.h"
#include "tests/model/golden.h"
#include "tests/reference/expect_close.h"

namespace fathom {
namespace {

using reference::expect_close;
using reference::expect_same_bits;

// The v3 model with adapters whose B is not zero.
struct Adapted {
  explicit Adapted(std::vector<std::string> targets, bool trained = true)
      : base(Model::load(golden_path("models/v3"))),
        config(base.config()),
        options{4, 8, std::move(targets)},
        full(parameter_table(config)),
        table(lora_table(config, options)),
        frozen(static_cast<size_t>(full.total)),
        master(static_cast<size_t>(table.total)),
        gradients(master.size()),
        model(make()) {
    initialise_lora(table, 5, master);
    if (trained) {
      for (const Parameter& p : table.parameters) {
        if (!p.name.ends_with("lora_B.weight")) continue;
        for (int64_t i = 0; i < p.count; ++i) {
          master[static_cast<size_t>(p.offset + i)] = static_cast<float>(
              0.05 * random_normal({.seed = 9}, static_cast<uint64_t>(p.offset + i)));
        }
      }
    }
    model.refresh_absorbed();
  }

  Model make() {
    copy_weights(config, full, base.weights(), frozen);
    ModelWeights weights = map_weights(config, full, frozen, {});
    attach_lora(config, options, table, master, {}, weights);
    return Model(config, std::move(weights));
  }

  double loss(Context& ctx, const TrainBatch& batch, const Objective& objective,
              const ModelGradients* g) {
    StepLosses losses;
    losses.expert_tokens.assign(static_cast<size_t>(moe_layers(model) * config.n_routed_experts),
                                0);
    add_gradients(ctx, model, batch, objective, g, losses);
    return losses.total(objective);
  }

  Model base;
  ModelConfig config;
  LoraOptions options;
  ParameterTable full, table;
  std::vector<float> frozen, master, gradients;
  Model model;
};

std::vector<float> logits_of(const Model& model, MlaForm form) {
  Context ctx(2);
  return feed_logits(model, ctx, golden_ids("v3"), {96}, form);
}

// The base weight beside an adapter's A.
const Parameter& full_parameter(const Adapted& adapted, const Parameter& a) {
  const std::string prefix = "base_model.model.";
  const std::string name =
      a.name.substr(prefix.size(), a.name.find(".lora_A") - prefix.size()) + ".weight";
  for (const Parameter& p : adapted.full.parameters) {
    if (p.name == name) return p;
  }
  throw std::runtime_error(name);
}

// Both sides are f32 passes over one model, each within 1e-4 of the exact gradient
// (gradient_test.cc).
void expect_relative(const float* actual, const std::vector<double>& expected,
                     const std::string& name) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(actual[i] - expected[i], 2);
    norm += std::pow(expected[i], 2);
  }
  EXPECT_TRUE(error <= 4e-8 * norm) << name << ": relative error " << std::sqrt(error / norm);
}

TEST(Lora, StartsAsTheBaseToTheBit) {
  const Adapted adapted({"all"}, false);
  for (const MlaForm form : {MlaForm::kExpanded, MlaForm::kAbsorbed}) {
    expect_same_bits(logits_of(adapted.model, form), logits_of(adapted.base, form));
  }
}

TEST(Lora, TheTwoFormsOfAttentionAgreeAlsoWhereKvBIsAdapted) {
  const Adapted adapted({"self_attn"});
  const std::vector<float> expanded = logits_of(adapted.model, MlaForm::kExpanded);
  const std::vector<float> absorbed = logits_of(adapted.model, MlaForm::kAbsorbed);
  double largest = 0, change = 0;
  const std::vector<float> base = logits_of(adapted.base, MlaForm::kExpanded);
  for (size_t i = 0; i < expanded.size(); ++i) {
    largest = std::max<double>(largest, std::abs(expanded[i]));
    change = std::max<double>(change, std::abs(expanded[i] - base[i]));
  }
  EXPECT_GT(change, 0.01 * largest);  // the adapters do something
  expect_close(absorbed, expanded, 2e-5 * largest);
}

// W + s B A is the weight, so by the chain rule dA = s Bᵀ dW and dB = s dW Aᵀ, with dW the gradient
// of the merged weight, which tests/model/gradient_test.cc holds against an independent
// implementation.
TEST(Lora, GradientIsTheMergedWeightsThroughBAndA) {
  Adapted adapted({"all"});
  Context ctx(2);
  const std::vector<int32_t> ids = golden_ids("v3");
  std::vector<int32_t> targets(ids.begin() + 1, ids.end());
  targets.push_back(-1);
  const int64_t lengths[] = {96};
  const TrainBatch batch{ids, lengths, targets};
  const Objective objective{.targets = 95,
                            .mtp_targets = 94,
                            .documents = 1,
                            .mtp_loss_weight = 0.3,
                            .balance_alpha = {.sequence = 0.01}};
  const ModelGradients views =
      map_lora_gradients(adapted.config, adapted.options, adapted.table, adapted.gradients);
  const double loss = adapted.loss(ctx, batch, objective, &views);

  const float scale = lora_scale(adapted.options);
  std::vector<float> merged(adapted.frozen.size()), gradients(merged.size());
  const MergedWeights read(adapted.config, adapted.full, adapted.base.weights(), adapted.options,
                           adapted.table, adapted.master);
  for (const Parameter& p : adapted.full.parameters)
    read.read(
        p, 0,
        std::span(merged).subspan(static_cast<size_t>(p.offset), static_cast<size_t>(p.count)));
  Adapted full({"all"});
  const Model model(full.config, map_weights(full.config, full.full, merged, {}));
  const ModelGradients full_views = map_gradients(full.config, full.full, gradients);
  StepLosses losses;
  losses.expert_tokens.assign(static_cast<size_t>(moe_layers(model) * full.config.n_routed_experts),
                              0);
  add_gradients(ctx, model, batch, objective, &full_views, losses);
  EXPECT_NEAR(losses.total(objective), loss, 1e-5 * loss);

  for (size_t i = 0; i < adapted.table.parameters.size(); i += 2) {
    const Parameter& pa = adapted.table.parameters[i];
    const Parameter& pb = adapted.table.parameters[i + 1];
    const Parameter& pw = full_parameter(adapted, pa);
    const int64_t rank = pa.shape[0], in = pa.shape[1], out = pb.shape[0];
    const float* const dw = gradients.data() + pw.offset;
    const float* const a = adapted.master.data() + pa.offset;
    const float* const b = adapted.master.data() + pb.offset;
    std::vector<double> da(static_cast<size_t>(rank * in)), db(static_cast<size_t>(out * rank));
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t r = 0; r < rank; ++r) {
        for (int64_t k = 0; k < in; ++k) {
          da[static_cast<size_t>(r * in + k)] += double{scale} * b[o * rank + r] * dw[o * in + k];
          db[static_cast<size_t>(o * rank + r)] += double{scale} * a[r * in + k] * dw[o * in + k];
        }
      }
    }
    expect_relative(adapted.gradients.data() + pa.offset, da, pa.name);
    expect_relative(adapted.gradients.data() + pb.offset, db, pb.name);
  }
}

TEST(Lora, MergedWeightsAreTheSameInAnyPieces) {
  for (const char* name : {"models/v3", "models/v3-fp8"}) {
    const Model base = Model::load(golden_path(name));
    const ModelConfig& config = base.config();
    const LoraOptions options{4, 8, {"o_proj", "kv_b_proj", "mlp.experts"}};
    const ParameterTable full = parameter_table(config), table = lora_table(config, options);
    std::vector<float> master(static_cast<size_t>(table.total)),
        plain(static_cast<size_t>(full.total));
    for (size_t i = 0; i < master.size(); ++i)
      master[i] = static_cast<float>(0.05 * random_normal({.seed = 9}, i));
    copy_weights(config, full, base.weights(), plain);
    const MergedWeights merged(config, full, base.weights(), options, table, master);
    std::vector<float> whole, piece;
    int changed = 0;
    for (const Parameter& p : full.parameters) {
      whole.resize(static_cast<size_t>(p.count));
      merged.read(p, 0, whole);
      bool same = true;
      for (int64_t i = 0; i < p.count; ++i)
        same &= whole[static_cast<size_t>(i)] == plain[static_cast<size_t>(p.offset + i)];
      const bool adapted = p.name.find("o_proj") != p.name.npos ||
                           p.name.find("kv_b_proj") != p.name.npos ||
                           p.name.find("mlp.experts") != p.name.npos;
      EXPECT_EQ(same, !adapted) << p.name;
      changed += adapted ? 1 : 0;
      const int64_t step = std::max<int64_t>(1, p.count / 5 - 3);
      for (int64_t begin = 0; begin < p.count; begin += step) {
        piece.resize(static_cast<size_t>(std::min(step, p.count - begin)));
        merged.read(p, begin, piece);
        ASSERT_EQ(std::memcmp(piece.data(), whole.data() + begin, piece.size() * sizeof(float)), 0)
            << p.name << " from " << begin;
      }
    }
    EXPECT_GT(changed, 0);
  }
}

TEST(Lora, ATargetThatMatchesNothingIsNamed) {
  const ModelConfig config = Model::load(golden_path("models/v3")).config();
  try {
    lora_table(config, {4, 8, {"o_proj", "wq"}});
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("lora: target 'wq'"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace fathom
