// The trained numbers of a model as one flat arena: a table of names, shapes and places. Weights,
// gradients, moments and their bf16 copies are arrays of the same layout, so optimiser, checkpoint,
// clipping and sharding are loops over ranges. Names and order are those of the Hugging Face
// checkpoint.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/weights.h"
#include "tensor/dtype.h"

namespace fathom {

// What is done with a tensor beside computing.
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

void append_parameter(ParameterTable& table, std::string name, std::vector<int64_t> shape,
                      ParameterKind kind);
// How recipes choose layers and parameters: `part` is a part of the name, or "all".
bool name_contains(const std::string& name, const std::string& part);
// A matrix of the table in `compute`, or in `master` if that is empty.
WeightView matrix_view(const Parameter& parameter, std::span<const float> master,
                       std::span<const bf16> compute);

// Every tensor of the model that `config` describes, the MTP layer included.
ParameterTable parameter_table(const ModelConfig& config);

// Offset of the first parameter of the MTP layer, the last part of the table; table.total without
// one.
int64_t first_mtp_offset(const ModelConfig& config, const ParameterTable& table);

// Views of flat arrays with the table's layout. Matrices are read from `compute` (bf16) unless that
// is empty, everything else from `master`. Without absorbed up-projections: see refresh_absorbed().
// The arrays outlive the result.
ModelWeights map_weights(const ModelConfig& config, const ParameterTable& table,
                         std::span<const float> master, std::span<const bf16> compute);
ModelGradients map_gradients(const ModelConfig& config, const ParameterTable& table,
                             std::span<float> gradients);

// Matrices, router and embeddings normal with standard deviation initializer_range (V3 §4.2:
// 0.006), norms 1, biases 0. Keyed by (seed, name): a tensor's numbers do not depend on the others.
void initialise(const ParameterTable& table, double initializer_range, uint64_t seed,
                std::span<float> master);

// Throws if the files left out the MTP layer that their config declares: training needs one or the
// other.
void expect_declared_mtp(const ModelConfig& config, const ModelTensors<AsWeights>& weights);

// The numbers of a loaded checkpoint as f32. REQUIRES: `weights` has the tensors of the table
// (throws otherwise: an MTP layer that the files left out is named).
void copy_weights(const ModelConfig& config, const ParameterTable& table,
                  const ModelTensors<AsWeights>& weights, std::span<float> master);

}  // namespace fathom
