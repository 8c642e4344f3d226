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
  // MLA in fast mode: rows in the expanded form (of `rows`), their pairs (beside `pairs`), and the
  // keys that are expanded for them, once.
  double expanded_rows = 0, expanded_pairs = 0, expanded_keys = 0;
};
// `rows` new tokens of a prompt behind `context` computed ones, the first `expanded` in the
// expanded form; logits of the last.
StepShape prefill_step(double context, double rows, double expanded = 0);
// One new token for each of `sequences`, `context` rows of each in the cache.
StepShape decode_step(double sequences, double context);

// Active weights once, the cache rows once, attention in the cache's type, expanded keys in bf16
// (f32 with a cache of f32); through the last layer only the logit rows. Tokens choose experts
// about evenly.
Cost step_cost(const Model& model, const StepShape& shape, DType cache_dtype);

}  // namespace fathom
