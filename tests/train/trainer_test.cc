// Training steps: ten of them against an independent implementation, and the bits that threads must
// not change.
#include "train/trainer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/base/count_allocations.h"
#include "tests/model/golden.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_same_bits;

// The recorded run of tests/golden/models/NAME: three documents, the same batch ten times.
struct RecordedRun : RecordedBatch {
  explicit RecordedRun(const std::string& name) : RecordedBatch(name) {
    const auto& adamw = settings["adamw"];
    optimizer = {.beta1 = adamw["beta1"],
                 .beta2 = adamw["beta2"],
                 .eps = adamw["eps"],
                 .weight_decay = adamw["weight_decay"],
                 .clip = adamw["clip"]};
    step = {.lr = adamw["lr"],
            .mtp_loss_weight = settings["mtp_weight"],
            .balance_alpha = {.sequence = settings["balance_alpha"]},
            .bias_update_rate = adamw["bias_rate"]};
    losses = adamw["losses"].get<std::vector<double>>();
    norms = adamw["grad_norms"].get<std::vector<double>>();
  }

  OptimizerOptions optimizer;
  StepSettings step;
  std::vector<double> losses, norms;
};

TrainerOptions options_of(const RecordedRun& run, OptimizerKind kind = OptimizerKind::kAdamW) {
  TrainerOptions options;
  options.optimizer = run.optimizer;
  options.optimizer.kind = kind;
  return options;
}

class RecordedTraining : public testing::TestWithParam<const char*> {};

// Ten steps are no smooth function of the arithmetic: where two experts' scores nearly tie, the
// last bits decide, and a token that goes elsewhere moves weights by whole steps (it happens to v3
// on AVX-512, not on the other two). So every instruction set is held to 1 % of the loss and 3 % of
// the rest, and the nearest one, which flipped nothing, to 1e-3.
TEST_P(RecordedTraining, TenStepsAreTheIndependentImplementations) {
  const RecordedRun run(GetParam());
  const Model base = Model::load(run.folder);
  const Safetensors expected =
      Safetensors::open(run.folder + "/after10_" + run.kind + ".safetensors");
  TrainerOptions options = options_of(run);
  options.f32 = true;
  double nearest = 1;
  for (const Isa isa : reference::instruction_sets()) {
    Context ctx(2, isa, Precision::kF32);
    Trainer trainer(ctx, base, options, 0);
    const std::vector<float> before(trainer.master().begin(), trainer.master().end());
    const TrainBatch batch = run.batch();
    for (size_t step = 0; step < run.losses.size(); ++step) {
      const StepReport report = trainer.step({&batch, 1}, run.step);
      EXPECT_NEAR(report.loss, run.losses[step], 1e-2 * run.losses[step]) << step;
      EXPECT_NEAR(report.gradient_norm, run.norms[step], 3e-2 * run.norms[step]) << step;
    }
    double error = 0, change = 0;
    for (const Parameter& p : trainer.table().parameters) {
      const TensorInfo* tensor = expected.find(p.name);
      ASSERT_NE(tensor, nullptr) << p.name;
      for (int64_t i = 0; i < p.count; ++i) {
        float value = 0;
        __builtin_memcpy(&value, tensor->data + i * 4, 4);
        const auto at = static_cast<size_t>(p.offset + i);
        error += std::pow(trainer.master()[at] - value, 2);
        change += std::pow(value - before[at], 2);
      }
    }
    const double relative = std::sqrt(error / change);
    EXPECT_TRUE(relative < 0.03) << relative;
    nearest = std::min(nearest, relative);
  }
  EXPECT_LT(nearest, 1e-3);
}

INSTANTIATE_TEST_SUITE_P(All, RecordedTraining,
                         testing::Values("v3", "moonlight", "qwen2", "llama3"));

TEST(Trainer, ThreadsDoNotChangeOneBitOfTheWeights) {
  const RecordedRun run("v3");
  const Model base = Model::load(run.folder);
  for (const OptimizerKind kind : {OptimizerKind::kAdamW, OptimizerKind::kMuon}) {
    std::vector<std::vector<float>> results;
    for (const int threads : {1, 2, 3}) {
      Context ctx(threads);
      Trainer trainer(ctx, base, options_of(run, kind), 0);
      const TrainBatch batch = run.batch();
      for (int step = 0; step < 3; ++step) trainer.step({&batch, 1}, run.step);
      results.emplace_back(trainer.master().begin(), trainer.master().end());
    }
    expect_same_bits(results[0], results[1]);
    expect_same_bits(results[0], results[2]);
  }
}

TEST(Trainer, MuonLowersTheLoss) {
  for (const char* name : {"v3", "qwen2"}) {
    const RecordedRun run(name);
    const Model base = Model::load(run.folder);
    Context ctx(2);
    Trainer trainer(ctx, base, options_of(run, OptimizerKind::kMuon), 0);
    const TrainBatch batch = run.batch();
    const double first = trainer.step({&batch, 1}, run.step).loss;
    double last = first;
    for (int step = 0; step < 20; ++step) last = trainer.step({&batch, 1}, run.step).loss;
    EXPECT_LT(last, 0.8 * first) << name;
  }
}

TEST(Trainer, AStepAllocatesNothing) {
  for (const char* name : {"v3", "qwen2"}) {
    for (const OptimizerKind kind : {OptimizerKind::kAdamW, OptimizerKind::kMuon}) {
      const RecordedRun run(name);
      const Model base = Model::load(run.folder);
      // a second thread may meet its first item, and allocate its scratch, at any later step
      Context ctx(1);
      Trainer trainer(ctx, base, options_of(run, kind), 0);
      const TrainBatch batch = run.batch();
      for (int step = 0; step < 2; ++step) trainer.step({&batch, 1}, run.step);
      const int64_t before = allocations;
      for (int step = 0; step < 3; ++step) trainer.step({&batch, 1}, run.step);
      EXPECT_EQ(allocations, before) << name;
    }
  }
}

TEST(Trainer, ANotFiniteGradientChangesNothing) {
  const RecordedRun run("llama3");
  const Model base = Model::load(run.folder);
  Context ctx(1);
  Trainer trainer(ctx, base, options_of(run), 0);
  trainer.master()[7] = std::nanf("");
  trainer.refresh();
  const std::vector<float> before(trainer.master().begin(), trainer.master().end());
  const TrainBatch batch = run.batch();
  EXPECT_TRUE(trainer.step({&batch, 1}, run.step).skipped);
  expect_same_bits(before, std::vector<float>(trainer.master().begin(), trainer.master().end()));
  EXPECT_EQ(trainer.optimizer().steps(), 0);
}

}  // namespace
}  // namespace fathom
