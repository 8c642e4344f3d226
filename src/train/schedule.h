// The learning rate of each step: warm-up, then a course, as a pure function.
#pragma once

#include <cstdint>

namespace fathom {

enum class ScheduleKind {
  kConstant,
  kCosine,  // to final_lr_factor over all steps after warm-up
  kLinear,  // likewise
  kWsd,     // constant until (1 - decay_share) of all steps, then linear to final_lr_factor
  // constant until (1 - decay_share), then cosine to final_lr_factor (V3 §4.2, without its last two
  // stages)
  kV3,
  kV2,  // times 0.316 at 60 % and again at 90 % of all steps (V2 §3.1.2)
};

struct Schedule {
  ScheduleKind kind = ScheduleKind::kCosine;
  double lr = 1e-3;              // the highest
  int64_t warmup_steps = 0;      // linear from lr / warmup_steps
  double final_lr_factor = 0.1;  // of lr at the end
  double decay_share = 0.2;      // of all steps (kWsd, kV3)

  // step in [0, steps).
  double lr_at(int64_t step, int64_t steps) const;
};

}  // namespace fathom
