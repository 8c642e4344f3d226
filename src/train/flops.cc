#include "train/flops.h"

#include <string>

namespace fathom {
namespace {

// How often a token meets the parameter: a routed expert's in num_experts_per_tok cases of
// n_routed_experts. ".experts." is not in "shared_experts.".
double uses_per_token(const ModelConfig& c, const Parameter& p) {
  if (p.name.find(".experts.") == std::string::npos) return 1;
  return static_cast<double>(c.router.num_experts_per_tok) /
         static_cast<double>(c.n_routed_experts);
}

// Multiply-adds of one pass of a token through the table's matrices.
double matrix_products(const ModelConfig& c, const ParameterTable& table, bool mtp) {
  const int64_t end = mtp ? table.total : first_mtp_offset(c, table);
  double products = 0;
  for (const Parameter& p : table.parameters) {
    const bool looked_up = p.name == "model.embed_tokens.weight" && !c.tie_word_embeddings;
    if (p.shape.size() != 2 || looked_up || p.offset >= end) continue;
    // the MTP layer's is the main model's
    const double heads = p.kind == ParameterKind::kEmbedding && mtp ? 2 : 1;
    products += static_cast<double>(p.count) * uses_per_token(c, p) * heads;
  }
  return products;
}

}  // namespace

TrainingFlops training_flops(const ModelConfig& c, const ParameterTable& table, bool mtp) {
  mtp = mtp && c.num_nextn_predict_layers > 0;
  TrainingFlops flops;
  flops.matrices = 3 * 2 * matrix_products(c, table, mtp);
  const bool adapters =
      !table.parameters.empty() && table.parameters[0].name.starts_with("base_model.");
  if (adapters) flops.matrices += 2 * 2 * matrix_products(c, parameter_table(c), mtp);
  const auto value_dim = static_cast<double>(c.is_mla() ? c.v_head_dim : c.head_dim);
  const auto layers = static_cast<double>(c.num_hidden_layers + (mtp ? 1 : 0));
  flops.attention_key = 3 * 2 * (static_cast<double>(c.qk_head_dim()) + value_dim) *
                        static_cast<double>(c.num_attention_heads) * layers;
  return flops;
}

int64_t parameter_count(const ParameterTable& table) {
  int64_t count = 0;
  for (const Parameter& p : table.parameters) count += p.count;
  return count;
}

int64_t active_parameters(const ModelConfig& c, const ParameterTable& table) {
  double count = 0;
  for (const Parameter& p : table.parameters)
    count += static_cast<double>(p.count) * uses_per_token(c, p);
  return static_cast<int64_t>(count);
}

}  // namespace fathom
