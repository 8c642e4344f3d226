// One training step, from micro-batches to new weights; what pre-training, fine-tuning and
// reinforcement learning share. The numbers live in flat arrays of one layout (model/parameters.h):
// f32 master weights, gradients and two moments, and the bf16 copy that the model computes with.
//
// step(): forward and backward of each micro-batch (model/gradient.h), clip and update
// (optimizer.h), move the router bias (balance.h). After the first step of a size it allocates
// nothing. The same batches give the same bits whatever the threads.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/gradient.h"
#include "model/lora.h"
#include "model/parameters.h"
#include "train/optimizer.h"

namespace fathom {

struct TrainerOptions {
  OptimizerOptions optimizer;
  bool f32 = false;                 // compute with f32 weights and activations instead of bf16
  bool recompute = false;           // see Objective
  std::optional<LoraOptions> lora;  // train adapters beside a frozen model
};

// What changes from step to step.
struct StepSettings {
  double lr = 0;
  double mtp_loss_weight = 0;
  BalanceAlpha balance_alpha = {};
  double bias_update_rate = 0;
};

struct StepReport {
  double loss = 0;               // all terms together, as Objective weighs them
  double cross_entropy = 0;      // per target
  double mtp_cross_entropy = 0;  // per MTP target
  double balance = 0;
  int64_t tokens = 0, targets = 0, documents = 0;
  double gradient_norm = 0;
  bool skipped = false;                    // the gradient was not finite; nothing changed
  std::span<const int64_t> expert_tokens;  // [MoE layers, n_routed_experts]; until the next step
};

class Trainer {
 public:
  // A fresh model: initialise() with this seed.
  Trainer(Context& ctx, const ModelConfig& config, const TrainerOptions& options, uint64_t seed);
  // From a loaded model: its numbers as f32 master weights, or, with LoRA, itself as the frozen
  // base;
  // `base` outlives the trainer then.
  Trainer(Context& ctx, const Model& base, const TrainerOptions& options, uint64_t seed);
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  StepReport step(std::span<const TrainBatch> micro_batches, const StepSettings& settings);
  // Mean cross-entropy of the next token over all targets; changes nothing.
  double evaluate(std::span<const TrainBatch> batches);

  // The model as it stands, to generate with or to save. Changes with every step.
  const Model& model();
  const ModelConfig& config() const { return model_->config(); }
  const ParameterTable& table() const { return table_; }
  std::span<float> master() { return master_; }
  Optimizer& optimizer() { return optimizer_; }
  // After master() was written to (a checkpoint was loaded).
  void refresh();

  // Bytes of the arrays for a model, before anything is allocated.
  static int64_t state_bytes(const ParameterTable& table, bool f32) {
    return table.total * (f32 ? 16 : 18);
  }

 private:
  Context& ctx_;
  TrainerOptions options_;
  ParameterTable table_;
  int64_t first_mtp_;
  std::vector<float> master_, gradients_;
  std::vector<bf16> compute_;
  Optimizer optimizer_;
  std::unique_ptr<Model> model_;
  ModelGradients views_;
  StepLosses losses_;
  bool absorbed_fresh_ = false;
};

}  // namespace fathom
