// Rotation frequencies and the softmax scale that a config implies (models' YaRN: V2 §3.1.4; llama3
// scaling).
#pragma once

#include <vector>

#include "model/config.h"

namespace fathom {

// inv_freq[i], i < rope_dim / 2, in double: angle of pair i at position t is t * inv_freq[i].
//   none:   f_i = theta^(-2i / D)
//   YaRN:   f_i / factor * ramp_i + f_i * (1 - ramp_i), ramp from corr(beta_fast) to
//   corr(beta_slow),
//           corr(r) = D ln(original / (2 pi r)) / (2 ln theta)
//   llama3: by wavelength, low frequencies divided by factor, smooth in between
// divided by freq_divisors where a GGUF gives them.
std::vector<double> rope_inv_freq(const ModelConfig& config);

// Factor on cos and sin: get(factor, mscale) / get(factor, mscale_all_dim), get(f, m) = 0.1 m ln f
// + 1. Exactly 1 when the two are equal.
double rope_magnitude(const ModelConfig& config);

// qk_head_dim^-0.5, times get(factor, mscale_all_dim)^2 under YaRN with mscale_all_dim != 0.
double softmax_scale(const ModelConfig& config);

}  // namespace fathom
