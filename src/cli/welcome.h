// `fathom` alone: what this machine has, which models are here, and the next command to type. And
// `fathom version`.
#pragma once

#include "cli/output.h"

namespace fathom {

int run_welcome(const OutputOptions& output);
int run_version();

}  // namespace fathom
