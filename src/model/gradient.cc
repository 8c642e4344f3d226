#include "model/gradient.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/cross_entropy.h"
#include "kernels/elementwise.h"
#include "kernels/quantize.h"
#include "kernels/rms_norm.h"
#include "kernels/softmax.h"
#include "model/block.h"

namespace fathom {
namespace {

// Everything that the parts of a pass share.
struct Pass {
  Context& ctx;
  const Model& model;
  const TrainBatch& batch;
  const Objective& objective;
  const ModelGradients* gradients;  // null: losses only
  StepLosses& losses;

  const ModelConfig& config() const { return model.config(); }
  float eps() const { return static_cast<float>(config().rms_norm_eps); }
};

struct Loss {
  double sum = 0;
  int64_t count = 0;
};

// Cross-entropy of lm_head(normed), chunk by chunk: logits of a whole batch never exist at once.
// With gradients: dnormed is assigned, scaled by `scale`. With `tokens` its derivatives take the
// place of cross-entropy's.
Loss head_loss(const Pass& p, ConstRows normed, std::span<const int32_t> targets, double scale,
               TokenObjective* tokens, Rows dnormed) {
  Context& ctx = p.ctx;
  const Linear& lm_head = p.model.weights().lm_head;
  const int64_t vocab = lm_head.weight.rows;
  const int64_t chunk = logit_rows(vocab);
  ArenaScope scope(ctx.scratch());
  const Rows buffer = scope.rows(std::min(chunk, normed.rows), vocab);
  float* const of_tokens = scope.array<float>(tokens != nullptr ? 4 * buffer.rows : 0);
  Loss loss;
  for (int64_t first = 0; first < normed.rows; first += chunk) {
    const int64_t rows = std::min(chunk, normed.rows - first);
    const Rows logits = buffer.slice(0, rows);
    const ConstRows x{normed.row(first), rows, normed.cols, normed.stride};
    linear_forward(ctx, x, lm_head, nullptr, logits);
    const auto some = targets.subspan(static_cast<size_t>(first), static_cast<size_t>(rows));
    if (tokens == nullptr) {
      const CrossEntropy part = softmax_cross_entropy(ctx, some, static_cast<float>(scale), logits);
      loss.sum += part.loss;
      loss.count += part.count;
    } else {
      const auto column = [&](int64_t i) { return std::span(of_tokens + i * rows, some.size()); };
      const std::span<float> log_prob = column(0), entropy = column(1), d_log_prob = column(2),
                             d_entropy = column(3);
      log_prob_entropy(ctx, some, logits, log_prob, entropy);
      tokens->differentiate(first, log_prob, entropy, d_log_prob, d_entropy);
      for (const float l : log_prob) loss.sum -= l;
      loss.count += std::count_if(some.begin(), some.end(), [](int32_t t) { return t != -1; });
      if (p.gradients != nullptr)
        log_prob_entropy_backward(ctx, some, entropy, d_log_prob, d_entropy, logits);
    }
    if (p.gradients != nullptr) {
      linear_backward(ctx, x, lm_head, logits, p.gradients->lm_head, dnormed.slice(first, rows));
    }
  }
  return loss;
}

Rows cos_sin_of(const Pass& p, ArenaScope& scope, std::span<const int64_t> document_lengths,
                int64_t tokens) {
  auto* positions = scope.array<int32_t>(tokens);
  int64_t row = 0;
  for (const int64_t length : document_lengths) {
    for (int64_t i = 0; i < length; ++i) positions[row++] = static_cast<int32_t>(i);
  }
  FATHOM_CHECK(row == tokens, row, tokens);
  return p.model.cos_sin(p.ctx, scope, {positions, static_cast<size_t>(tokens)});
}

void count_experts(const Pass& p, const MoeActivations& a, int64_t moe_layer) {
  const auto experts = static_cast<size_t>(p.config().n_routed_experts);
  int64_t* counts = p.losses.expert_tokens.data() + static_cast<size_t>(moe_layer) * experts;
  for (size_t e = 0; e < experts; ++e) counts[e] += a.offsets[e + 1] - a.offsets[e];
}

BalanceAlpha share_of_alpha(const Pass& p, size_t documents) {
  const double share = static_cast<double>(documents) / static_cast<double>(p.objective.documents);
  const BalanceAlpha& alpha = p.objective.balance_alpha;
  return {alpha.sequence * share, alpha.device * share, alpha.communication * share};
}

// ---------------------------------------------------------------------------------------------
// The MTP layer (V3 §2.2), trained on the positions whose next token belongs to the same document.

// The MTP layer's own packed batch: each document of T >= 2 tokens gives T - 1 rows.
struct MtpRows {
  std::span<int64_t> document_lengths;
  std::span<int32_t> from;     // row of the main batch: its hidden state
  std::span<int32_t> tokens;   // the token after it
  std::span<int32_t> targets;  // the token after that, or -1
};

MtpRows mtp_rows(ArenaScope& scope, const TrainBatch& batch) {
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  auto* lengths = scope.array<int64_t>(static_cast<int64_t>(batch.document_lengths.size()));
  auto* from = scope.array<int32_t>(tokens);
  auto* next = scope.array<int32_t>(tokens);
  auto* targets = scope.array<int32_t>(tokens);
  size_t documents = 0, rows = 0;
  int64_t begin = 0;
  for (const int64_t length : batch.document_lengths) {
    if (length >= 2) lengths[documents++] = length - 1;
    for (int64_t t = begin; t + 1 < begin + length; ++t, ++rows) {
      from[rows] = static_cast<int32_t>(t);
      next[rows] = batch.tokens[static_cast<size_t>(t) + 1];
      targets[rows] = batch.targets[static_cast<size_t>(t) + 1];
    }
    begin += length;
  }
  return {{lengths, documents}, {from, rows}, {next, rows}, {targets, rows}};
}

// Adds the MTP loss; with gradients also its part of dhidden, the gradient of the state after the
// final norm.
void add_mtp(const Pass& p, ConstRows hidden, Rows dhidden) {
  Context& ctx = p.ctx;
  const ModelConfig& c = p.config();
  const MtpTensors<AsWeights>& w = *p.model.weights().mtp;
  const int64_t d = c.hidden_size, layer = c.num_hidden_layers;
  ArenaScope scope(ctx.scratch());
  const MtpRows rows = mtp_rows(scope, p.batch);
  const auto count = static_cast<int64_t>(rows.tokens.size());
  if (count == 0) return;
  const KeySource keys{nullptr, rows.document_lengths, layer};
  const Rows cos_sin = cos_sin_of(p, scope, rows.document_lengths, count);
  const BlockActivations a = block_activations(scope, c, c.is_moe_layer(layer), count, true);

  // z = W_eh [norm(embedding) | norm(hidden)], then the block, a norm and the main model's head
  const Rows embedded = scope.rows(count, d), states = scope.rows(count, d);
  const Rows pair = scope.rows(count, 2 * d), z = scope.rows(count, d), y = scope.rows(count, d);
  embedding(ctx, p.model.weights().embed_tokens.weight, rows.tokens.data(), embedded);
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(states.row(i), hidden.row(rows.from[static_cast<size_t>(i)]),
                static_cast<size_t>(d) * sizeof(float));
  }
  rms_norm(ctx, embedded, w.enorm.data(), p.eps(), pair.columns(0, d));
  rms_norm(ctx, states, w.hnorm.data(), p.eps(), pair.columns(d, d));
  linear_forward(ctx, pair, w.eh_proj, nullptr, z);
  block_forward(ctx, c, w.block, keys, cos_sin, z, a, y);
  const Rows normed = scope.rows(count, d), dnormed = scope.rows(count, d);
  rms_norm(ctx, y, w.shared_head_norm.data(), p.eps(), normed);
  const double scale =
      p.objective.mtp_targets == 0
          ? 0
          : p.objective.mtp_loss_weight / static_cast<double>(p.objective.mtp_targets);
  const Loss loss = head_loss(p, normed, rows.targets, scale, nullptr, dnormed);
  p.losses.mtp_cross_entropy += loss.sum;
  p.losses.mtp_targets += loss.count;
  if (w.block.moe) count_experts(p, a.moe, moe_layers(p.model) - 1);
  if (p.gradients == nullptr) return;

  const MtpTensors<AsGradients>& g = *p.gradients->mtp;
  rms_norm_backward(ctx, y, w.shared_head_norm.data(), p.eps(), dnormed, dnormed,
                    g.shared_head_norm.data());
  block_backward(ctx, c, w.block, keys, cos_sin, z, a, {}, g.block, dnormed);
  const Rows dpair = scope.rows(count, 2 * d);
  linear_backward(ctx, pair, w.eh_proj, dnormed, g.eh_proj, dpair);
  const Rows dembedded = dpair.columns(0, d), dstates = dpair.columns(d, d);
  rms_norm_backward(ctx, embedded, w.enorm.data(), p.eps(), dembedded, dembedded, g.enorm.data());
  rms_norm_backward(ctx, states, w.hnorm.data(), p.eps(), dstates, dstates, g.hnorm.data());
  if (p.gradients->embed_tokens.weight.data != nullptr) {
    embedding_backward(ctx, rows.tokens.data(), dembedded, p.gradients->embed_tokens.weight);
  }
  for (int64_t i = 0; i < count; ++i) {
    float* to = dhidden.row(rows.from[static_cast<size_t>(i)]);
    for (int64_t k = 0; k < d; ++k) to[k] += dstates.row(i)[k];
  }
}

}  // namespace

double StepLosses::total(const Objective& o) const {
  double sum = balance;
  if (o.targets > 0) sum += cross_entropy / static_cast<double>(o.targets);
  if (o.mtp_targets > 0) {
    sum += o.mtp_loss_weight * mtp_cross_entropy / static_cast<double>(o.mtp_targets);
  }
  return sum;
}

int64_t moe_layers(const Model& model) {
  int64_t layers = 0;
  for (const BlockWeights& block : model.weights().layers) layers += block.moe ? 1 : 0;
  return layers + (model.has_mtp() && model.weights().mtp->block.moe ? 1 : 0);
}

int64_t mtp_target_count(const TrainBatch& batch) {
  int64_t count = 0, begin = 0;
  for (const int64_t length : batch.document_lengths) {
    for (int64_t t = begin + 1; t < begin + length; ++t) {
      count += batch.targets[static_cast<size_t>(t)] >= 0 ? 1 : 0;
    }
    begin += length;
  }
  return count;
}

void add_gradients(Context& ctx, const Model& model, const TrainBatch& batch,
                   const Objective& objective, const ModelGradients* gradients,
                   StepLosses& losses) {
  const ModelConfig& c = model.config();
  const ModelWeights& w = model.weights();
  const auto tokens = static_cast<int64_t>(batch.tokens.size());
  FATHOM_CHECK(batch.targets.size() == batch.tokens.size(), batch.targets.size(), tokens);
  FATHOM_CHECK(static_cast<int64_t>(losses.expert_tokens.size()) ==
               moe_layers(model) * c.n_routed_experts);
  if (tokens == 0) return;
  const Pass p{ctx, model, batch, objective, gradients, losses};
  const int64_t layers = c.num_hidden_layers, d = c.hidden_size;
  const bool keep_all = gradients != nullptr && !objective.recompute;
  ArenaScope scope(ctx.scratch());
  const Rows cos_sin = cos_sin_of(p, scope, batch.document_lengths, tokens);

  // The residual stream before each layer and after the last; one and the same without gradients.
  Rows* const x = scope.array<Rows>(layers + 1);
  auto* const kept = scope.array<BlockActivations>(layers);
  for (int64_t layer = 0; layer <= layers; ++layer) {
    x[layer] = layer == 0 || gradients != nullptr ? scope.rows(tokens, d) : x[0];
    if (keep_all && layer < layers) {
      kept[layer] = block_activations(scope, c, c.is_moe_layer(layer), tokens, true);
    }
  }
  const auto forward = [&](int64_t layer, const BlockActivations& a) {
    block_forward(ctx, c, w.layers[static_cast<size_t>(layer)],
                  {nullptr, batch.document_lengths, layer}, cos_sin, x[layer], a, x[layer + 1]);
  };

  embedding(ctx, w.embed_tokens.weight, batch.tokens.data(), x[0]);
  int64_t moe_layer = 0;
  for (int64_t layer = 0; layer < layers; ++layer) {
    ArenaScope layer_scope(ctx.scratch());
    const BlockActivations a =
        keep_all ? kept[layer]
                 : block_activations(layer_scope, c, c.is_moe_layer(layer), tokens, true);
    forward(layer, a);
    if (c.is_moe_layer(layer)) count_experts(p, a.moe, moe_layer++);
  }

  const Rows normed = scope.rows(tokens, d), dnormed = scope.rows(tokens, d);
  rms_norm(ctx, x[layers], w.norm.data(), p.eps(), normed);
  const double scale = objective.targets == 0 ? 0 : 1.0 / static_cast<double>(objective.targets);
  const Loss loss = head_loss(p, normed, batch.targets, scale, objective.tokens, dnormed);
  losses.cross_entropy += loss.sum;
  losses.targets += loss.count;
  if (model.has_mtp() && objective.mtp_loss_weight != 0) add_mtp(p, normed, dnormed);
  if (gradients == nullptr) return;

  const Rows dx = dnormed;
  rms_norm_backward(ctx, x[layers], w.norm.data(), p.eps(), dnormed, dx, gradients->norm.data());
  const BalanceObjective balance{batch.document_lengths,
                                 share_of_alpha(p, batch.document_lengths.size())};
  for (int64_t layer = layers - 1; layer >= 0; --layer) {
    const auto l = static_cast<size_t>(layer);
    ArenaScope layer_scope(ctx.scratch());
    if (!keep_all) {
      kept[layer] = block_activations(layer_scope, c, c.is_moe_layer(layer), tokens, true);
      forward(layer, kept[layer]);
    }
    losses.balance +=
        block_backward(ctx, c, w.layers[l], {nullptr, batch.document_lengths, layer}, cos_sin,
                       x[layer], kept[layer], balance, gradients->layers[l], dx);
  }
  if (gradients->embed_tokens.weight.data != nullptr) {
    embedding_backward(ctx, batch.tokens.data(), dx, gradients->embed_tokens.weight);
  }
}

}  // namespace fathom
