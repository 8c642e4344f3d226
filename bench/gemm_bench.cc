// Linear layers against the roofs of this machine: usage gemm_bench [threads] [part of a case's
// name] [portable, avx2, avxvnni or avx512; default: this CPU's best]
//
// Hosts are shared, so a run counts only with the roof seen next to it: each sample is probe, run,
// probe, and its share is the run over the mean of its two probes. Printed are medians and the
// middle half of the samples. GEMV-like cases walk through more weights than any cache holds, as a
// decode step does; their roof is reading w once. The share by CPU time (over the case's best
// probe) leaves out what other programs took from our threads; it still has their traffic in the
// caches.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fstream>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "kernels/gemm.h"
#include "kernels/roofline.h"

namespace fathom {
namespace {

constexpr double kSecondsPerCase = 0.5;
constexpr int64_t kColdBytes = int64_t{640} << 20;
constexpr int64_t kFewRows = 32;  // up to here a case is judged by bytes as well

struct Spread {
  double low, median, high;  // quartiles
};

Spread spread(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return {v[v.size() / 4], v[v.size() / 2], v[v.size() * 3 / 4]};
}

// `count` weights of one shape: floats in [0.008, 1.9), of which no part is subnormal (arithmetic
// on these is a hundred times slower), or blocks with neither NaN nor subnormal scales.
std::vector<WeightView> make_weights(DType dtype, int64_t rows, int64_t cols, int64_t count,
                                     std::vector<std::byte>& memory) {
  const int64_t bytes = row_bytes(dtype, cols) * rows;
  memory.resize(static_cast<size_t>(bytes * count + 64));
  std::vector<uint64_t> pattern(1 << 16);
  for (size_t i = 0; i < pattern.size(); ++i) {
    const uint64_t bits = random_bits({.seed = 1}, i);
    const bool blocks = dtype_info(dtype).block_elements > 1;
    pattern[i] =
        blocks ? bits & 0x3b3b3b3b3b3b3b3b : (bits & 0x03ff03ff03ff03ff) | 0x3c003c003c003c00;
    if (dtype == DType::kMXFP4) pattern[i] |= 0x4040404040404040;  // its scale is an exponent
  }
  for (size_t i = 0; i < memory.size(); i += pattern.size() * 8) {
    std::memcpy(memory.data() + i, pattern.data(), std::min(memory.size() - i, pattern.size() * 8));
  }
  std::byte* const data =
      memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  std::vector<WeightView> weights;
  static const std::vector<float> scales(1 << 20, 0.01f);
  for (int64_t i = 0; i < count; ++i)
    weights.push_back({dtype, rows, cols, data + i * bytes, scales.data(), (cols + 127) / 128});
  return weights;
}

// Of all threads together.
double cpu_seconds_now() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

enum class Roof { kF32, kBf16, kInt8, kRead };

struct Case {
  std::string name;
  double flops;
  double weight_bytes;
  Roof roof;
  std::function<void(int64_t sample)> run;
};

constexpr const char* kRoofNames[] = {"f32 ", "bf16", "int8", "read"};

Roof roof_of(DType dtype) {
  if (dtype_info(dtype).block_elements > 1) return Roof::kInt8;
  return rounds_x_to_bf16(dtype) ? Roof::kBf16 : Roof::kF32;
}

void measure(int threads, RoofProbe& probe, const Case& c) {
  const auto roof = [&] {
    switch (c.roof) {
      case Roof::kF32:
        return probe.f32_flops();
      case Roof::kBf16:
        return probe.bf16_flops();
      case Roof::kInt8:
        return probe.int8_ops();
      case Roof::kRead:
        return probe.read_bytes();
    }
    return 0.0;
  };
  const double work = c.roof == Roof::kRead ? c.weight_bytes : c.flops;
  c.run(0);  // arenas grow, pages appear
  std::vector<double> seconds, cpu_seconds, shares;
  double best_roof = 0;
  int64_t sample = 0;
  const double end = seconds_now() + kSecondsPerCase;
  double before = roof();
  while (shares.size() < 7 || seconds_now() < end) {
    const int64_t runs = std::clamp<int64_t>(static_cast<int64_t>(2e8 / c.flops), 1, 64);
    const double begin = seconds_now(), cpu_begin = cpu_seconds_now();
    for (int64_t r = 0; r < runs; ++r) c.run(++sample);
    cpu_seconds.push_back((cpu_seconds_now() - cpu_begin) / static_cast<double>(runs * threads));
    seconds.push_back((seconds_now() - begin) / static_cast<double>(runs));
    const double after = roof();
    shares.push_back(work / seconds.back() / ((before + after) / 2));
    before = after;
    best_roof = std::max(best_roof, after);
  }
  const Spread time = spread(seconds), share = spread(shares);
  const double cpu_share = work / spread(cpu_seconds).median / best_roof;
  fmt::print(
      "{:28} {:8.1f} GFLOP/s {:6.2f} GB/s of w {:6.1f} % of {} ({:.0f}-{:.0f}), {:.1f} % by CPU "
      "time, {} samples\n",
      c.name, c.flops / time.median / 1e9, c.weight_bytes / time.median / 1e9, 100 * share.median,
      kRoofNames[static_cast<int>(c.roof)], 100 * share.low, 100 * share.high, 100 * cpu_share,
      shares.size());
  std::fflush(stdout);
}

// Tiles: as the engine reads weights, unless their type has none or memory is short; in huge pages.
// Rows: as they lie in a file.
enum class Order { kTiles, kRows };

void take_tiles(Context& ctx, ArenaScope& scope, std::vector<WeightView>& weights) {
  for (WeightView& w : weights) {
    const int64_t bytes = bytes_of_tiles(w);
    if (bytes == 0) return;
    auto* const tiles = scope.array<std::byte>(bytes);
    make_tiles(ctx, {&w, 1}, tiles);
    w.tiles = tiles;
  }
}

void linear_case(Context& ctx, RoofProbe& probe, DType dtype, int64_t m, int64_t n, int64_t k,
                 const std::string& filter, Order order = Order::kTiles) {
  const std::string name = fmt::format("{}{} {}x{}x{}", dtype_name(dtype),
                                       order == Order::kRows ? " in rows" : "", m, n, k);
  if (name.find(filter) == std::string::npos) return;
  const int64_t bytes = row_bytes(dtype, k) * n;
  std::vector<std::byte> memory;
  auto weights =
      make_weights(dtype, n, k, m <= kFewRows ? (kColdBytes + bytes - 1) / bytes : 1, memory);
  ArenaScope scope(ctx.scratch());
  if (order == Order::kTiles) take_tiles(ctx, scope, weights);
  const Rows x = scope.rows(m, k), y = scope.rows(m, n);
  for (int64_t i = 0; i < m * k; ++i)
    x.data[i] = static_cast<float>(random_uniform({.seed = 2}, static_cast<uint64_t>(i)) - 0.5);
  measure(ctx.pool().threads(), probe,
          {name, 2.0 * static_cast<double>(m * n * k), static_cast<double>(bytes),
           m <= 2 ? Roof::kRead : roof_of(dtype), [&](int64_t sample) {
             linear(ctx, x, weights[static_cast<size_t>(sample) % weights.size()], nullptr, y);
           }});
}

// 512 tokens, top 6 of 64 experts, drawn evenly.
void grouped_case(Context& ctx, RoofProbe& probe, DType dtype, int64_t n, int64_t k,
                  const std::string& filter) {
  constexpr int64_t kExperts = 64, kRows = 512 * 6;
  const std::string name = fmt::format("{} grouped 3072x{}x{}", dtype_name(dtype), n, k);
  if (name.find(filter) == std::string::npos) return;
  std::vector<std::byte> memory;
  auto experts = make_weights(dtype, n, k, kExperts, memory);
  std::vector<int64_t> offsets(kExperts + 1, 0);
  for (uint64_t i = 0; i < kRows; ++i) ++offsets[1 + random_bits({.seed = 3}, i) % kExperts];
  for (size_t e = 0; e < kExperts; ++e) offsets[e + 1] += offsets[e];
  ArenaScope scope(ctx.scratch());
  take_tiles(ctx, scope, experts);
  const Rows x = scope.rows(kRows, k), y = scope.rows(kRows, n);
  std::fill(x.data, x.data + kRows * k, 0.01f);
  measure(ctx.pool().threads(), probe,
          {name, 2.0 * static_cast<double>(kRows * n * k),
           static_cast<double>(row_bytes(dtype, k) * n * kExperts), roof_of(dtype),
           [&](int64_t) { grouped_linear(ctx, x, offsets, experts, y); }});
}

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

int bench(int threads, const std::string& filter, Isa isa) {
  Context ctx(threads, isa);
  const Roofs roofs = measure_roofs(ctx, 2);
  fmt::print("{}, {} threads, {}, {}\n", cpu_name(), threads, isa_name(ctx.isa()), __VERSION__);
  fmt::print(
      "roofs: f32 {:.0f} GFLOP/s, bf16 {:.0f} GFLOP/s, int8 {:.0f} GOP/s, read {:.1f} GB/s\n",
      roofs.f32_flops / 1e9, roofs.bf16_flops / 1e9, roofs.int8_ops / 1e9, roofs.read_bytes / 1e9);
  RoofProbe probe(ctx);
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (int64_t m : {1, 2, 4, 8, 16, 32, 64, 128, 512})
      linear_case(ctx, probe, dtype, m, 2048, 2048, filter);
    for (int64_t k : {256, 512}) linear_case(ctx, probe, dtype, 512, 4096, k, filter);
    for (int64_t n : {1408, 10944, 102400}) linear_case(ctx, probe, dtype, 1, n, 2048, filter);
    grouped_case(ctx, probe, dtype, 1408, 2048, filter);
  }
  for (DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ5_0, DType::kIQ4_NL, DType::kQ4_K,
                      DType::kQ5_K, DType::kQ6_K, DType::kMXFP4, DType::kF16, DType::kF8E4M3}) {
    for (int64_t m : {1, 2, 3, 4, 6, 8, 16, 64, 512})
      linear_case(ctx, probe, dtype, m, 2048, 2048, filter);
    grouped_case(ctx, probe, dtype, 1408, 2048, filter);
    if (dtype_info(dtype).block_elements == 1) continue;
    for (int64_t m : {1, 8, 512})
      linear_case(ctx, probe, dtype, m, 2048, 2048, filter, Order::kRows);
  }
  return 0;
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  int threads = fathom::available_cores();
  if (argc > 1) threads = std::clamp(static_cast<int>(std::strtol(argv[1], nullptr, 10)), 1, 256);
  fathom::Isa isa = fathom::detect_isa();
  if (argc > 3) {
    const std::optional<fathom::Isa> named = fathom::isa_named(argv[3]);
    if (!named || !fathom::has_isa(*named)) {
      fmt::print(stderr, "gemm_bench: no instruction set of this CPU: {}\n", argv[3]);
      return 2;
    }
    isa = *named;
  }
  return fathom::bench(threads, argc > 2 ? argv[2] : "", isa);
}
