// The loss of a micro-batch and its gradient: the forward pass of model.h with its activations
// kept, then the same blocks in reverse.
//
//   L = sum over targets of -log p(target) / targets of the step
//       (or, for policy gradients, any function of each target's log-probability and entropy)
//     + mtp_loss_weight * the same of the MTP layer, which predicts one token further (V3 §2.2)
//     + sum over the main model's MoE layers of their balance losses, each times its balance_alpha
//       (kernels/router.h), averaged over the step's documents
//
// A step may be cut into micro-batches at document borders: every term is divided by the counts of
// the whole step, so gradients add up to those of one batch, to the rounding of sums cut in parts.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "model/batch.h"
#include "model/model.h"

namespace fathom {

// Rows of logits that exist at one time: multiples of 256, so that a gradient's order of sums does
// not depend on the vocabulary.
constexpr int64_t logit_rows(int64_t vocab_size) {
  return std::max<int64_t>(256, (4 << 20) / vocab_size / 256 * 256);
}

// What a policy gradient puts in the place of cross-entropy; tokens do not depend on each other.
class TokenObjective {
 public:
  virtual ~TokenObjective() = default;
  // log p(target) and the entropy of the batch's rows from `first` on, as many as the spans are
  // long; the derivatives of L by both are to be filled in. Rows without a target have 0, and what
  // they are given is ignored. Without gradients to add to it is called all the same: this is how
  // old or reference log-probabilities are read.
  virtual void differentiate(int64_t first, std::span<const float> log_prob,
                             std::span<const float> entropy, std::span<float> d_log_prob,
                             std::span<float> d_entropy) = 0;
};

struct Objective {
  int64_t targets = 0;         // of the whole step: TrainBatch targets that are not -1
  int64_t mtp_targets = 0;     // mtp_target_count() over the whole step
  int64_t documents = 0;       // of the whole step
  double mtp_loss_weight = 0;  // lambda; 0 = the MTP layer is neither computed nor trained
  BalanceAlpha balance_alpha = {};
  TokenObjective* tokens = nullptr;  // instead of cross-entropy
  // Keep only the residual stream of each layer and compute the rest again in the backward pass:
  // a third more arithmetic, the same bits.
  bool recompute = false;
};

// Sums over micro-batches; zero it before the first.
struct StepLosses {
  double cross_entropy = 0;      // sum over targets of -log p
  double mtp_cross_entropy = 0;  // likewise
  double balance = 0;            // the balance losses, as they stand in L
  int64_t targets = 0, mtp_targets = 0;
  // Tokens by expert, [MoE layers (the MTP layer last), n_routed_experts]. Sized by the caller:
  // moe_layers() * n_routed_experts.
  std::vector<int64_t> expert_tokens;

  double total(const Objective& objective) const;  // L
};

// MoE layers, the MTP layer included if the model has it.
int64_t moe_layers(const Model& model);
// Positions of which the MTP layer is trained: those whose next token is in the same document and
// has a target itself.
int64_t mtp_target_count(const TrainBatch& batch);

// Adds the micro-batch's losses, and its gradients of L to `gradients`. Null gradients: losses only
// (validation); then nothing is kept. Uses ctx.scratch(); call from one thread. train/run.h says
// what memory it takes. REQUIRES: targets in [0, vocab_size) or -1, tokens in [0, vocab_size).
void add_gradients(Context& ctx, const Model& model, const TrainBatch& batch,
                   const Objective& objective, const ModelGradients* gradients, StepLosses& losses);

}  // namespace fathom
