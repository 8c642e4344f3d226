// The trained numbers of a model as one flat arena: a table of names, shapes and places. Weights, gradients,
// moments and their bf16 copies are arrays of the same layout, so optimiser, checkpoint, clipping and sharding
// are loops over ranges. Names and order are those of the Hugging Face checkpoint.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fathom {

enum class ParameterKind {
  kMatrix,     // weight of a linear layer, [out, in]
  kRouter,     // MoE gate, [n_routed_experts, hidden_size]: computed in f32 always
  kEmbedding,  // embed_tokens and lm_head, [vocab_size, hidden_size]
  kVector,     // norm weights and biases, [n]
  kBuffer,     // e_score_correction_bias: no gradient, moved by the balancing rule (V3 §2.1.2)
};

struct Parameter {
  std::string name;            // "model.layers.3.self_attn.q_a_proj.weight"
  std::vector<int64_t> shape;  // one or two dimensions
  ParameterKind kind = ParameterKind::kMatrix;
  int64_t offset = 0;  // first element in the flat arrays, a multiple of kParameterAlign
  int64_t count = 0;   // elements; the gap to the next parameter is zero in every array
};

inline constexpr int64_t kParameterAlign = 32;  // elements: 64 bytes of bf16

struct ParameterTable {
  std::vector<Parameter> parameters;
  int64_t total = 0;  // elements of a flat array, gaps included
};

}  // namespace fathom
