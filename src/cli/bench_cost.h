// The least time a piece of work can take on a machine: its bytes and its arithmetic over the
// measured roofs. Written down before anything is timed; every "share of the roof" is this time
// over the measured one.
#pragma once

#include <cstdint>

#include "kernels/roofline.h"
#include "model/model.h"

namespace fathom {

// Bytes and operations, by the unit that limits them.
struct Cost {
  double bytes = 0;
  double f32_flops = 0, bf16_flops = 0, int8_ops = 0;

  // `rows` rows times w; `share`: the part of it that is used at all.
  void add_weight(const WeightView& w, double rows, double share = 1);
  double arithmetic() const { return f32_flops + bf16_flops + int8_ops; }
  double arithmetic_seconds(const Roofs& roofs) const;
  double memory_seconds(const Roofs& roofs) const { return bytes / roofs.read_bytes; }
  double shortest_seconds(const Roofs& roofs) const;
};

// One forward step of the engine.
struct StepShape {
  double rows = 0;        // new tokens
  double pairs = 0;       // of a query and a key it attends to
  double cache_rows = 0;  // read from the cache, of all sequences together
  double logit_rows = 0;
};
// `rows` new tokens of a prompt behind `context` computed ones; logits of the last.
StepShape prefill_step(double context, double rows);
// One new token for each of `sequences`, `context` rows of each in the cache.
StepShape decode_step(double sequences, double context);

// Active weights once, the cache rows once, attention in the cache's type in the form that the
// engine computes by default (MLA absorbed). Tokens choose experts about evenly.
Cost step_cost(const Model& model, const StepShape& shape, DType cache_dtype);

}  // namespace fathom
