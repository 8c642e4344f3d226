// `fathom bench [MODEL]`: speed as a share of what this machine can do at most. Linear layers in
// the common weight formats, then a model: time to load, prefill and generation against the
// context, generation of several sequences at once, memory.
//
// The roof of a piece of work is the larger of arithmetic / measured FLOP/s and bytes / measured
// read bandwidth: its shortest possible time (bench_cost.h). The roofs are measured before and
// after each line (bench_lines.h).
//
// A deep context costs its prefill once: what one line has computed, the next finds in the prefix
// cache. Every timed step is a real one, over real cache rows of the sequence's own.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/output.h"

namespace fathom {

struct BenchOptions {
  OutputOptions output;
  std::string model;              // "" = the bundled one
  std::vector<std::string> only;  // parts by name; empty = all
  std::vector<int64_t> prefill = {128, 512};
  // Empty: growing ones, as far as they fit and can be filled within a minute each.
  std::vector<int64_t> contexts;
  std::vector<int64_t> batch = {1, 2, 4, 8, 16, 32};
  int64_t batch_context = -1;  // -1: 128, or less where the model's context is small
  int64_t generate = 32;       // tokens timed of each sequence
  int repeat = 3;
  int threads = 0;
  bool pin = false;  // threads to processors (base/affinity.h)
  std::string cache;
  std::string mla = "fast";  // parse_mla()
  std::string isa;           // parse_isa()
  std::string page;          // file to write: .html or .svg
  bool json = false;

  bool wants(std::string_view part) const;
};

int run_bench(const BenchOptions& options);

}  // namespace fathom
