// What every kernel that splits work is given first: the threads, their scratch and the instruction
// set.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include "base/thread_pool.h"
#include "tensor/arena.h"
#include "tensor/view.h"

namespace fathom {

// Instruction sets the kernels are compiled for, weakest first. kAvxVnni is kAvx2 with dot products
// of bytes (Intel's cores without AVX-512 since Alder Lake). kAvx512 means F, BW, DQ, VL and VNNI
// together (Zen 4 and later, Cascade Lake and later); a CPU with part of them runs a weaker set, one
// with all of them need not have kAvxVnni.
enum class Isa { kPortable, kAvx2, kAvxVnni, kAvx512 };
inline constexpr Isa kIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvxVnni, Isa::kAvx512};
std::string_view isa_name(Isa isa);
// Of "portable", "avx2", "avxvnni" or "avx512"; null for any other name.
std::optional<Isa> isa_named(std::string_view name);
// Whether this CPU and operating system run it (CPUID and XGETBV); the strongest that they do.
bool has_isa(Isa isa);
Isa detect_isa();
// Whether a kAvx512 CPU also has vdpbf16ps (Zen 4, Cooper Lake, Sapphire Rapids and later).
bool has_bf16_dot();

// How linear layers see their input (kernels/gemm.h). kNative rounds it to bf16 beside BF16
// and FP8 weights, as such models are trained and served, and to 8 bits beside GGUF blocks, which
// makes these several times as fast; kF32 keeps it in f32: for checks against exact references.
enum class Precision { kNative, kF32 };

// Told of every linear layer of the model before it runs: its weight, and the rows it multiplies.
using InputObserver = std::function<void(const WeightView& weight, ConstRows x)>;

class Context {
 public:
  explicit Context(int threads, Isa isa = detect_isa(), Precision precision = Precision::kNative);
  ~Context();

  ThreadPool& pool() { return pool_; }
  Isa isa() const { return isa_; }
  Precision precision() const { return precision_; }
  // Null takes the observer away. The model's layers (model/linear.h) ask for it once per call.
  void observe_inputs(InputObserver observer) { input_observer_ = std::move(observer); }
  const InputObserver& input_observer() const { return input_observer_; }
  // For the calling thread, between parallel loops.
  Arena& scratch() { return *scratch_; }
  // For the body of a parallel loop; worker in [0, pool().threads()).
  Arena& worker_scratch(int worker) { return *worker_scratch_[static_cast<size_t>(worker)]; }
  // For the same: a context of one thread, to call a kernel from inside a loop over many small
  // problems.
  // Kernels give the same bits on it.
  Context& serial(int worker) { return *serial_[static_cast<size_t>(worker)]; }

 private:
  struct Serial {};
  Context(Serial, Isa isa, Precision precision);

  ThreadPool pool_;
  Isa isa_;
  Precision precision_;
  InputObserver input_observer_;
  std::unique_ptr<Arena> scratch_;
  std::vector<std::unique_ptr<Arena>> worker_scratch_;
  std::vector<std::unique_ptr<Context>> serial_;  // none inside a serial context
};

}  // namespace fathom
