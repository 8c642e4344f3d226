// Visits every tensor of a model by its Hugging Face name and shape: the one list of tensors, which
// loading, the parameter table, gradients, initialisation and LoRA all walk. A visitor has
//
//   matrix(name, tensor, rows, cols, kind)            a linear layer's weight
//   experts(mlp, part, tensor, rows, cols)            mlp.experts.E.part.weight for all E
//   vector(name, tensor, shape, kind)                 kept in f32
//   kv_b(attn, layer, mla)                            kv_b_proj and what is derived from it
//   has_mtp(layer)                                    whether a declared MTP layer is there
//   mtp_norm(name, tensor, count, model_norm)         some files share the main model's norm
//   mtp_copies(prefix)                                V3 stores embedding and head again there
#pragma once

#include <fmt/format.h>

#include <string>

#include "model/config.h"
#include "model/parameters.h"
#include "model/weights.h"

namespace fathom {

// The part, made if it is not there yet.
template <class Part>
Part& part_of(std::optional<Part>& part) {
  return part ? *part : part.emplace();
}

template <class T, class Visitor>
void walk_mla(MlaTensors<T>& w, const ModelConfig& c, int64_t layer, const std::string& attn,
              Visitor& visit) {
  const int64_t h = c.num_attention_heads;
  constexpr auto kind = ParameterKind::kMatrix;
  if (c.q_lora_rank > 0) {
    visit.matrix(attn + ".q_a_proj.weight", w.q_a_proj, c.q_lora_rank, c.hidden_size, kind);
    visit.vector(attn + ".q_a_layernorm.weight", w.q_a_layernorm, {c.q_lora_rank},
                 ParameterKind::kVector);
    visit.matrix(attn + ".q_b_proj.weight", w.q_b_proj, h * c.qk_head_dim(), c.q_lora_rank, kind);
  } else {
    visit.matrix(attn + ".q_proj.weight", w.q_proj, h * c.qk_head_dim(), c.hidden_size, kind);
  }
  visit.matrix(attn + ".kv_a_proj_with_mqa.weight", w.kv_a_proj_with_mqa,
               c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size, kind);
  visit.vector(attn + ".kv_a_layernorm.weight", w.kv_a_layernorm, {c.kv_lora_rank},
               ParameterKind::kVector);
  visit.kv_b(attn, layer, w);
  visit.matrix(attn + ".o_proj.weight", w.o_proj, c.hidden_size, h * c.v_head_dim, kind);
}

template <class T, class Visitor>
void walk_gqa(GqaTensors<T>& w, const ModelConfig& c, const std::string& attn, Visitor& visit) {
  const int64_t q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  constexpr auto kind = ParameterKind::kMatrix;
  visit.matrix(attn + ".q_proj.weight", w.q_proj, q, c.hidden_size, kind);
  visit.matrix(attn + ".k_proj.weight", w.k_proj, kv, c.hidden_size, kind);
  visit.matrix(attn + ".v_proj.weight", w.v_proj, kv, c.hidden_size, kind);
  if (c.attention_bias) {
    visit.vector(attn + ".q_proj.bias", w.q_bias, {q}, ParameterKind::kVector);
    visit.vector(attn + ".k_proj.bias", w.k_bias, {kv}, ParameterKind::kVector);
    visit.vector(attn + ".v_proj.bias", w.v_bias, {kv}, ParameterKind::kVector);
  }
  visit.matrix(attn + ".o_proj.weight", w.o_proj, c.hidden_size, q, kind);
}

template <class T, class Visitor>
void walk_mlp(MlpTensors<T>& w, const std::string& mlp, int64_t hidden_size,
              int64_t intermediate_size, Visitor& visit) {
  constexpr auto kind = ParameterKind::kMatrix;
  visit.matrix(mlp + ".gate_proj.weight", w.gate_proj, intermediate_size, hidden_size, kind);
  visit.matrix(mlp + ".up_proj.weight", w.up_proj, intermediate_size, hidden_size, kind);
  visit.matrix(mlp + ".down_proj.weight", w.down_proj, hidden_size, intermediate_size, kind);
}

template <class T, class Visitor>
void walk_moe(MoeTensors<T>& w, const ModelConfig& c, const std::string& mlp, Visitor& visit) {
  visit.vector(mlp + ".gate.weight", w.gate, {c.n_routed_experts, c.hidden_size},
               ParameterKind::kRouter);
  if (c.router.topk_method == TopkMethod::kNoauxTc) {
    visit.vector(mlp + ".gate.e_score_correction_bias", w.e_score_correction_bias,
                 {c.n_routed_experts}, ParameterKind::kBuffer);
  }
  visit.experts(mlp, "gate_proj", w.gate_proj, c.moe_intermediate_size, c.hidden_size);
  visit.experts(mlp, "up_proj", w.up_proj, c.moe_intermediate_size, c.hidden_size);
  visit.experts(mlp, "down_proj", w.down_proj, c.hidden_size, c.moe_intermediate_size);
  if (c.n_shared_experts > 0) {
    walk_mlp(part_of(w.shared_experts), mlp + ".shared_experts", c.hidden_size,
             c.n_shared_experts * c.moe_intermediate_size, visit);
  }
}

template <class T, class Visitor>
void walk_block(BlockTensors<T>& w, const ModelConfig& c, int64_t layer, Visitor& visit) {
  const std::string prefix = fmt::format("model.layers.{}", layer);
  visit.vector(prefix + ".input_layernorm.weight", w.input_layernorm, {c.hidden_size},
               ParameterKind::kVector);
  visit.vector(prefix + ".post_attention_layernorm.weight", w.post_attention_layernorm,
               {c.hidden_size}, ParameterKind::kVector);
  if (c.is_mla()) {
    walk_mla(part_of(w.mla), c, layer, prefix + ".self_attn", visit);
  } else {
    walk_gqa(part_of(w.gqa), c, prefix + ".self_attn", visit);
  }
  if (c.is_moe_layer(layer)) {
    walk_moe(part_of(w.moe), c, prefix + ".mlp", visit);
  } else {
    walk_mlp(part_of(w.mlp), prefix + ".mlp", c.hidden_size, c.intermediate_size, visit);
  }
}

template <class T, class Visitor>
void walk_mtp(MtpTensors<T>& w, const ModelConfig& c, typename T::Vector model_norm,
              Visitor& visit) {
  const int64_t layer = c.num_hidden_layers;
  const std::string prefix = fmt::format("model.layers.{}", layer);
  visit.vector(prefix + ".enorm.weight", w.enorm, {c.hidden_size}, ParameterKind::kVector);
  visit.vector(prefix + ".hnorm.weight", w.hnorm, {c.hidden_size}, ParameterKind::kVector);
  visit.matrix(prefix + ".eh_proj.weight", w.eh_proj, c.hidden_size, 2 * c.hidden_size,
               ParameterKind::kMatrix);
  walk_block(w.block, c, layer, visit);
  visit.mtp_norm(prefix + ".shared_head.norm.weight", w.shared_head_norm, c.hidden_size,
                 model_norm);
  visit.mtp_copies(prefix);
}

// Layers and optional parts that `w` does not have yet are made here, their tensors by the visitor.
template <class T, class Visitor>
void for_each_tensor(ModelTensors<T>& w, const ModelConfig& c, Visitor& visit) {
  constexpr auto kind = ParameterKind::kEmbedding;
  visit.matrix("model.embed_tokens.weight", w.embed_tokens, c.vocab_size, c.hidden_size, kind);
  w.layers.resize(static_cast<size_t>(c.num_hidden_layers));
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) {
    walk_block(w.layers[static_cast<size_t>(layer)], c, layer, visit);
  }
  visit.vector("model.norm.weight", w.norm, {c.hidden_size}, ParameterKind::kVector);
  if (c.tie_word_embeddings) {
    w.lm_head = w.embed_tokens;
  } else {
    visit.matrix("lm_head.weight", w.lm_head, c.vocab_size, c.hidden_size, kind);
  }
  if (c.num_nextn_predict_layers > 0 && visit.has_mtp(c.num_hidden_layers)) {
    walk_mtp(part_of(w.mtp), c, w.norm, visit);
  }
}

}  // namespace fathom
