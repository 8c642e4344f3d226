// What one step's forward pass leaves for the backward pass: rows of a scratch arena, one struct
// for each part of a block. The forward functions always work on these; inference takes them from
// its own scope and forgets them (`keep` false: some then share memory), training keeps them.
// All arrays are [tokens, ...] f32 unless said; slots = tokens * num_experts_per_tok, sorted by
// expert.
#pragma once

#include "model/config.h"
#include "tensor/arena.h"

namespace fathom {

struct MlaActivations {
  Rows q_a, q_a_normed;  // [q_lora_rank] before and after the norm; none without q_lora
  Rows q;                // [num_attention_heads * qk_head_dim], rotated
  Rows kv_a;             // [kv_lora_rank + qk_rope_head_dim]: latent before the norm | rotated key
  Rows latent;           // [kv_lora_rank] after the norm; without `keep` in its place in kv_a
  Rows kv;               // [num_attention_heads * (qk_nope_head_dim + v_head_dim)]; only with keep
  Rows o;                // [num_attention_heads * v_head_dim]
};

struct GqaActivations {
  Rows q;   // [num_attention_heads * head_dim], rotated
  Rows kv;  // [2 * num_key_value_heads * head_dim]: rotated keys | values
  Rows o;   // [num_attention_heads * head_dim]
};

struct MlpActivations {
  // [intermediate]; act = silu(gate) * up, without `keep` in place of gate, or none of them is
  // filled
  Rows gate, up, act;
  bool kept() const { return act.data != gate.data; }
};

struct MoeActivations {
  MlpActivations shared;
  Rows logits;                  // [n_routed_experts]
  int32_t* experts = nullptr;   // [slots], by token: the choice
  float* weights = nullptr;     // [slots], by token
  std::span<int64_t> offsets;   // [n_routed_experts + 1]
  std::span<int64_t> position;  // [slots]
  Rows x;                       // [slots, hidden_size]; without `keep` maybe not filled
  MlpActivations routed;        // [slots, moe_intermediate_size]
  Rows y;                       // [slots, hidden_size]; without `keep` in place of x
};

struct BlockActivations {
  Rows attention_input;  // [hidden_size]: norm of the residual stream
  MlaActivations mla;
  GqaActivations gqa;
  Rows middle;     // [hidden_size]: residual stream after attention
  Rows mlp_input;  // [hidden_size]: its norm
  MlpActivations mlp;
  MoeActivations moe;
};

BlockActivations block_activations(ArenaScope& scope, const ModelConfig& config, bool moe,
                                   int64_t tokens, bool keep);

}  // namespace fathom
