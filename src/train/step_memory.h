// What a training step needs beside the trainer's arrays, planned before anything is allocated: the
// activations of one micro-batch, the gradients of one block, logits, the copies that linear layers
// make, and Muon's scratch. What the calling thread needs (`scratch`) is reserved at the start of a
// run; the workers' part is counted, and grows in the first steps.
//
// It follows the scopes of model/gradient.cc, block by block, and rounds each array up; what
// depends on the data (tokens by expert, documents) is counted at its worst.
#pragma once

#include <cstdint>

#include "model/model.h"
#include "model/parameters.h"
#include "tensor/context.h"
#include "train/optimizer.h"

namespace fathom {

struct StepShape {
  int64_t tokens = 0;           // of the largest micro-batch
  int64_t sequence_length = 0;  // of the longest document
  bool recompute = false;
  int64_t widened_bytes = 0;  // widened_bytes() of frozen weights
  int64_t lora_rank = 0;
  OptimizerKind optimizer = OptimizerKind::kAdamW;
};

struct StepMemory {
  uint64_t scratch = 0;     // Context::scratch()
  uint64_t per_thread = 0;  // each worker's scratch, and its serial context's

  uint64_t total(int threads) const {
    return scratch + static_cast<uint64_t>(threads) * per_thread;
  }
};

// Bytes of a copy that the backward pass makes of frozen weights, by element (gemm_backward.cc): 0
// if every matrix is read as it lies, in F32 or, under Precision::kNative, BF16; else 4.
int64_t widened_bytes(const Model& base, Precision precision);

// An upper bound. `table` is what is trained. REQUIRES: 1 <= sequence_length.
StepMemory step_memory(const ModelConfig& config, const ParameterTable& table,
                       const StepShape& shape);

}  // namespace fathom
