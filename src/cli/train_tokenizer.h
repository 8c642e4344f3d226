// `fathom train-tokenizer FILE... -o FOLDER`: a byte-level BPE vocabulary learned from texts
// (text/bpe_trainer.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/output.h"

namespace fathom {

struct TrainTokenizerOptions {
  OutputOptions output;
  std::vector<std::string> files;
  int64_t vocab_size = 4096;
  std::string folder;
};

int run_train_tokenizer(const TrainTokenizerOptions& options);

}  // namespace fathom
