// What a model is: every number that decides the computation, in the vocabulary of config.json.
// Nothing is guessed from tensor shapes; unknown or contradictory values are refused.
//
// Sources: the papers and configs of DeepSeek-V2 (arXiv 2405.04434), V3 (2412.19437), Qwen2 and
// Llama-3 configs; GGUF metadata of arch deepseek2, qwen2 and llama. docs/formats.md lists the
// keys.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"
#include "kernels/rope.h"
#include "kernels/router.h"

namespace fathom {

enum class Architecture { kDeepseekV2, kDeepseekV3, kQwen2, kLlama };

enum class RopeScalingType { kNone, kYarn, kLlama3 };

struct RopeConfig {
  double rope_theta = 10000;
  RopeScalingType type = RopeScalingType::kNone;
  double factor = 1;
  double original_max_position_embeddings = 0;
  // YaRN (V2 §3.1.4)
  double beta_fast = 32, beta_slow = 1;
  double mscale = 0, mscale_all_dim = 0;
  // llama3
  double low_freq_factor = 1, high_freq_factor = 4;
  // A GGUF stores llama3's scaling as these divisors of inv_freq instead (tensor
  // rope_freqs.weight); empty otherwise.
  std::vector<double> freq_divisors;
  RopeLayout layout = RopeLayout::kInterleaved;
};

struct ModelConfig {
  Architecture architecture = Architecture::kDeepseekV3;
  std::string name;  // the true name for people, e.g. general.name of a GGUF; may be empty

  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t intermediate_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  double initializer_range = 0.02;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // biases on q, k, v (Qwen2)
  RopeConfig rope;
  int64_t bos_token_id = -1;
  std::vector<int64_t> eos_token_ids;

  // GQA (Qwen2, Llama)
  int64_t head_dim = 0;

  // MLA (DeepSeek)
  int64_t q_lora_rank = 0;  // 0 = none: q_proj instead of q_a_proj, q_b_proj
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;

  // DeepSeekMoE; n_routed_experts 0 = every layer dense
  int64_t n_routed_experts = 0;
  int64_t n_shared_experts = 0;
  int64_t moe_intermediate_size = 0;
  int64_t first_k_dense_replace = 0;
  int64_t moe_layer_freq = 1;
  RouterRule router;

  int64_t num_nextn_predict_layers = 0;  // MTP layers the files declare; 0 or 1

  bool is_mla() const { return kv_lora_rank > 0; }
  bool is_moe_layer(int64_t layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
  }
  int64_t qk_head_dim() const { return is_mla() ? qk_nope_head_dim + qk_rope_head_dim : head_dim; }
  // Dimensions that RoPE turns.
  int64_t rope_dim() const { return is_mla() ? qk_rope_head_dim : head_dim; }
  // Values a token leaves in the cache per layer: latent and rotated key, or k and v of all heads.
  int64_t cache_width() const {
    return is_mla() ? kv_lora_rank + qk_rope_head_dim : 2 * num_key_value_heads * head_dim;
  }
};

std::string_view architecture_name(Architecture architecture);  // "DeepseekV3ForCausalLM", ...

// From config.json text or GGUF metadata, validated against each other's ranges. Throws
// fathom::Error.
ModelConfig parse_config(std::string_view config_json, std::string_view place);
ModelConfig config_from_gguf(const Gguf& gguf);
// Whichever the checkpoint carries.
ModelConfig load_config(const Checkpoint& checkpoint);

// The config as config.json text that Hugging Face libraries and parse_config read.
std::string write_config(const ModelConfig& config);

}  // namespace fathom
