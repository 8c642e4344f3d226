// The weights of one model: views into the mapped files, in the files' own types, plus the few
// tensors that are kept as f32 or rebuilt at load. One description for every container: a loader
// asks by Hugging Face name and shape; GGUF names are derived from those (tensor_names.h).
//
// Loading is all or nothing: every declared tensor is present with the expected shape, and nothing
// unknown is left over.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "formats/checkpoint.h"
#include "model/config.h"
#include "tensor/view.h"

namespace fathom {

// V2 §2.1. Shapes in the config's vocabulary; h = num_attention_heads.
struct MlaWeights {
  WeightView q_proj;                  // [h * qk_head_dim, hidden_size]          (q_lora_rank 0)
  WeightView q_a_proj;                // [q_lora_rank, hidden_size]
  std::vector<float> q_a_layernorm;   // [q_lora_rank]
  WeightView q_b_proj;                // [h * qk_head_dim, q_lora_rank]
  WeightView kv_a_proj_with_mqa;      // [kv_lora_rank + qk_rope_head_dim, hidden_size]
  std::vector<float> kv_a_layernorm;  // [kv_lora_rank]
  WeightView kv_b_proj;  // [h * (qk_nope_head_dim + v_head_dim), kv_lora_rank], per head k rows,
                         // then v rows
  std::vector<WeightView>
      k_up_transposed;  // per head [kv_lora_rank, qk_nope_head_dim]: the absorbed form's query side
  std::vector<WeightView> v_up;  // per head [v_head_dim, kv_lora_rank]
  WeightView o_proj;             // [hidden_size, h * v_head_dim]
};

struct GqaWeights {
  WeightView q_proj, k_proj, v_proj;          // [heads * head_dim, hidden_size]
  std::vector<float> q_bias, k_bias, v_bias;  // empty without attention_bias
  WeightView o_proj;                          // [hidden_size, num_attention_heads * head_dim]
};

struct MlpWeights {
  WeightView gate_proj, up_proj;  // [intermediate, hidden_size]
  WeightView down_proj;           // [hidden_size, intermediate]
};

struct MoeWeights {
  std::vector<float>
      gate;  // [n_routed_experts, hidden_size], always f32: rounding it changes the choice
  std::vector<float> e_score_correction_bias;  // [n_routed_experts], empty unless noaux_tc
  std::vector<WeightView> gate_proj, up_proj, down_proj;  // per expert
  std::optional<MlpWeights> shared_experts;  // one MLP of n_shared_experts * moe_intermediate_size
};

struct BlockWeights {
  std::vector<float> input_layernorm, post_attention_layernorm;  // [hidden_size]
  std::optional<MlaWeights> mla;                                 // exactly one of mla, gqa
  std::optional<GqaWeights> gqa;
  std::optional<MlpWeights> mlp;  // exactly one of mlp, moe
  std::optional<MoeWeights> moe;
};

// Multi-token prediction (V3 §2.2): embedding and head are the main model's.
struct MtpWeights {
  std::vector<float> enorm, hnorm;  // [hidden_size]
  WeightView eh_proj;               // [hidden_size, 2 * hidden_size], embedding half first
  BlockWeights block;
  std::vector<float> shared_head_norm;
};

struct ModelWeights {
  WeightView embed_tokens;  // [vocab_size, hidden_size]
  std::vector<BlockWeights> layers;
  std::vector<float> norm;  // [hidden_size]
  WeightView lm_head;       // [vocab_size, hidden_size]; = embed_tokens when tied
  std::optional<MtpWeights>
      mtp;  // absent also when the files leave the declared layer out (many re-exports do)

  // Memory of rebuilt or realigned tensors; the views above point into it or into the checkpoint's
  // mappings.
  std::vector<std::unique_ptr<std::byte[]>> owned;
  size_t owned_bytes = 0;
};

// Views stay valid while `checkpoint` lives.
ModelWeights load_weights(const Checkpoint& checkpoint, const ModelConfig& config);

// "file: tensor 'name': element i is NaN" for the first non-finite value of any weight; reads
// everything once.
void check_finite(const Checkpoint& checkpoint);

}  // namespace fathom
