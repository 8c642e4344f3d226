// The model definition: DeepSeek V2/V3 (MLA, DeepSeekMoE, MTP) and the dense Qwen2 and Llama-3 of
// the R1 distillations, as config + weights + blocks. The same blocks serve prefill, decode and
// training (gradient.h).
#pragma once

#include <filesystem>
#include <functional>
#include <memory>

#include "model/batch.h"
#include "model/config.h"
#include "model/weights.h"
#include "tensor/context.h"

namespace fathom {

class Model {
 public:
  // Maps and validates everything, all or nothing; throws fathom::Error.
  static Model load(const std::filesystem::path& path);
  explicit Model(Checkpoint checkpoint);
  // Of weights in memory (training): views into arrays that outlive the model and may change
  // between calls. Generation in the absorbed form needs refresh_absorbed() after each change.
  Model(ModelConfig config, ModelWeights weights);
  Model(Model&&) noexcept;
  ~Model();

  const ModelConfig& config() const { return config_; }
  const ModelWeights& weights() const { return weights_; }
  // Of a loaded model. REQUIRES: has_checkpoint().
  const Checkpoint& checkpoint() const { return *checkpoint_; }
  bool has_checkpoint() const { return checkpoint_ != nullptr; }
  void refresh_absorbed() { fathom::refresh_absorbed(weights_, config_); }
  // From now on routed experts are read from the files as they are needed, and kept in at most
  // `bytes` of memory (model/expert_cache.h, whose requirements hold). forward_infer() and
  // forward_mtp() then throw what reading throws. REQUIRES: has_checkpoint().
  void stream_experts(uint64_t bytes);
  // From now on products read the blocks of weights from tiles (weight_tiles.h), the same bits
  // sooner, and the files' pages are given back. Takes tile_bytes() of memory; `progress` and
  // errors as there. REQUIRES: has_checkpoint(), experts are not streamed.
  uint64_t tile_bytes();
  void make_tiles(Context& ctx, const std::function<void(uint64_t)>& progress = {});
  bool is_tiled(const TensorInfo& tensor) const;  // one of the checkpoint's
  const ExpertCache* expert_cache() const { return expert_cache_.get(); }  // null: not streamed
  bool has_mtp() const { return weights_.mtp.has_value(); }
  // Layers the cache must hold: num_hidden_layers, plus one with MTP.
  int64_t cache_layers() const { return config_.num_hidden_layers + (has_mtp() ? 1 : 0); }

  // Runs the batch: writes the cache rows of its tokens in every main layer, and logits
  // [logit_rows.size(), vocab_size] of the rows asked for. hidden_out, if not null: [tokens,
  // hidden_size], the state after the final norm (what MTP and its training read). trace, if not
  // null, is filled. Without either, rows without logits do not run through the last layer. Uses
  // ctx.scratch(); call from one thread at a time.
  void forward_infer(Context& ctx, const InferBatch& batch, Rows logits, Rows* hidden_out = nullptr,
                     ForwardTrace* trace = nullptr) const;

  // Multi-token prediction (V3 §2.2), one layer deep: row i holds the main model's final hidden
  // state of position i (`hidden`, after model.norm) and, in batch.tokens, the token of position i
  // + 1; the logits predict position i + 2. Positions are those of the hidden states.
  //   z = eh_proj [norm(embedding; enorm) | norm(hidden; hnorm)];  logits = lm_head norm(block(z);
  //   shared_head.norm)
  // REQUIRES: has_mtp(), logit_rows ascend. Writes the last cache layer; rows without logits cost
  // little more than that. hidden_out: [logit_rows.size(), hidden_size], their states after
  // shared_head.norm (for deeper drafts).
  void forward_mtp(Context& ctx, const InferBatch& batch, ConstRows hidden, Rows logits,
                   Rows* hidden_out = nullptr) const;

  // Rotation angles of these positions, in memory of `scope`; what each forward pass begins with.
  Rows cos_sin(Context& ctx, ArenaScope& scope, std::span<const int32_t> positions) const;

 private:
  std::unique_ptr<Checkpoint>
      checkpoint_;  // behind a pointer: weights_ holds views into it, and a Model can move;
                    // null for weights in memory
  ModelConfig config_;
  ModelWeights weights_;
  std::vector<double> inv_freq_;
  std::unique_ptr<ExpertCache> expert_cache_;  // weights_ point to it

  Rows positions_cos_sin(Context& ctx, ArenaScope& scope, const InferBatch& batch) const;
};

}  // namespace fathom
