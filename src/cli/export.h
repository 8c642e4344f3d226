// `fathom export FOLDER OUT.gguf`: a model folder as one GGUF file (train/gguf_source.h,
// quantize.h).
#pragma once

#include <string>

#include "cli/output.h"

namespace fathom {

struct ExportCommand {
  OutputOptions output;
  std::string model, out;
  std::string type = "bf16";  // f32, f16, bf16, q8_0
  bool no_mtp = false;
};

int run_export(const ExportCommand& options);

}  // namespace fathom
