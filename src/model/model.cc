#include "model/model.h"

#include <cstring>

#include "base/check.h"
#include "kernels/gemm.h"
#include "kernels/quantize.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "model/block.h"
#include "model/rope_table.h"

namespace fathom {

Model Model::load(const std::filesystem::path& path) { return Model(Checkpoint::open(path)); }

Model::Model(Checkpoint checkpoint)
    : checkpoint_(std::make_unique<Checkpoint>(std::move(checkpoint))),
      config_(load_config(*checkpoint_)),
      weights_(load_weights(*checkpoint_, config_)),
      inv_freq_(rope_inv_freq(config_)) {
  checkpoint_->check_unchanged();
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
  const Rows cos_sin = scope.rows(tokens, config_.rope_dim());
  rope_angles(ctx, {positions, static_cast<size_t>(tokens)}, inv_freq_, rope_magnitude(config_),
              cos_sin);
  return cos_sin;
}

void Model::head(Context& ctx, const InferBatch& batch, ConstRows normed, Rows logits) const {
  if (batch.logit_rows.empty()) return;
  ArenaScope scope(ctx.scratch());
  const Rows wanted = scope.rows(static_cast<int64_t>(batch.logit_rows.size()), normed.cols);
  for (int64_t i = 0; i < wanted.rows; ++i) {
    std::memcpy(wanted.row(i), normed.row(batch.logit_rows[static_cast<size_t>(i)]),
                static_cast<size_t>(normed.cols) * sizeof(float));
  }
  linear(ctx, wanted, weights_.lm_head, nullptr, logits);
}

void Model::forward_infer(Context& ctx, const InferBatch& batch, Rows logits, Rows* hidden_out,
                          ForwardTrace* trace) const {
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  ArenaScope scope(ctx.scratch());
  const Rows cos_sin = positions_cos_sin(ctx, scope, batch);
  const Rows x = scope.rows(tokens, config_.hidden_size);
  embedding(ctx, weights_.embed_tokens, batch.tokens.data(), x);

  const auto record_hidden = [&] {
    if (trace != nullptr)
      trace->hidden.insert(trace->hidden.end(), x.data, x.data + tokens * x.cols);
  };
  record_hidden();
  for (int64_t layer = 0; layer < config_.num_hidden_layers; ++layer) {
    int32_t* experts = nullptr;
    if (trace != nullptr && config_.is_moe_layer(layer)) {
      const size_t before = trace->experts.size();
      trace->experts.resize(before +
                            static_cast<size_t>(tokens * config_.router.num_experts_per_tok));
      experts = trace->experts.data() + before;
    }
    block_forward_infer(ctx, config_, weights_.layers[static_cast<size_t>(layer)], batch, layer,
                        cos_sin, x, experts);
    record_hidden();
  }

  const Rows normed = hidden_out != nullptr ? *hidden_out : x;
  rms_norm(ctx, x, weights_.norm.data(), static_cast<float>(config_.rms_norm_eps), normed);
  head(ctx, batch, normed, logits);
}

void Model::forward_mtp(Context& ctx, const InferBatch& batch, ConstRows hidden, Rows logits,
                        Rows* hidden_out) const {
  FATHOM_CHECK(has_mtp());
  const MtpWeights& mtp = *weights_.mtp;
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  const int64_t d = config_.hidden_size;
  const auto eps = static_cast<float>(config_.rms_norm_eps);
  ArenaScope scope(ctx.scratch());
  const Rows cos_sin = positions_cos_sin(ctx, scope, batch);
  const Rows pair = scope.rows(
      tokens, 2 * d);  // [embedding | hidden]: the released eh_proj wants the embedding first
  embedding(ctx, weights_.embed_tokens, batch.tokens.data(), pair.columns(0, d));
  rms_norm(ctx, pair.columns(0, d), mtp.enorm.data(), eps, pair.columns(0, d));
  rms_norm(ctx, hidden, mtp.hnorm.data(), eps, pair.columns(d, d));
  const Rows z = scope.rows(tokens, d);
  linear(ctx, pair, mtp.eh_proj, nullptr, z);
  block_forward_infer(ctx, config_, mtp.block, batch, config_.num_hidden_layers, cos_sin, z,
                      nullptr);
  const Rows normed = hidden_out != nullptr ? *hidden_out : z;
  rms_norm(ctx, z, mtp.shared_head_norm.data(), eps, normed);
  head(ctx, batch, normed, logits);
}

}  // namespace fathom
