#include "model/activations.h"

namespace fathom {
namespace {

MlaActivations mla_activations(ArenaScope& scope, const ModelConfig& c, int64_t tokens, bool keep) {
  MlaActivations a;
  const int64_t h = c.num_attention_heads;
  if (c.q_lora_rank > 0) {
    a.q_a = scope.rows(tokens, c.q_lora_rank);
    a.q_a_normed = keep ? scope.rows(tokens, c.q_lora_rank) : a.q_a;
  }
  a.q = scope.rows(tokens, h * c.qk_head_dim());
  a.kv_a = scope.rows(tokens, c.kv_lora_rank + c.qk_rope_head_dim);
  a.latent = keep ? scope.rows(tokens, c.kv_lora_rank) : a.kv_a.columns(0, c.kv_lora_rank);
  if (keep) a.kv = scope.rows(tokens, h * (c.qk_nope_head_dim + c.v_head_dim));
  a.o = scope.rows(tokens, h * c.v_head_dim);
  return a;
}

GqaActivations gqa_activations(ArenaScope& scope, const ModelConfig& c, int64_t tokens) {
  return {scope.rows(tokens, c.num_attention_heads * c.head_dim),
          scope.rows(tokens, 2 * c.num_key_value_heads * c.head_dim),
          scope.rows(tokens, c.num_attention_heads * c.head_dim)};
}

MlpActivations mlp_activations(ArenaScope& scope, int64_t intermediate, int64_t rows, bool keep) {
  MlpActivations a{scope.rows(rows, intermediate), scope.rows(rows, intermediate), {}};
  a.act = keep ? scope.rows(rows, intermediate) : a.gate;
  return a;
}

MoeActivations moe_activations(ArenaScope& scope, const ModelConfig& c, int64_t tokens, bool keep) {
  MoeActivations a;
  const int64_t slots = tokens * c.router.num_experts_per_tok;
  if (c.n_shared_experts > 0) {
    a.shared = mlp_activations(scope, c.n_shared_experts * c.moe_intermediate_size, tokens, keep);
  }
  a.logits = scope.rows(tokens, c.n_routed_experts);
  a.experts = scope.array<int32_t>(slots);
  a.weights = scope.array<float>(slots);
  a.offsets = {scope.array<int64_t>(c.n_routed_experts + 1),
               static_cast<size_t>(c.n_routed_experts + 1)};
  a.position = {scope.array<int64_t>(slots), static_cast<size_t>(slots)};
  a.x = scope.rows(slots, c.hidden_size);
  a.routed = mlp_activations(scope, c.moe_intermediate_size, slots, keep);
  a.y = keep ? scope.rows(slots, c.hidden_size) : a.x;
  return a;
}

}  // namespace

BlockActivations block_activations(ArenaScope& scope, const ModelConfig& c, bool moe,
                                   int64_t tokens, bool keep) {
  BlockActivations a;
  a.attention_input = scope.rows(tokens, c.hidden_size);
  if (c.is_mla()) {
    a.mla = mla_activations(scope, c, tokens, keep);
  } else {
    a.gqa = gqa_activations(scope, c, tokens);
  }
  a.middle = scope.rows(tokens, c.hidden_size);
  a.mlp_input = keep ? scope.rows(tokens, c.hidden_size) : a.attention_input;
  if (moe) {
    a.moe = moe_activations(scope, c, tokens, keep);
  } else {
    a.mlp = mlp_activations(scope, c.intermediate_size, tokens, keep);
  }
  return a;
}

}  // namespace fathom
