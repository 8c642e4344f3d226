// `fathom prepare FILE... --tokenizer FOLDER -o FOLDER`: texts as token shards (train/shards.h).
#pragma once

#include <string>
#include <vector>

#include "cli/output.h"

namespace fathom {

struct PrepareCommand {
  OutputOptions output;
  std::vector<std::string> inputs;  // files and folders
  std::string tokenizer = "characters", out;
};

int run_prepare(const PrepareCommand& options);

}  // namespace fathom
