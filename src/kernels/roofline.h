// What this machine can do at most: the denominators of every "share of the roof".
#pragma once

#include "tensor/context.h"

namespace fathom {

struct Roofs {
  double f32_flops = 0;         // FLOP/s of independent FMAs in registers, all threads
  double bf16_flops = 0;        // FLOP/s of bf16 dot products (the f32 figure where the CPU has none)
  double int8_ops = 0;          // OP/s of u8 x i8 dot products (VNNI, else maddubs, else 0)
  double read_bytes = 0;        // bytes/s read from memory, all threads
};

// Takes about `seconds` in total, best of several short probes each: other tenants of a machine only slow a probe down.
Roofs measure_roofs(Context& ctx, double seconds);

}  // namespace fathom
