#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "kernels/adamw.h"

namespace fathom {

Optimizer::Optimizer(const ParameterTable& table, const OptimizerOptions& options, int64_t first_mtp)
    : options_(options),
      m_(static_cast<size_t>(table.total)),
      v_(static_cast<size_t>(table.total)) {
  for (size_t i = 0; i < table.parameters.size(); ++i) {
    const Parameter& p = table.parameters[i];
    if (p.kind == ParameterKind::kBuffer) continue;
    const bool decays = p.kind != ParameterKind::kVector;
    const int64_t end =
        i + 1 < table.parameters.size() ? table.parameters[i + 1].offset : table.total;
    // The gap behind a parameter is 0 in every array and stays 0.
    const bool new_part = p.offset == first_mtp;  // a border that step() may stop at
    if (!ranges_.empty() && !new_part && ranges_.back().decays == decays &&
        ranges_.back().offset + ranges_.back().count == p.offset) {
      ranges_.back().count = end - ranges_.back().offset;
    } else {
      ranges_.push_back({p.offset, end - p.offset, decays});
    }
  }
}

Optimizer::Result Optimizer::step(Context& ctx, double lr, int64_t end, std::span<float> master,
                                  std::span<float> gradients, std::span<bf16> compute) {
  double squares = 0;
  for (const Range& r : ranges_) {
    if (r.offset >= end) break;
    squares += sum_of_squares(ctx, gradients.subspan(static_cast<size_t>(r.offset),
                                                     static_cast<size_t>(r.count)));
  }
  Result result{std::sqrt(squares), !std::isfinite(squares)};
  if (result.skipped) {
    std::fill(gradients.begin(), gradients.end(), 0.0f);
    return result;
  }
  ++steps_;
  const auto t = static_cast<double>(steps_);
  const double coefficient =
      options_.clip > 0 ? std::min(1.0, options_.clip / (result.gradient_norm + 1e-6)) : 1.0;
  AdamWStep step{.lr = static_cast<float>(lr),
                 .beta1 = static_cast<float>(options_.beta1),
                 .beta2 = static_cast<float>(options_.beta2),
                 .eps = static_cast<float>(options_.eps),
                 .bias1 = static_cast<float>(1 - std::pow(options_.beta1, t)),
                 .bias2 = static_cast<float>(1 - std::pow(options_.beta2, t)),
                 .gradient_scale = static_cast<float>(coefficient)};
  for (const Range& r : ranges_) {
    if (r.offset >= end) break;
    step.weight_decay = r.decays ? static_cast<float>(options_.weight_decay) : 0.0f;
    const auto at = static_cast<size_t>(r.offset), count = static_cast<size_t>(r.count);
    adamw(ctx, step, master.subspan(at, count), gradients.subspan(at, count),
          std::span(m_).subspan(at, count), std::span(v_).subspan(at, count),
          compute.empty() ? compute : compute.subspan(at, count));
  }
  return result;
}

}  // namespace fathom
