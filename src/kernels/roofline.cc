#include "kernels/roofline.h"

#include <time.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/clock.h"
#include "kernels/dispatch.h"

namespace fathom {

// Each does `steps` rounds of independent operations in registers and stores the operations of one
// round (0: the target has none such).
// The result only keeps the work alive.
FATHOM_SIMD_DECLARE(float probe_f32(int64_t steps, double* ops))
FATHOM_SIMD_DECLARE(float probe_bf16(int64_t steps, double* ops))
FATHOM_VNNI_DECLARE(float probe_int8(int64_t steps, double* ops))
FATHOM_SIMD_DECLARE(float probe_read(const float* data, int64_t count))

namespace {

using ComputeProbe = float (*)(int64_t steps, double* ops);

constexpr int64_t kSteps = 200'000;
// Much larger than the part of a last-level cache that this machine may call its own.
constexpr int64_t kReadBytes = 512 << 20;
constexpr int64_t kReadItemBytes = 4 << 20;

double thread_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The sum of what each thread does in its own time: what other programs take away is no property of
// the machine.
double compute_rate(Context& ctx, ComputeProbe probe) {
  std::atomic<double> rate = 0;
  volatile float sink = 0;
  ctx.pool().run(ctx.pool().threads(), [&](int64_t, int) {
    double ops = 0;
    const double begin = thread_seconds();
    sink = probe(kSteps, &ops);
    rate += ops * static_cast<double>(kSteps) / (thread_seconds() - begin);
  });
  return rate;
}

template <class Probe>
double best_of(double seconds, Probe probe) {
  const double end = seconds_now() + seconds;
  double best = probe();
  while (seconds_now() < end) best = std::max(best, probe());
  return best;
}

}  // namespace

double RoofProbe::f32_flops() {
  return compute_rate(ctx_, FATHOM_SIMD_CALL(ctx_.isa(), probe_f32));
}
double RoofProbe::bf16_flops() {
  if (ctx_.isa() < Isa::kAvx512 || !has_bf16_dot()) return f32_flops();
  return std::max(compute_rate(ctx_, FATHOM_SIMD_CALL(ctx_.isa(), probe_bf16)), f32_flops());
}
double RoofProbe::int8_ops() {
  return compute_rate(ctx_, FATHOM_VNNI_CALL(ctx_.isa(), probe_int8));
}

double RoofProbe::read_bytes() {
  const int64_t items = kReadBytes / kReadItemBytes;
  if (memory_ == nullptr) {
    memory_ = std::make_unique_for_overwrite<std::byte[]>(kReadBytes);
    // Untouched pages would all be the one zero page.
    ctx_.pool().run(items, [&](int64_t item, int) {
      std::memset(memory_.get() + item * kReadItemBytes, 0x3f, kReadItemBytes);
    });
  }
  volatile float sink = 0;
  const auto read = FATHOM_SIMD_CALL(ctx_.isa(), probe_read);
  const double begin = seconds_now();
  ctx_.pool().run(items, [&](int64_t item, int) {
    const std::byte* data = memory_.get() + item * kReadItemBytes;
    sink = read(reinterpret_cast<const float*>(data), kReadItemBytes / 4);
  });
  return static_cast<double>(kReadBytes) / (seconds_now() - begin);
}

size_t RoofProbe::memory_bytes() const { return memory_ == nullptr ? 0 : kReadBytes; }

Roofs measure_roofs(Context& ctx, double seconds) {
  RoofProbe probe(ctx);
  return {.f32_flops = best_of(seconds / 4, [&] { return probe.f32_flops(); }),
          .bf16_flops = best_of(seconds / 4, [&] { return probe.bf16_flops(); }),
          .int8_ops = best_of(seconds / 4, [&] { return probe.int8_ops(); }),
          .read_bytes = best_of(seconds / 4, [&] { return probe.read_bytes(); })};
}

}  // namespace fathom
