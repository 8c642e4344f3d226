// `fathom quantize IN OUT.gguf`: a model in fewer bits as one GGUF file (train/quantize.h), and
// what each kind of tensor lost.
#pragma once

#include <string>
#include <vector>

#include "cli/output.h"
#include "train/quantize.h"

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

// write_gguf() with a bar; Ctrl-C ends it, and nothing is left of the file.
std::vector<StoredTensor> write_gguf_watched(Context& ctx, const GgufSource& source,
                                             const std::string& out, QuantizeOptions quantize,
                                             const OutputOptions& output);

int run_quantize(const QuantizeCommand& options);

}  // namespace fathom
