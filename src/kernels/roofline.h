// What this machine can do at most: the denominators of every "share of the roof".
#pragma once

#include <cstddef>
#include <memory>

#include "tensor/context.h"

namespace fathom {

struct Roofs {
  double f32_flops = 0;  // FLOP/s of independent FMAs in registers, all threads
  // FLOP/s of bf16 dot products (the f32 figure where the CPU has none or slower ones)
  double bf16_flops = 0;
  double int8_ops = 0;    // OP/s of u8 x i8 dot products (VNNI, else maddubs, else 0)
  double read_bytes = 0;  // bytes/s read from memory, all threads
};

// Takes about `seconds` in total, best of several short probes each: other tenants of a machine
// only slow a probe down.
Roofs measure_roofs(Context& ctx, double seconds);

// One short probe a call (compute about 2 ms, memory one pass over 512 MiB), for benchmarks that
// look at the roof before and after each run. Holds the memory it reads from the first read_bytes()
// until it is destroyed.
class RoofProbe {
 public:
  explicit RoofProbe(Context& ctx) : ctx_(ctx) {}
  double f32_flops();
  double bf16_flops();
  double int8_ops();
  double read_bytes();
  size_t memory_bytes() const;  // that it holds now

 private:
  Context& ctx_;
  std::unique_ptr<std::byte[]> memory_;
};

}  // namespace fathom
