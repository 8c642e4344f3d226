// `fathom selftest DIR...`: does this program, on this machine, compute what recorded vectors say?
//
// DIR is a model folder with golden.safetensors beside the weights (input_ids, logits; hidden,
// experts, mtp_logits, logits_bf16_weights if recorded), or a folder of GGUF files whose
// golden.safetensors holds NAME.logits for NAME.gguf and PREFIX.input_ids. Every form of MLA and
// every way to feed the prompt (whole, token by token, ragged chunks) is compared; the worst
// position is named.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fathom {

struct SelftestOptions {
  std::vector<std::string> folders;
  int threads = 0;     // 0 = all cores
  bool train = false;  // gradients and training steps instead (selftest_train.h)
  bool json = false;
  bool color = false;
};

// One comparison.
struct SelftestResult {
  std::string subject;  // "v3: logits, absorbed, ragged chunks"
  double error = 0;  // largest |difference| over the largest |reference|; infinite when the places
                     // of NaN differ
  double bound = 0;
  int64_t row = 0, column = 0;  // of the worst element
  std::string detail;           // expected and found there
  bool passed = false;
};

// All comparisons of one folder. Throws fathom::Error when the folder cannot be read.
std::vector<SelftestResult> selftest_folder(const std::string& folder, int threads);

// Prints green or red lines to stdout; 0 if all passed, 1 if not.
int run_selftest(const SelftestOptions& options);

}  // namespace fathom
