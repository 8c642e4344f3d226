// `fathom imatrix MODEL --text FILE -o OUT`: runs a text through the model and writes which columns
// of its matrices are multiplied by much (train/imatrix.h), for `fathom quantize --imatrix`.
#pragma once

#include <cstdint>
#include <string>

#include "cli/output.h"

namespace fathom {

struct ImatrixOptions {
  OutputOptions output;
  std::string model, text, out;
  int64_t context_tokens = 0;  // 0 = min(max_position_embeddings, 512)
  int threads = 0;
};

int run_imatrix(const ImatrixOptions& options);

}  // namespace fathom
