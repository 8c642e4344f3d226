#include "train/flops.h"

#include <string>

namespace fathom {

double training_flops_per_token(const ModelConfig& c, const ParameterTable& table, double document_length, bool mtp) {
  const bool with_mtp = mtp && c.num_nextn_predict_layers > 0;
  const std::string mtp_prefix = "model.layers." + std::to_string(c.num_hidden_layers) + ".";
  double flops = 0;
  for (const Parameter& p : table.parameters) {
    const bool embedding = p.name == "model.embed_tokens.weight" && !c.tie_word_embeddings;
    if (p.shape.size() != 2 || embedding || (!with_mtp && p.name.starts_with(mtp_prefix))) continue;
    double uses = 1;
    if (p.name.find(".experts.") != std::string::npos) {
      uses = static_cast<double>(c.router.num_experts_per_tok) / static_cast<double>(c.n_routed_experts);
    }
    if (p.kind == ParameterKind::kEmbedding && with_mtp) uses = 2;
    flops += 2 * static_cast<double>(p.count) * uses;
  }
  const auto value_dim = static_cast<double>(c.is_mla() ? c.v_head_dim : c.head_dim);
  const double pair = 2 * (static_cast<double>(c.qk_head_dim()) + value_dim);
  const auto layers = static_cast<double>(c.num_hidden_layers + (with_mtp ? 1 : 0));
  flops += pair * (document_length + 1) / 2 * static_cast<double>(c.num_attention_heads) * layers;
  return 3 * flops;
}

}  // namespace fathom
