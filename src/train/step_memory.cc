#include "train/step_memory.h"

#include <algorithm>

#include "kernels/attention_backward.h"
#include "kernels/gemm.h"
#include "model/gradient.h"
#include "model/tensor_walk.h"

namespace fathom {
namespace {

// Array ends in a block are rounded up to 16 floats; it has fewer than 64 arrays.
constexpr int64_t kRounding = 64 * 16;
// Panels of linear layers, tiles of attention, rows of the router (kernels/*).
constexpr int64_t kWorkerBytes = 8 << 20;
// An arena that was not reserved holds up to half as much again, and at least a block.
constexpr int64_t kSmallestArena = 1 << 20;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

// All in floats unless the name says bytes.
class Planner {
 public:
  Planner(const ModelConfig& config, const StepShape& shape)
      : c_(config), s_(shape), tokens_(shape.tokens), d_(config.hidden_size) {}

  int64_t scratch() const {
    int64_t kept = 0, widest = 0, backward = 0;
    for (int64_t layer = 0; layer < c_.num_hidden_layers; ++layer) {
      const int64_t floats = activations(c_.is_moe_layer(layer));
      kept += s_.recompute ? 0 : floats;
      widest = std::max(widest, floats);
      backward = std::max(backward, block_backward(c_.is_moe_layer(layer)));
    }
    const int64_t base = positions() + (c_.num_hidden_layers + 3) * tokens_ * d_ + kept + kRounding;
    const int64_t blocks = (s_.recompute ? widest : 0) + std::max(backward, block_forward());
    return base + std::max({blocks, head(), c_.num_nextn_predict_layers > 0 ? mtp() : 0});
  }

  // A document on one thread, when a batch has many of them.
  int64_t attention() const {
    const int64_t heads = c_.num_attention_heads, length = std::min(tokens_, s_.sequence_length);
    const int64_t kv_heads = c_.is_mla() ? heads : c_.num_key_value_heads;
    const int64_t key = c_.is_mla() ? c_.qk_head_dim() : c_.head_dim,
                  value = round_up(c_.is_mla() ? c_.v_head_dim : c_.head_dim, 16) + 2;
    // Rows of all tiles: each is filled up to 16, and a kv head's last one to a whole tile.
    const int64_t rows = 2 * heads * length + kv_heads * 128;
    const int64_t segments = ceil_div(length, kKeySegment);
    const int64_t slots =
        rows * value * std::min<int64_t>(segments, 2) +
        (segments > 2 ? std::min(kAttentionSlotFloats, rows * value * segments) : 0);
    const int64_t blocks = ceil_div(length, kKeyBlock);
    const int64_t pairs =
        std::min(heads * blocks * (blocks + 1) / 2, std::max(kBackwardBlocks, blocks));
    return std::max(rows * key + slots, pairs * 2 * kKeyBlock * kKeyBlock) + kRounding;
  }

 private:
  // Angles and positions.
  int64_t positions() const { return tokens_ * (c_.rope_dim() + 1); }

  // Forward, or either product of the backward pass: x packed, weights widened.
  int64_t linear(int64_t rows, int64_t in, int64_t out, int64_t groups = 1) const {
    return linear_once(rows, in, out, groups) +
           (s_.lora_rank == 0 ? 0
                              : rows * (2 * s_.lora_rank + std::max(in, out)) +
                                    linear_once(rows, s_.lora_rank, std::max(in, out), groups));
  }
  int64_t linear_once(int64_t rows, int64_t in, int64_t out, int64_t groups) const {
    return (rows + kMostPackedRows * groups) * (std::max(in, out) + kMostPackedPadding) +
           groups * (ceil_div(in * out * s_.widened_bytes, 4) + 32) + kRounding;
  }

  int64_t attention_floats() const {
    const int64_t h = c_.num_attention_heads;
    return c_.is_mla() ? 2 * c_.q_lora_rank + h * c_.qk_head_dim() + 2 * c_.kv_lora_rank +
                             c_.qk_rope_head_dim + h * (c_.qk_nope_head_dim + 2 * c_.v_head_dim)
                       : 2 * h * c_.head_dim + 2 * c_.num_key_value_heads * c_.head_dim;
  }

  // block_activations() with keep.
  int64_t activations(bool moe) const {
    const int64_t floats = 3 * d_ + attention_floats();
    if (!moe) return tokens_ * (floats + 3 * c_.intermediate_size) + kRounding;
    const int64_t shared = 3 * c_.n_shared_experts * c_.moe_intermediate_size;
    return tokens_ * (floats + shared + c_.n_routed_experts) +
           slots() * (4 + 2 * d_ + 3 * c_.moe_intermediate_size) + 2 * c_.n_routed_experts +
           kRounding;
  }
  int64_t slots() const { return tokens_ * c_.router.num_experts_per_tok; }

  int64_t block_forward() const {
    return std::max({attention_linear(), attention(), mlp_linear(c_.intermediate_size),
                     c_.n_routed_experts > 0 ? moe_linear() : 0});
  }
  int64_t mlp_linear(int64_t intermediate) const { return linear(tokens_, d_, intermediate); }
  int64_t moe_linear() const {
    return std::max({linear(slots(), d_, c_.moe_intermediate_size, c_.n_routed_experts),
                     linear(tokens_, d_, 2 * c_.n_routed_experts),
                     mlp_linear(c_.n_shared_experts * c_.moe_intermediate_size)});
  }
  int64_t attention_linear() const {
    const int64_t h = c_.num_attention_heads;
    if (!c_.is_mla()) return linear(tokens_, d_, h * c_.head_dim);
    return std::max(
        {linear(tokens_, d_, h * c_.v_head_dim),
         linear(tokens_, c_.kv_lora_rank, h * (c_.qk_nope_head_dim + c_.v_head_dim)),
         linear(tokens_, d_, c_.kv_lora_rank + c_.qk_rope_head_dim),
         linear(tokens_, c_.q_lora_rank > 0 ? c_.q_lora_rank : d_, h * c_.qk_head_dim()),
         linear(tokens_, d_, c_.q_lora_rank)});
  }

  int64_t block_backward(bool moe) const {
    const int64_t gradients = tokens_ * (attention_floats() + 2 * d_) + kRounding;
    const int64_t attention_part = gradients + std::max(attention_linear(), attention());
    return tokens_ * d_ + std::max(attention_part, moe ? moe_backward() : mlp_backward()) +
           2 * tokens_;
  }
  int64_t mlp_backward() const {
    return tokens_ * (c_.intermediate_size + d_) + mlp_linear(c_.intermediate_size) + kRounding;
  }
  int64_t moe_backward() const {
    const int64_t shared = c_.n_shared_experts * c_.moe_intermediate_size;
    return tokens_ * (d_ + c_.n_routed_experts + 2) +
           slots() * (1 + c_.moe_intermediate_size + d_) +
           std::max(moe_linear(), tokens_ * (shared + d_) + mlp_linear(shared)) +
           4 * c_.n_routed_experts + kRounding;
  }

  // Logits, and what is kept of each row.
  int64_t head() const {
    const int64_t rows = std::min(logit_rows(c_.vocab_size), tokens_);
    return rows * (c_.vocab_size + 6) + linear(rows, d_, c_.vocab_size) + kRounding;
  }

  int64_t mtp() const {
    const bool moe = c_.is_moe_layer(c_.num_hidden_layers);
    const int64_t own = positions() + 5 * tokens_ + activations(moe) + 8 * tokens_ * d_ + kRounding;
    return own + std::max({head(), block_backward(moe), block_forward(),
                           2 * tokens_ * d_ + linear(tokens_, 2 * d_, d_)});
  }

  const ModelConfig& c_;
  const StepShape& s_;
  int64_t tokens_, d_;
};

// muon.h, with the copies of its linear layers.
int64_t muon_floats(const Parameter& p) {
  const int64_t rows = p.shape[0], cols = p.count / rows, side = std::min(rows, cols);
  const int64_t packed = (rows + kMostPackedRows) * (cols + kMostPackedPadding);
  return 3 * p.count + 2 * side * side + packed + kRounding;
}

// Whether a weight has to be widened. A visitor of tensor_walk.h.
struct Widened {
  bool bf16_as_it_lies, has_mtp_layer, any = false;

  void look(const WeightView& w) {
    any |= w.dtype != DType::kF32 && !(w.dtype == DType::kBF16 && bf16_as_it_lies);
  }
  void matrix(const std::string&, Linear& w, int64_t, int64_t, ParameterKind) { look(w.weight); }
  void experts(const std::string&, const std::string&, Experts& w, int64_t, int64_t) {
    for (const WeightView& view : w.weight) look(view);
  }
  void vector(const std::string&, std::span<const float>&, const std::vector<int64_t>&,
              ParameterKind) {}
  void kv_b(const std::string&, int64_t, MlaWeights& w) { look(w.kv_b_proj.weight); }
  bool has_mtp(int64_t) const { return has_mtp_layer; }
  void mtp_norm(const std::string&, std::span<const float>&, int64_t, std::span<const float>) {}
  void mtp_copies(const std::string&) {}
};

}  // namespace

int64_t widened_bytes(const Model& base, Precision precision) {
  ModelTensors<AsWeights> views = base.weights();
  Widened widened{precision == Precision::kNative, views.mtp.has_value()};
  for_each_tensor(views, base.config(), widened);
  return widened.any ? 4 : 0;
}

StepMemory step_memory(const ModelConfig& config, const ParameterTable& table,
                       const StepShape& shape) {
  const Planner planner(config, shape);
  int64_t scratch = planner.scratch(), serial = planner.attention();
  for (const Parameter& p : table.parameters) {
    if (shape.optimizer != OptimizerKind::kMuon || p.kind != ParameterKind::kMatrix) continue;
    int64_t& place = p.count <= kSmallMatrix ? serial : scratch;
    place = std::max(place, muon_floats(p));
  }
  constexpr auto kFloat = static_cast<int64_t>(sizeof(float));
  return {static_cast<uint64_t>(scratch * kFloat),
          static_cast<uint64_t>(2 * kWorkerBytes + 2 * kSmallestArena + serial * kFloat * 2)};
}

}  // namespace fathom
