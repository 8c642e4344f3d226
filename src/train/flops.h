// The arithmetic of a training step that its speed is measured by: matrix products and attention,
// forward once and backward twice; a frozen weight's backward once, for it has no gradient of its
// own. Norms, transposes, recomputation and the optimiser are overhead, not counted; embedding
// look-ups multiply nothing.
#pragma once

#include "model/parameters.h"

namespace fathom {

struct TrainingFlops {
  double matrices = 0;       // per token
  double attention_key = 0;  // per token and key that it sees
  double per_token(double document_length) const {
    return matrices + attention_key * (document_length + 1) / 2;
  }
};

// table: what is trained, the whole model's or LoRA's. mtp: the MTP layer and its use of the head
// included.
TrainingFlops training_flops(const ModelConfig& config, const ParameterTable& table, bool mtp);

int64_t parameter_count(const ParameterTable& table);
// Per token: of the routed experts only those that it visits.
int64_t active_parameters(const ModelConfig& config, const ParameterTable& table);

}  // namespace fathom
