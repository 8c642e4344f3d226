// `fathom bench [MODEL]`: speed as a share of what this machine can do at most. Without a model:
// linear layers in the common weight formats. With one: prefill and decode at growing context.
//
// The roof of a piece of work is the larger of arithmetic / measured FLOP/s and bytes / measured
// read bandwidth: its shortest possible time. Arithmetic counts the active weights and attention;
// bytes count active weights once per step and the cache rows read.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/output.h"

namespace fathom {

struct BenchOptions {
  OutputOptions output;
  std::string model;         // "" = kernels
  bool kernels_only = true;  // set by the caller: no MODEL was named
  std::vector<int64_t> prefill = {128, 512};
  std::vector<int64_t> contexts = {0, 512, 2048};
  int64_t generate = 32;  // tokens timed at each context
  int repeat = 3;
  int threads = 0;
  std::string cache;
  bool json = false;
};

int run_bench(const BenchOptions& options);

// Of a list of times, by position in the sorted list.
struct Spread {
  double low = 0, median = 0, high = 0;  // 10th, 50th and 90th percentile
};
Spread spread_of(std::vector<double> values);

}  // namespace fathom
