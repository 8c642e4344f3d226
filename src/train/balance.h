// Load balancing without an auxiliary loss (V3 §2.1.2): after each step the bias that an expert's
// score gets in the choice, and only there, moves by `rate`: down if the expert got more than the
// mean of the whole step's tokens, up if less. In float: the bias is a small number of such steps.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/parameters.h"

namespace fathom {

// expert_tokens [MoE layers, n_routed_experts] of one step (StepLosses), layers in the order of the
// e_score_correction_bias parameters in the table: the main model's, then the MTP layer's. A layer
// that saw no token keeps its bias.
void update_router_bias(const ParameterTable& table, std::span<const int64_t> expert_tokens,
                        double rate, std::span<float> master);

// Per MoE layer: the fullest expert's tokens over the mean; 1 is perfect balance, 0 = no tokens.
std::vector<double> load_max_over_mean(std::span<const int64_t> expert_tokens,
                                       int64_t n_routed_experts);

}  // namespace fathom
