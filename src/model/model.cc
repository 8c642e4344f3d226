#include "model/model.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/file.h"
#include "kernels/gemm.h"
#include "kernels/quantize.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "model/block.h"
#include "model/expert_cache.h"
#include "model/rope_table.h"
#include "model/weight_tiles.h"

namespace fathom {

namespace {

// Some rows of a batch, closed up; those that follow each other in their sequence stay together.
struct Part {
  Rows x, cos_sin;
  std::span<const SequenceRows> sequences;
  std::span<const MlaForm> forms;
};

// Those in `chosen` (ascending), or else all others.
Part close_up(ArenaScope& scope, const InferBatch& batch, std::span<const int32_t> chosen,
              bool others, ConstRows x, ConstRows cos_sin) {
  const int64_t count = others ? x.rows - std::ssize(chosen) : static_cast<int64_t>(chosen.size());
  const Part part{scope.rows(count, x.cols), scope.rows(count, cos_sin.cols), {}, {}};
  auto* const sequences = scope.array<SequenceRows>(count);
  auto* const forms = scope.array<MlaForm>(count);
  size_t runs = 0, next = 0;
  int64_t row = 0, to = 0;
  for (size_t s = 0; s < batch.sequences.size(); ++s) {
    const SequenceRows& sequence = batch.sequences[s];
    bool goes_on = false;
    for (int64_t i = 0; i < sequence.rows; ++i, ++row) {
      const bool is_chosen = next < chosen.size() && chosen[next] == row;
      next += is_chosen;
      if (is_chosen == others) {
        goes_on = false;
        continue;
      }
      std::memcpy(part.x.row(to), x.row(row), static_cast<size_t>(x.cols) * sizeof(float));
      std::memcpy(part.cos_sin.row(to++), cos_sin.row(row),
                  static_cast<size_t>(cos_sin.cols) * sizeof(float));
      if (!goes_on) {
        forms[runs] = batch.form_of(s);
        sequences[runs++] = {0, sequence.position + i, sequence.block_rows};
      }
      ++sequences[runs - 1].rows;
      goes_on = true;
    }
  }
  FATHOM_CHECK(to == count, to, count);
  return {part.x, part.cos_sin, {sequences, runs}, {forms, runs}};
}

// A block behind which only the logit rows (ascending) are read: the others get their place in the
// cache, and nobody sees what the block would make of them. Returns the logit rows of y.
Rows forward_wanted(Context& ctx, ArenaScope& scope, const ModelConfig& config,
                    const BlockWeights& block, const InferBatch& batch, int64_t layer,
                    ConstRows cos_sin, ConstRows x) {
  const int64_t wanted = std::ssize(batch.logit_rows);
  InferBatch part_batch = batch;
  const KeySource keys{&part_batch, {}, layer};
  if (wanted < x.rows) {
    ArenaScope keys_scope(ctx.scratch());
    const Part rest = close_up(keys_scope, batch, batch.logit_rows, true, x, cos_sin);
    part_batch.sequences = rest.sequences;
    part_batch.forms = rest.forms;
    block_keys(ctx, config, block, keys, rest.cos_sin, rest.x);
  }
  const Part part = close_up(scope, batch, batch.logit_rows, false, x, cos_sin);
  if (wanted == 0) return part.x;
  part_batch.sequences = part.sequences;
  part_batch.forms = part.forms;
  const BlockActivations a =
      block_activations(scope, config, config.is_moe_layer(layer), wanted, false);
  block_forward(ctx, config, block, keys, part.cos_sin, part.x, a, part.x);
  return part.x;
}

void check_logit_rows(const InferBatch& batch) {
  int64_t before = -1;
  for (const int32_t row : batch.logit_rows) {
    FATHOM_CHECK(row > before && row < std::ssize(batch.tokens), row, before, batch.tokens.size());
    before = row;
  }
}

}  // namespace

Model Model::load(const std::filesystem::path& path) { return Model(Checkpoint::open(path)); }

Model::Model(Checkpoint checkpoint)
    : checkpoint_(std::make_unique<Checkpoint>(std::move(checkpoint))),
      config_(load_config(*checkpoint_)),
      weights_(load_weights(*checkpoint_, config_)),
      inv_freq_(rope_inv_freq(config_)) {
  checkpoint_->check_unchanged();
}

Model::Model(ModelConfig config, ModelWeights weights)
    : config_(std::move(config)), weights_(std::move(weights)), inv_freq_(rope_inv_freq(config_)) {}

Model::Model(Model&&) noexcept = default;
Model::~Model() = default;

void Model::stream_experts(uint64_t bytes) {
  expert_cache_ = std::make_unique<ExpertCache>(*checkpoint_, config_, bytes);
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    auto& moe = weights_.layers[static_cast<size_t>(layer)].moe;
    if (moe) moe->streamed = {expert_cache_.get(), layer};
  }
  if (weights_.mtp && weights_.mtp->block.moe)
    weights_.mtp->block.moe->streamed = {expert_cache_.get(), config_.num_hidden_layers};
}

uint64_t Model::tile_bytes() { return bytes_of_tiles(weights_, config_); }

void Model::make_tiles(Context& ctx, const std::function<void(uint64_t)>& progress) {
  FATHOM_CHECK(has_checkpoint() && expert_cache_ == nullptr);
  fathom::make_tiles(ctx, weights_, config_, progress);
  for (const TensorInfo* tensor : checkpoint_->tensors()) {
    if (is_tiled(*tensor)) drop_mapped({tensor->data, tensor->bytes});
  }
}

bool Model::is_tiled(const TensorInfo& tensor) const {
  if (weights_.tiles.reserved_bytes() == 0) return false;
  const WeightView& embedding = weights_.embed_tokens.weight;
  return (tensor.data != embedding.data || embedding.tiles != nullptr) &&
         bytes_of_tiles({.dtype = tensor.dtype, .rows = 1, .cols = 256}) > 0;
}

Rows Model::cos_sin(Context& ctx, ArenaScope& scope, std::span<const int32_t> positions) const {
  const Rows out = scope.rows(static_cast<int64_t>(positions.size()), config_.rope_dim());
  rope_angles(ctx, positions, inv_freq_, rope_magnitude(config_), out);
  return out;
}

Rows Model::positions_cos_sin(Context& ctx, ArenaScope& scope, const InferBatch& batch) const {
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  auto* positions = scope.array<int32_t>(tokens);
  int64_t row = 0;
  for (const SequenceRows& sequence : batch.sequences) {
    for (int64_t i = 0; i < sequence.rows; ++i)
      positions[row++] = static_cast<int32_t>(sequence.position + i);
  }
  FATHOM_CHECK(row == tokens, row, tokens);
  return cos_sin(ctx, scope, {positions, static_cast<size_t>(tokens)});
}

void Model::forward_infer(Context& ctx, const InferBatch& batch, Rows logits, Rows* hidden_out,
                          ForwardTrace* trace) const {
  check_logit_rows(batch);
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  ArenaScope scope(ctx.scratch());
  const Rows cos_sin = positions_cos_sin(ctx, scope, batch);
  const Rows x = scope.rows(tokens, config_.hidden_size);
  embedding(ctx, weights_.embed_tokens.weight, batch.tokens.data(), x);

  const auto record_hidden = [&] {
    if (trace != nullptr)
      trace->hidden.insert(trace->hidden.end(), x.data, x.data + tokens * x.cols);
  };
  record_hidden();
  // Of the last layer all rows are wanted only by whoever asks for them.
  const bool all = hidden_out != nullptr || trace != nullptr || ctx.input_observer() ||
                   std::ssize(batch.logit_rows) == tokens;
  const int64_t whole = config_.num_hidden_layers - (all ? 0 : 1);
  for (int64_t layer = 0; layer < whole; ++layer) {
    ArenaScope layer_scope(ctx.scratch());
    const BlockActivations a =
        block_activations(layer_scope, config_, config_.is_moe_layer(layer), tokens, false);
    block_forward(ctx, config_, weights_.layers[static_cast<size_t>(layer)], {&batch, {}, layer},
                  cos_sin, x, a, x);
    if (trace != nullptr && config_.is_moe_layer(layer)) {
      trace->experts.insert(trace->experts.end(), a.moe.experts,
                            a.moe.experts + a.moe.position.size());
    }
    record_hidden();
    if (batch.after_layer != nullptr) (*batch.after_layer)(layer + 1);
  }
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  if (all) {
    const Rows normed = hidden_out != nullptr ? *hidden_out : x;
    rms_norm(ctx, x, weights_.norm.data(), eps, normed);
    const Rows wanted = scope.rows(std::ssize(batch.logit_rows), x.cols);
    for (int64_t i = 0; i < wanted.rows; ++i) {
      std::copy_n(normed.row(batch.logit_rows[static_cast<size_t>(i)]), x.cols, wanted.row(i));
    }
    if (wanted.rows > 0) linear_forward(ctx, wanted, weights_.lm_head, nullptr, logits);
    return;
  }
  const Rows wanted =
      forward_wanted(ctx, scope, config_, weights_.layers.back(), batch, whole, cos_sin, x);
  if (wanted.rows == 0) return;
  rms_norm(ctx, wanted, weights_.norm.data(), eps, wanted);
  linear_forward(ctx, wanted, weights_.lm_head, nullptr, logits);
}

void Model::forward_mtp(Context& ctx, const InferBatch& batch, ConstRows hidden, Rows logits,
                        Rows* hidden_out) const {
  FATHOM_CHECK(has_mtp());
  check_logit_rows(batch);
  const MtpWeights& mtp = *weights_.mtp;
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const int64_t d = config_.hidden_size;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  ArenaScope scope(ctx.scratch());
  const Rows cos_sin = positions_cos_sin(ctx, scope, batch);
  const Rows pair = scope.rows(
      tokens, 2 * d);  // [embedding | hidden]: the released eh_proj wants the embedding first
  embedding(ctx, weights_.embed_tokens.weight, batch.tokens.data(), pair.columns(0, d));
  rms_norm(ctx, pair.columns(0, d), mtp.enorm.data(), eps, pair.columns(0, d));
  rms_norm(ctx, hidden, mtp.hnorm.data(), eps, pair.columns(d, d));
  const Rows z = scope.rows(tokens, d);
  linear_forward(ctx, pair, mtp.eh_proj, nullptr, z);
  const Rows wanted =
      forward_wanted(ctx, scope, config_, mtp.block, batch, config_.num_hidden_layers, cos_sin, z);
  if (wanted.rows == 0) return;
  const Rows normed = hidden_out != nullptr ? *hidden_out : wanted;
  rms_norm(ctx, wanted, mtp.shared_head_norm.data(), eps, normed);
  linear_forward(ctx, normed, weights_.lm_head, nullptr, logits);
}

}  // namespace fathom
