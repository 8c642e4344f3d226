#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace fathom {

double Schedule::lr_at(int64_t step, int64_t steps) const {
  if (step < warmup_steps) {
    return lr * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  }
  // Progress of the decay in [0, 1]; the last step is at 1.
  const auto progress = [&](double begin) {
    const auto last = static_cast<double>(std::max<int64_t>(steps - 1, 1));
    return last <= begin
               ? 1.0
               : std::clamp((static_cast<double>(step) - begin) / (last - begin), 0.0, 1.0);
  };
  const auto linear = [&](double p) { return lr * (1 - p * (1 - final_lr_factor)); };
  const auto cosine = [&](double p) {
    return lr *
           (final_lr_factor + (1 - final_lr_factor) * (1 + std::cos(std::numbers::pi * p)) / 2);
  };
  const double all = static_cast<double>(steps), warm = static_cast<double>(warmup_steps);
  switch (kind) {
    case ScheduleKind::kConstant:
      return lr;
    case ScheduleKind::kCosine:
      return cosine(progress(warm));
    case ScheduleKind::kLinear:
      return linear(progress(warm));
    case ScheduleKind::kWsd:
      return linear(progress(std::max(warm, all * (1 - decay_share))));
    case ScheduleKind::kV3:
      return cosine(progress(std::max(warm, all * (1 - decay_share))));
    case ScheduleKind::kV2: {
      const double at = static_cast<double>(step) / all;
      return at < 0.6 ? lr : at < 0.9 ? lr * 0.316 : lr * 0.316 * 0.316;
    }
  }
  return lr;
}

}  // namespace fathom
