// `fathom estimate MODEL`: does it fit? Memory for weights, cache and work, against what this
// machine has, before loading anything.
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
  bool json = false;
};

int run_estimate(const EstimateOptions& options);

}  // namespace fathom
