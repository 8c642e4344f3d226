// `fathom pretrain RECIPE.toml` and `fathom sft RECIPE.toml`: a training run, watched.
//
// Progress goes to stderr: on a terminal one line that is redrawn, with the loss as a picture; else
// a plain line every ten seconds. Ctrl-C saves a checkpoint and ends with 130; --resume goes on
// from there. stdout stays empty.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/output.h"

namespace fathom {

struct TrainOptions {
  OutputOptions output;
  std::string recipe;
  std::vector<std::string> overrides;  // key=value
  std::string folder;                  // the run's; default runs/NAME
  bool resume = false;
  bool print_recipe = false;  // only resolve and print it, on stdout
  bool fine_tune = false;     // sft: refuses data without answers to learn
  std::string command;
};

int run_train(const TrainOptions& options);

// The last values as block characters, lowest to highest; its own function for tests.
std::string sparkline(const std::vector<double>& values, size_t columns);

}  // namespace fathom
