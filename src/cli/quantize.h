// `fathom quantize IN OUT.gguf`: a model in fewer bits as one GGUF file (train/quantize.h), and
// what each kind of tensor lost.
#pragma once

#include <string>
#include <vector>

#include "cli/output.h"

namespace fathom {

struct QuantizeCommand {
  OutputOptions output;
  std::string in, out;
  std::string type = "Q4_K_M";
  std::vector<std::string> overrides;  // PATTERN=TYPE
  std::string imatrix;                 // an importance matrix
  int threads = 0;
  bool no_mtp = false, overwrite = false, json = false;
};

int run_quantize(const QuantizeCommand& options);

}  // namespace fathom
