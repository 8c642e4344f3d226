// What every kernel that splits work is given first: the threads, their scratch and the instruction set.
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"
#include "tensor/arena.h"

namespace fathom {

// Instruction sets the kernels are compiled for, weakest first. kAvx512 means F, BW, DQ, VL, VNNI and BF16 together
// (Zen 4 and later, Sapphire Rapids and later); a CPU with part of them runs kAvx2.
enum class Isa { kPortable, kAvx2, kAvx512 };
std::string_view isa_name(Isa isa);
// The strongest set this CPU and operating system run (CPUID and XGETBV).
Isa detect_isa();

class Context {
 public:
  explicit Context(int threads, Isa isa = detect_isa());

  ThreadPool& pool() { return pool_; }
  Isa isa() const { return isa_; }
  // For the calling thread, between parallel loops.
  Arena& scratch() { return *scratch_; }
  // For the body of a parallel loop; worker in [0, pool().threads()).
  Arena& worker_scratch(int worker) { return *worker_scratch_[static_cast<size_t>(worker)]; }

 private:
  ThreadPool pool_;
  Isa isa_;
  std::unique_ptr<Arena> scratch_;
  std::vector<std::unique_ptr<Arena>> worker_scratch_;
};

}  // namespace fathom
