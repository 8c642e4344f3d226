// The tensors of a model, one list for everything that is done with them: weights to compute with,
// gradients to add to. A Tensors struct read AsWeights holds views of numbers, AsGradients views of
// places; for_each_tensor (tensor_walk.h) visits either by Hugging Face name.
//
// Weights loaded from a checkpoint are views into the mapped files, in the files' own types, plus
// the few tensors that are kept as f32 or rebuilt. Loading is all or nothing: every declared tensor
// is present with the expected shape, and nothing unknown is left over.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "formats/checkpoint.h"
#include "model/config.h"
#include "model/linear.h"
#include "tensor/arena.h"
#include "tensor/view.h"

namespace fathom {

// The V2 §2.1.2 up-projections of kv_b_proj, as the absorbed form of attention wants them.
struct AbsorbedUpProjections {
  std::vector<WeightView> k_up_transposed;  // per head [kv_lora_rank, qk_nope_head_dim]
  std::vector<WeightView> v_up;             // per head [v_head_dim, kv_lora_rank]
  float* merged = nullptr;                  // kv_b_proj with its LoRA, which v_up then views
};

class ExpertCache;

// Set where the routed experts of a layer are not computed with in the mapping.
struct StreamedExperts {
  ExpertCache* cache = nullptr;  // of the Model
  int64_t layer = 0;
};

struct AsWeights {
  using Matrix = fathom::Linear;
  using Experts = fathom::Experts;
  using Vector = std::span<const float>;
  using Absorbed = AbsorbedUpProjections;
  using Streamed = StreamedExperts;
};

struct AsGradients {
  using Matrix = LinearGradient;
  using Experts = ExpertsGradient;
  using Vector = std::span<float>;  // empty = not trained
  struct Absorbed {};               // derived from kv_b_proj, which has the gradient
  struct Streamed {};               // what is trained is in memory
};

// V2 §2.1. Shapes in the config's vocabulary; h = num_attention_heads.
template <class T>
struct MlaTensors {
  typename T::Matrix q_proj;              // [h * qk_head_dim, hidden_size]    (q_lora_rank 0)
  typename T::Matrix q_a_proj;            // [q_lora_rank, hidden_size]
  typename T::Vector q_a_layernorm;       // [q_lora_rank]
  typename T::Matrix q_b_proj;            // [h * qk_head_dim, q_lora_rank]
  typename T::Matrix kv_a_proj_with_mqa;  // [kv_lora_rank + qk_rope_head_dim, hidden_size]
  typename T::Vector kv_a_layernorm;      // [kv_lora_rank]
  typename T::Matrix kv_b_proj;           // [h * (qk_nope_head_dim + v_head_dim), kv_lora_rank],
                                          // per head k rows, then v rows
  typename T::Absorbed absorbed;
  typename T::Matrix o_proj;  // [hidden_size, h * v_head_dim]
};

template <class T>
struct GqaTensors {
  typename T::Matrix q_proj, k_proj, v_proj;  // [heads * head_dim, hidden_size]
  typename T::Vector q_bias, k_bias, v_bias;  // empty without attention_bias
  typename T::Matrix o_proj;                  // [hidden_size, num_attention_heads * head_dim]
};

template <class T>
struct MlpTensors {
  typename T::Matrix gate_proj, up_proj;  // [intermediate, hidden_size]
  typename T::Matrix down_proj;           // [hidden_size, intermediate]
};

template <class T>
struct MoeTensors {
  // [n_routed_experts, hidden_size], always f32: rounding it changes the choice
  typename T::Vector gate;
  typename T::Vector e_score_correction_bias;  // [n_routed_experts], empty unless noaux_tc
  typename T::Experts gate_proj, up_proj, down_proj;
  // one MLP of n_shared_experts * moe_intermediate_size
  std::optional<MlpTensors<T>> shared_experts;
  typename T::Streamed streamed;
};

template <class T>
struct BlockTensors {
  typename T::Vector input_layernorm, post_attention_layernorm;  // [hidden_size]
  std::optional<MlaTensors<T>> mla;                              // exactly one of mla, gqa
  std::optional<GqaTensors<T>> gqa;
  std::optional<MlpTensors<T>> mlp;  // exactly one of mlp, moe
  std::optional<MoeTensors<T>> moe;
};

// Multi-token prediction (V3 §2.2): embedding and head are the main model's.
template <class T>
struct MtpTensors {
  typename T::Vector enorm, hnorm;  // [hidden_size]
  typename T::Matrix eh_proj;       // [hidden_size, 2 * hidden_size], embedding half first
  BlockTensors<T> block;
  typename T::Vector shared_head_norm;
};

template <class T>
struct ModelTensors {
  typename T::Matrix embed_tokens;  // [vocab_size, hidden_size]
  std::vector<BlockTensors<T>> layers;
  typename T::Vector norm;     // [hidden_size]
  typename T::Matrix lm_head;  // [vocab_size, hidden_size]; = embed_tokens when tied
  // Absent also when the files leave the declared layer out (many re-exports do).
  std::optional<MtpTensors<T>> mtp;
};

using MlaWeights = MlaTensors<AsWeights>;
using GqaWeights = GqaTensors<AsWeights>;
using MlpWeights = MlpTensors<AsWeights>;
using MoeWeights = MoeTensors<AsWeights>;
using BlockWeights = BlockTensors<AsWeights>;
using MtpWeights = MtpTensors<AsWeights>;
using MlaGradients = MlaTensors<AsGradients>;
using GqaGradients = GqaTensors<AsGradients>;
using MlpGradients = MlpTensors<AsGradients>;
using MoeGradients = MoeTensors<AsGradients>;
using BlockGradients = BlockTensors<AsGradients>;
using ModelGradients = ModelTensors<AsGradients>;

struct ModelWeights : ModelTensors<AsWeights> {
  // Memory of rebuilt or realigned tensors; the views point into it, or into the checkpoint's
  // mappings or the parameter arena.
  std::vector<std::unique_ptr<std::byte[]>> owned;
  size_t owned_bytes = 0;
  Arena tiles;  // of the views (weight_tiles.h)
};

// Views stay valid while `checkpoint` lives.
ModelWeights load_weights(const Checkpoint& checkpoint, const ModelConfig& config);

// Makes or remakes the absorbed up-projections after kv_b_proj has changed in place (training).
// kv_b_proj may have LoRA beside it; then they are made of the merged weight. REQUIRES: the base
// of LoRA was not loaded with absorbed projections of its own (drop them first).
void refresh_absorbed(ModelWeights& w, const ModelConfig& config);

void drop_absorbed(ModelWeights& w);

// "file: tensor 'name': element i is NaN" for the first non-finite value of any weight; reads
// everything once.
void check_finite(const Checkpoint& checkpoint);

}  // namespace fathom
