#include "train/trainer.h"

#include <algorithm>

#include "kernels/elementwise.h"
#include "train/balance.h"

namespace fathom {

Trainer::Trainer(Context& ctx, const ModelConfig& config, const TrainerOptions& options,
                 uint64_t seed)
    : ctx_(ctx),
      options_(options),
      table_(parameter_table(config)),
      first_mtp_(first_mtp_offset(config, table_)),
      master_(static_cast<size_t>(table_.total)),
      gradients_(static_cast<size_t>(table_.total)),
      compute_(options.f32 ? 0 : master_.size()),
      optimizer_(table_, options.optimizer, first_mtp_),
      model_(std::make_unique<Model>(config, map_weights(config, table_, master_, compute_))),
      views_(map_gradients(config, table_, gradients_)) {
  initialise(table_, config.initializer_range, seed, master_);
  refresh();
}

Trainer::Trainer(Context& ctx, const Model& base, const TrainerOptions& options, uint64_t seed)
    : ctx_(ctx),
      options_(options),
      table_(options.lora ? lora_table(base.config(), *options.lora)
                          : parameter_table(base.config())),
      first_mtp_(first_mtp_offset(base.config(), table_)),
      master_(static_cast<size_t>(table_.total)),
      gradients_(static_cast<size_t>(table_.total)),
      compute_(options.f32 ? 0 : master_.size()),
      optimizer_(table_, options.optimizer, first_mtp_) {
  const ModelConfig& config = base.config();
  if (options.lora) {
    expect_declared_mtp(config, base.weights());
    ModelWeights weights;
    static_cast<ModelTensors<AsWeights>&>(weights) = base.weights();
    drop_absorbed(weights);
    attach_lora(config, *options.lora, table_, master_, compute_, weights);
    views_ = map_lora_gradients(config, *options.lora, table_, gradients_);
    initialise_lora(table_, seed, master_);
    model_ = std::make_unique<Model>(config, std::move(weights));
  } else {
    copy_weights(config, table_, base.weights(), master_);
    views_ = map_gradients(config, table_, gradients_);
    model_ = std::make_unique<Model>(config, map_weights(config, table_, master_, compute_));
  }
  refresh();
}

void Trainer::refresh() {
  if (!compute_.empty()) {
    to_bf16(ctx_.isa(), master_.data(), static_cast<int64_t>(master_.size()), compute_.data());
  }
  losses_.expert_tokens.assign(static_cast<size_t>(moe_layers(*model_) * config().n_routed_experts),
                               0);
  absorbed_fresh_ = false;
}

const Model& Trainer::model() {
  if (!absorbed_fresh_) model_->refresh_absorbed();
  absorbed_fresh_ = true;
  return *model_;
}

StepReport Trainer::step(std::span<const TrainBatch> micro_batches, const StepSettings& settings) {
  Objective objective{.mtp_loss_weight = settings.mtp_loss_weight,
                      .balance_alpha = settings.balance_alpha,
                      .recompute = options_.recompute};
  StepReport report;
  for (const TrainBatch& batch : micro_batches) {
    report.tokens += static_cast<int64_t>(batch.tokens.size());
    objective.documents += static_cast<int64_t>(batch.document_lengths.size());
    objective.targets += std::count_if(batch.targets.begin(), batch.targets.end(),
                                       [](int32_t target) { return target >= 0; });
    objective.mtp_targets += mtp_target_count(batch);
  }
  losses_.cross_entropy = losses_.mtp_cross_entropy = losses_.balance = 0;
  losses_.targets = losses_.mtp_targets = 0;
  std::fill(losses_.expert_tokens.begin(), losses_.expert_tokens.end(), 0);
  for (const TrainBatch& batch : micro_batches) {
    add_gradients(ctx_, *model_, batch, objective, &views_, losses_);
  }

  const int64_t trained = settings.mtp_loss_weight == 0 ? first_mtp_ : table_.total;
  const Optimizer::Result update =
      optimizer_.step(ctx_, settings.lr, trained, master_, gradients_, compute_);
  if (!update.skipped && settings.bias_update_rate != 0) {
    update_router_bias(table_, losses_.expert_tokens, settings.bias_update_rate, master_);
  }
  absorbed_fresh_ = false;

  report.loss = losses_.total(objective);
  report.cross_entropy =
      losses_.cross_entropy / static_cast<double>(std::max<int64_t>(1, losses_.targets));
  report.mtp_cross_entropy =
      losses_.mtp_cross_entropy / static_cast<double>(std::max<int64_t>(1, losses_.mtp_targets));
  report.balance = losses_.balance;
  report.targets = objective.targets;
  report.documents = objective.documents;
  report.gradient_norm = update.gradient_norm;
  report.skipped = update.skipped;
  report.expert_tokens = losses_.expert_tokens;
  return report;
}

double Trainer::evaluate(std::span<const TrainBatch> batches) {
  StepLosses losses;
  losses.expert_tokens.resize(losses_.expert_tokens.size());
  const Objective objective{.documents = 1};
  for (const TrainBatch& batch : batches) {
    add_gradients(ctx_, *model_, batch, objective, nullptr, losses);
  }
  return losses.cross_entropy / static_cast<double>(std::max<int64_t>(1, losses.targets));
}

}  // namespace fathom
