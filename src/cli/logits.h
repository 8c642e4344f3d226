// `fathom logits MODEL --ids FILE -o OUT.safetensors`: every position's logits, for comparing with
// other engines.
#pragma once

#include <cstdint>
#include <string>

#include "cli/output.h"

namespace fathom {

struct LogitsOptions {
  OutputOptions output;
  std::string model;
  std::string ids;  // file of ids (cli/ids.h)
  std::string out;  // tensors logits F32 [tokens, vocab_size] and input_ids I64 [tokens]
  int64_t chunk = 512;
  int threads = 0;
  std::string form = "absorbed";
  std::string cache;
  std::string precision = "native";
  std::string isa;
};

int run_logits(const LogitsOptions& options);

}  // namespace fathom
