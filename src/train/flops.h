// The arithmetic of a training step that its speed is measured by: matrix products and attention, forward once and backward twice.
// Norms, transposes, recomputation and the optimiser are overhead, not counted; embedding look-ups multiply nothing.
#pragma once

#include "model/parameters.h"

namespace fathom {

// Per token, in documents of this length; the MTP layer and its use of the head included if `mtp`.
double training_flops_per_token(const ModelConfig& config, const ParameterTable& table, double document_length, bool mtp);

}  // namespace fathom
