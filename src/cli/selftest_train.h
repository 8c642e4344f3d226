// `fathom selftest --train DIR`: gradients and training steps against recorded ones.
//
// DIR is a model folder of F32 weights with, beside golden.safetensors, grads_KIND.safetensors and
// after10_KIND.safetensors (KIND plain or full) and their settings in info.json: the lengths of the
// documents that share input_ids, loss weights, AdamW, ten losses and gradient norms. All in f32.
// Bounds: the loss 1e-5, each tensor's gradient 1e-4 in relative norm; after ten steps the losses 1
// % and the change of all weights 3 % (a near tie of two experts may send a token elsewhere:
// docs/numerics.md).
#pragma once

#include <string>
#include <vector>

#include "cli/selftest.h"

namespace fathom {

std::vector<SelftestResult> selftest_training(const std::string& folder, int threads);

}  // namespace fathom
