// `fathom estimate MODEL`: does it fit? Memory for weights, cache and work, against what this
// machine has, before loading anything; and where it does not, but experts can be streamed, how
// fast that can be at most.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/output.h"

namespace fathom {

struct EstimateOptions {
  OutputOptions output;
  std::string model;
  std::vector<int64_t> contexts;  // empty: a ladder up to the model's own
  std::string cache;              // "" = both types
  double memory_gib = 0;          // as if no more were available; 0 = what is
  bool json = false;
};

int run_estimate(const EstimateOptions& options);

}  // namespace fathom
