// The plan of a step's memory against what steps of every architecture really take.
#include "train/step_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "tests/base/test_name.h"
#include "tests/model/golden.h"
#include "train/muon.h"
#include "train/trainer.h"

namespace fathom {
namespace {

struct Setting {
  const char* name;
  std::vector<int64_t> lengths;  // of the documents
  TrainerOptions options;
  int threads;
};

std::vector<Setting> settings() {
  const std::vector<int64_t> many(24, 40), one = {700};
  TrainerOptions plain, recompute, f32, muon, lora;
  recompute.recompute = f32.f32 = true;
  muon.optimizer.kind = OptimizerKind::kMuon;
  lora.lora = {.rank = 24, .alpha = 8, .targets = {"all"}};
  return {{"many documents", many, plain, 2},
          {"one document", one, plain, 2},
          {"recompute", many, recompute, 1},
          {"recompute, one document", one, recompute, 3},
          {"f32", many, f32, 1},
          {"Muon", many, muon, 2},
          {"LoRA", one, lora, 2}};
}

Precision precision(const Setting& s) {
  return s.options.f32 ? Precision::kF32 : Precision::kNative;
}

StepMemory planned(const ModelConfig& config, const Trainer& trainer, const Setting& s,
                   int64_t widened) {
  const TrainerOptions& o = s.options;
  int64_t tokens = 0;
  for (const int64_t length : s.lengths) tokens += length;
  return step_memory(config, trainer.table(),
                     {.tokens = tokens,
                      .sequence_length = *std::max_element(s.lengths.begin(), s.lengths.end()),
                      .recompute = o.recompute,
                      .widened_bytes = widened,
                      .lora_rank = o.lora ? o.lora->rank : 0,
                      .optimizer = o.optimizer.kind});
}

void take_step(Trainer& trainer, const Setting& s) {
  std::vector<int32_t> tokens;
  for (const int64_t length : s.lengths) {
    for (int64_t i = 0; i < length; ++i)
      tokens.push_back(static_cast<int32_t>((i * i + length) % trainer.config().vocab_size));
  }
  const TrainBatch batch{tokens, s.lengths, tokens};
  trainer.step({&batch, 1}, {.lr = 1e-4,
                             .mtp_loss_weight = 0.3,
                             .balance_alpha = {.sequence = 0.1},
                             .bias_update_rate = 0.001});
}

// Reserved, the plan suffices: the arena does not grow. Half of it reserved, the arena does.
// make(ctx) is a trainer.
template <class Make>
void expect_plan(const Setting& s, Make make, int64_t widened = 0) {
  for (const bool whole : {true, false}) {
    Context ctx(s.threads, detect_isa(), precision(s));
    const std::unique_ptr<Trainer> trainer = make(ctx);
    const StepMemory plan = planned(trainer->config(), *trainer, s, widened);
    const size_t reserved = whole ? plan.scratch : plan.scratch / 2;
    ctx.scratch().reserve(reserved);
    take_step(*trainer, s);
    EXPECT_EQ(ctx.scratch().reserved_bytes() == reserved, whole)
        << ctx.scratch().reserved_bytes() << " of " << plan.scratch;
    for (int worker = 0; worker < s.threads; ++worker) {
      const size_t held = ctx.worker_scratch(worker).reserved_bytes() +
                          ctx.serial(worker).scratch().reserved_bytes() +
                          ctx.serial(worker).worker_scratch(0).reserved_bytes();
      EXPECT_LE(held, plan.per_thread);
    }
  }
}

void expect_plan(const Setting& s, const Model& base) {
  SCOPED_TRACE(s.name);
  expect_plan(
      s, [&](Context& ctx) { return std::make_unique<Trainer>(ctx, base, s.options, uint64_t{1}); },
      s.options.lora ? widened_bytes(base, precision(s)) : 0);
}

class StepMemoryOf : public testing::TestWithParam<std::string> {};

TEST_P(StepMemoryOf, IsEnoughAndNotTwiceWhatAStepTakes) {
  const Model base = Model::load(golden_path("models/" + GetParam()));
  for (const Setting& s : settings()) expect_plan(s, base);
}

// Few tokens, so that the copies of the weights are most of it.
TEST(StepMemory, CountsFrozenWeightsThatAreWidened) {
  Setting s{"LoRA", {9, 7}, {}, 2};
  s.options.lora = {.rank = 2, .alpha = 8, .targets = {"all"}};
  for (const char* name : {"models/v3-fp8", "gguf/qwen2-256-Q8_0.gguf",
                           "gguf/v2-lite-256-Q4_K_M.gguf", "gguf/v3-BF16.gguf"}) {
    SCOPED_TRACE(name);
    const Model base = Model::load(golden_path(name));
    const bool bf16 = std::string(name).ends_with("BF16.gguf");
    EXPECT_EQ(widened_bytes(base, Precision::kNative), bf16 ? 0 : 4);
    EXPECT_EQ(widened_bytes(base, Precision::kF32), 4);
    for (const bool f32 : {false, true}) {
      s.options.f32 = f32;
      expect_plan(s, base);
    }
  }
}

// Logits are most of it.
TEST(StepMemory, CountsALargeVocabulary) {
  ModelConfig config = Model::load(golden_path("models/v3")).config();
  config.vocab_size = 40000;
  const Setting s{"vocabulary", {30, 50}, {}, 1};
  expect_plan(s, [&](Context& ctx) {
    return std::make_unique<Trainer>(ctx, config, s.options, uint64_t{1});
  });
}

// Matrices that Muon updates one after the other, on all threads; those above are small ones.
TEST(StepMemory, CountsMuonsLargeMatrices) {
  const ModelConfig config = Model::load(golden_path("models/llama3")).config();
  for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{900, 700}, {700, 900}}) {
    ParameterTable table;
    append_parameter(table, "w", {rows, cols}, ParameterKind::kMatrix);
    const StepMemory plan = step_memory(
        config, table, {.tokens = 1, .sequence_length = 1, .optimizer = OptimizerKind::kMuon});
    std::vector<float> w(static_cast<size_t>(rows * cols), 0.5f), gradient(w), momentum(w);
    for (const double share : {1.0, 0.6}) {
      Context ctx(2);
      const auto reserved = static_cast<size_t>(share * static_cast<double>(plan.scratch));
      ctx.scratch().reserve(reserved);
      muon(ctx, {.lr = 0.1f}, {w.data(), rows, cols, cols}, gradient, momentum, {});
      EXPECT_EQ(ctx.scratch().reserved_bytes() == reserved, share == 1) << rows;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, StepMemoryOf,
                         testing::Values("v3", "moonlight", "v2", "v2-lite", "qwen2", "llama3"),
                         kNamedByParameter);

}  // namespace
}  // namespace fathom
