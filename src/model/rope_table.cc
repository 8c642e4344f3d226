#include "model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace fathom {
namespace {

double yarn_mscale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

}  // namespace

std::vector<double> rope_inv_freq(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  const auto dim = static_cast<double>(config.rope_dim());
  const auto pairs = static_cast<size_t>(config.rope_dim() / 2);
  std::vector<double> inv_freq(pairs);
  for (size_t i = 0; i < pairs; ++i)
    inv_freq[i] = std::pow(rope.rope_theta, -2.0 * static_cast<double>(i) / dim);

  if (rope.type == RopeScalingType::kYarn) {
    const auto corr = [&](double rotations) {
      return dim *
             std::log(rope.original_max_position_embeddings / (2 * std::numbers::pi * rotations)) /
             (2 * std::log(rope.rope_theta));
    };
    const double low = std::max(std::floor(corr(rope.beta_fast)), 0.0);
    double high =
        std::min(std::ceil(corr(rope.beta_slow)), dim - 1);  // dim - 1, not pairs - 1: as published
    if (low == high) high += 0.001;
    for (size_t i = 0; i < pairs; ++i) {
      const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
      inv_freq[i] = inv_freq[i] / rope.factor * ramp + inv_freq[i] * (1 - ramp);
    }
  } else if (rope.type == RopeScalingType::kLlama3) {
    const double original = rope.original_max_position_embeddings;
    for (double& f : inv_freq) {
      const double wavelength = 2 * std::numbers::pi / f;
      if (wavelength > original / rope.low_freq_factor) {
        f /= rope.factor;
      } else if (wavelength >= original / rope.high_freq_factor) {
        const double smooth = (original / wavelength - rope.low_freq_factor) /
                              (rope.high_freq_factor - rope.low_freq_factor);
        f = (1 - smooth) * f / rope.factor + smooth * f;
      }
    }
  }
  for (size_t i = 0; i < rope.freq_divisors.size(); ++i) inv_freq[i] /= rope.freq_divisors[i];
  return inv_freq;
}

double rope_magnitude(const ModelConfig& config) {
  const RopeConfig& rope = config.rope;
  if (rope.type != RopeScalingType::kYarn) return 1.0;
  return yarn_mscale(rope.factor, rope.mscale) / yarn_mscale(rope.factor, rope.mscale_all_dim);
}

double softmax_scale(const ModelConfig& config) {
  const double scale = 1.0 / std::sqrt(static_cast<double>(config.qk_head_dim()));
  const RopeConfig& rope = config.rope;
  if (rope.type != RopeScalingType::kYarn || rope.mscale_all_dim == 0) return scale;
  const double m = yarn_mscale(rope.factor, rope.mscale_all_dim);
  return scale * m * m;
}

}  // namespace fathom
