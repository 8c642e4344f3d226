// `fathom doctor`: what this machine has and how fast it is.
#pragma once

#include "cli/output.h"

namespace fathom {

struct DoctorOptions {
  OutputOptions output;
  bool json = false;
  bool print_limits = false;  // the limits on outside input instead (base/limits.h)
  double seconds = 3;         // for measuring
  int threads = 0;
};

int run_doctor(const DoctorOptions& options);

}  // namespace fathom
