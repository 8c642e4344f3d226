// Dequantisation per core: elements/s out of the caches on every instruction set, then bytes/s out
// of memory beside what this machine's one core can read. Per element 4 bytes are written (to a row
// that stays in L1) and 0.53 to 4 read.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <vector>

#include "base/random.h"
#include "kernels/quantize.h"
#include "kernels/roofline.h"

namespace fathom {
namespace {

constexpr int64_t kCols = 7168;  // V3's hidden_size

// Rows of random bytes with one exponent bit cleared everywhere, so that all scales and values are
// finite.
std::vector<std::byte> random_rows(int64_t bytes) {
  std::vector<std::byte> memory(static_cast<size_t>(bytes));
  uint64_t bits = 1;
  for (std::byte& b : memory) b = static_cast<std::byte>((bits = mix_bits(bits)) & 0xbb);
  return memory;
}

void dequantize(benchmark::State& state, Isa isa, DType dtype, const std::vector<std::byte>& memory,
                double roof) {
  const int64_t bytes = row_bytes(dtype, kCols), rows = static_cast<int64_t>(memory.size()) / bytes;
  std::vector<float> out(kCols);
  int64_t r = 0;
  for (auto _ : state) {
    dequantize_row(isa, dtype, memory.data() + r * bytes, kCols, out.data());
    benchmark::DoNotOptimize(out.data());
    benchmark::ClobberMemory();
    r = r + 1 < rows ? r + 1 : 0;
  }
  const auto per_second = [&](double per_row, benchmark::Counter::Flags flags) {
    return benchmark::Counter(per_row, flags | benchmark::Counter::kIsIterationInvariantRate);
  };
  state.counters["elements"] =
      per_second(static_cast<double>(kCols), benchmark::Counter::kDefaults);
  state.counters["read_bytes"] =
      per_second(static_cast<double>(bytes), benchmark::Counter::kDefaults);
  if (roof > 0)
    state.counters["of_read_roof"] =
        per_second(static_cast<double>(bytes) / roof, benchmark::Counter::kDefaults);
}

void register_all(const std::vector<std::byte>& memory, const std::vector<std::byte>& cached,
                  double roof) {
  for (int d = 0; d < kDTypeCount; ++d) {
    const DType dtype = static_cast<DType>(d);
    if (!dtype_info(dtype).computable) continue;
    for (const Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
      if (!has_isa(isa)) continue;
      benchmark::RegisterBenchmark(
          fmt::format("{}/cached/{}", dtype_name(dtype), isa_name(isa)).c_str(),
          [=, &cached](benchmark::State& s) { dequantize(s, isa, dtype, cached, 0); });
    }
    benchmark::RegisterBenchmark(
        fmt::format("{}/memory", dtype_name(dtype)).c_str(),
        [=, &memory](benchmark::State& s) { dequantize(s, detect_isa(), dtype, memory, roof); });
  }
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  fathom::Context one_core(1);
  const double roof = fathom::measure_roofs(one_core, 1.0).read_bytes;
  benchmark::AddCustomContext("read roof of one core", fmt::format("{:.1f} GB/s", roof * 1e-9));
  const auto memory = fathom::random_rows(int64_t{640} << 20),
             cached = fathom::random_rows(256 << 10);
  fathom::register_all(memory, cached, roof);
  benchmark::RunSpecifiedBenchmarks();
}
