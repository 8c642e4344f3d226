// `fathom show MODEL`: what is inside a model file or folder, without running it.
#pragma once

#include <string>

#include "cli/output.h"

namespace fathom {

struct ShowOptions {
  OutputOptions output;
  std::string model;
  bool tensors = false;       // list every tensor
  bool check_finite = false;  // read all weights, name the first NaN or infinity
  bool json = false;
};

int run_show(const ShowOptions& options);

}  // namespace fathom
