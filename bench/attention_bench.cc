// attention_bench [portable, avx2, avxvnni or avx512; default: this CPU's best]
//
// Attention of real models: MLA absorbed decode (V2-Lite: 16 heads, V3: 128), GQA decode
// (Qwen2-1.5B), MLA expanded prefill and the gradients of training, on all cores. FLOPs for each
// head and visible (query, key) pair: forward 2 (d + value dim), backward 2 (3 d + 2 value dim) =
// S, dQ, dK and dP, dV, with d = d1 + d2;
// bytes: each visible row of the cache once. of_roof compares with the roof of the products' type,
// the larger of two probes, before and after the run: other tenants slow both. of_roof_cpu divides
// by the processor time of all threads instead: what other tenants took does not count.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <optional>
#include <string>
#include <vector>

#include "base/random.h"
#include "kernels/attention.h"
#include "kernels/attention_backward.h"
#include "kernels/cached_rows.h"
#include "kernels/roofline.h"

namespace fathom {
namespace {

struct Shape {
  std::string name;
  int64_t heads, kv_heads, key_dim, rope_dim, value_dim;
  bool absorbed;
  DType dtype;
  int64_t tokens;
};

const Shape kAbsorbed16{"absorbed decode, 16 heads", 16, 1, 576, 0, 512, true, DType::kBF16, 1};
const Shape kAbsorbed128{"absorbed decode, 128 heads", 128, 1, 576, 0, 512, true, DType::kBF16, 1};
const Shape kAbsorbed16Int8{
    "absorbed decode, int8, 16 heads", 16, 1, 576, 0, 512, true, DType::kI8, 1};
const Shape kAbsorbed128Int8{
    "absorbed decode, int8, 128 heads", 128, 1, 576, 0, 512, true, DType::kI8, 1};
const Shape kGqaInt8{"GQA decode, int8, 12 / 2 heads", 12, 2, 128, 0, 128, false, DType::kI8, 1};
const Shape kGqa{"GQA decode, 12 / 2 heads", 12, 2, 128, 0, 128, false, DType::kBF16, 1};
const Shape kExpanded{"MLA expanded, 16 heads", 16, 16, 128, 64, 128, false, DType::kF32, 512};
const Shape kExpandedBf16{
    "MLA expanded, bf16, 16 heads", 16, 16, 192, 0, 128, false, DType::kBF16, 512};
const Shape kAbsorbedPrefill{
    "absorbed prefill, 16 heads", 16, 1, 576, 0, 512, true, DType::kBF16, 512};
const Shape kGqaPrefill{"GQA prefill, 12 / 2 heads", 12, 2, 128, 0, 128, false, DType::kBF16, 512};
const Shape kTinyTraining{"MLA tiny", 4, 4, 32, 16, 32, false, DType::kF32, 512};
const Shape kGqaTraining{"GQA, 12 / 2 heads", 12, 2, 128, 0, 128, false, DType::kF32, 512};

std::vector<float> random_floats(int64_t n, uint64_t stream) {
  std::vector<float> x(static_cast<size_t>(n));
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(random_uniform({.sequence = stream}, i)) * 2 - 1;
  }
  return x;
}

struct Part {
  Part(DType dtype, int64_t rows, int64_t heads, int64_t dim, uint64_t stream) {
    const int64_t width = heads * dim, bytes = cached_row_bytes(dtype, width);
    memory.resize(static_cast<size_t>(rows * bytes / 4));
    const std::vector<float> values = random_floats(rows * width, stream);
    auto* base = reinterpret_cast<std::byte*>(memory.data());
    const Isa isa = detect_isa();
    for (int64_t r = 0; r < rows; ++r)
      store_cached_row(isa, dtype, values.data() + r * width, width, base + r * bytes);
    view = cached_part(dtype, base, width, 0, heads > 1 ? dim : 0, dim);
  }
  std::vector<float> memory;
  CachedPart view;
};

std::vector<int64_t> consecutive_blocks(int64_t keys) {
  std::vector<int64_t> rows(static_cast<size_t>((keys + kKeyBlock - 1) / kKeyBlock));
  for (size_t b = 0; b < rows.size(); ++b) rows[b] = static_cast<int64_t>(b) * kKeyBlock;
  return rows;
}

template <class Body>
void measure(benchmark::State& state, Context& ctx, DType dtype, int64_t flops, Body body) {
  RoofProbe probe(ctx);
  const auto measure_roof = [&] {
    return dtype == DType::kI8     ? probe.int8_ops()
           : dtype == DType::kBF16 ? probe.bf16_flops()
                                   : probe.f32_flops();
  };
  double roof = measure_roof();
  body();  // the arenas grow
  const std::clock_t begin = std::clock();
  for (auto _ : state) {
    body();
    benchmark::ClobberMemory();
  }
  const double cpu_seconds =
      static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC / ctx.pool().threads();
  roof = std::max(roof, measure_roof());
  const auto count = static_cast<double>(flops);
  state.counters["FLOPs"] =
      benchmark::Counter(count, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_roof"] =
      benchmark::Counter(count / roof, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_roof_cpu"] =
      count * static_cast<double>(state.iterations()) / cpu_seconds / roof;
}

void run(benchmark::State& state, Context& ctx, const Shape& shape, int64_t keys) {
  const Part key(shape.dtype, keys, shape.kv_heads, shape.key_dim, 1),
      rope(shape.dtype, keys, 1, shape.rope_dim, 2);
  const Part value(shape.dtype, shape.absorbed ? 0 : keys, shape.kv_heads, shape.value_dim, 3);
  const std::vector<int64_t> block_rows = consecutive_blocks(keys);
  AttentionKeys cache{key.view, rope.view, shape.absorbed ? key.view : value.view, block_rows};
  cache.value.dim = shape.value_dim;
  const int64_t d = shape.key_dim + shape.rope_dim, q_cols = shape.heads * d,
                out_cols = shape.heads * shape.value_dim;
  const std::vector<float> q = random_floats(shape.tokens * q_cols, 4);
  std::vector<float> out(static_cast<size_t>(shape.tokens * out_cols));
  const float scale = 1 / std::sqrt(static_cast<float>(d));

  const int64_t first = keys - shape.tokens + 1, pairs = (first + keys) * shape.tokens / 2;
  measure(state, ctx, shape.dtype, pairs * shape.heads * 2 * (d + shape.value_dim), [&] {
    attention(ctx, {q.data(), shape.tokens, q_cols, q_cols}, keys - shape.tokens, shape.heads,
              shape.kv_heads, scale, cache, {out.data(), shape.tokens, out_cols, out_cols});
  });
  const int64_t cached_dims =
      shape.kv_heads * (shape.key_dim + (shape.absorbed ? 0 : shape.value_dim)) + shape.rope_dim;
  state.counters["bytes"] =
      benchmark::Counter(static_cast<double>(keys * cached_row_bytes(shape.dtype, cached_dims)),
                         benchmark::Counter::kIsIterationInvariantRate);
}

void run_backward(benchmark::State& state, Context& ctx, const Shape& shape, int64_t tokens) {
  const Part key(shape.dtype, tokens, shape.kv_heads, shape.key_dim, 1),
      rope(shape.dtype, tokens, 1, shape.rope_dim, 2);
  const Part value(shape.dtype, tokens, shape.kv_heads, shape.value_dim, 3);
  const std::vector<int64_t> block_rows = consecutive_blocks(tokens);
  const AttentionKeys keys{key.view, rope.view, value.view, block_rows};
  const int64_t d = shape.key_dim + shape.rope_dim, q_cols = shape.heads * d,
                out_cols = shape.heads * shape.value_dim;
  const std::vector<float> q = random_floats(tokens * q_cols, 4),
                           dout = random_floats(tokens * out_cols, 5);
  std::vector<float> dq(q.size()), dkey(key.memory.size()), drope(rope.memory.size()),
      dvalue(value.memory.size());
  const AttentionGradients gradients{{dkey.data(), key.view.row_stride, shape.key_dim},
                                     {drope.data(), shape.rope_dim, 0},
                                     {dvalue.data(), value.view.row_stride, shape.value_dim}};

  const int64_t pairs = (1 + tokens) * tokens / 2;
  measure(state, ctx, DType::kF32, pairs * shape.heads * 2 * (3 * d + 2 * shape.value_dim), [&] {
    attention_backward(ctx, {q.data(), tokens, q_cols, q_cols}, shape.heads, shape.kv_heads,
                       1 / std::sqrt(static_cast<float>(d)), keys,
                       {dout.data(), tokens, out_cols, out_cols},
                       {dq.data(), tokens, q_cols, q_cols}, gradients);
  });
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  using namespace fathom;
  benchmark::Initialize(&argc, argv);
  const std::optional<Isa> isa = argc > 1 ? isa_named(argv[1]) : detect_isa();
  if (argc > 2 || !isa || !has_isa(*isa)) {
    fmt::print(stderr,
               "attention_bench: found {}, expected one of portable, avx2, avxvnni and avx512 that "
               "this CPU has, or --benchmark_...\n",
               argv[argc - 1]);
    return 2;
  }
  Context ctx(available_cores(), *isa);
  benchmark::AddCustomContext("target", std::string(isa_name(ctx.isa())));
  benchmark::AddCustomContext("threads", std::to_string(ctx.pool().threads()));
  const auto add = [&](const Shape& shape, int64_t keys) {
    benchmark::RegisterBenchmark(
        fmt::format("{}/{} keys", shape.name, keys).c_str(),
        [&ctx, shape, keys](benchmark::State& s) { run(s, ctx, shape, keys); })
        ->UseRealTime();
  };
  for (const Shape& decode :
       {kAbsorbed16, kAbsorbed128, kGqa, kAbsorbed16Int8, kAbsorbed128Int8, kGqaInt8}) {
    for (const int64_t keys : {1024, 4096, 16384}) add(decode, keys);
  }
  add(kExpanded, 512);
  add(kExpanded, 4096);
  add(kExpandedBf16, 512);
  add(kExpandedBf16, 2048);
  add(kAbsorbedPrefill, 2048);
  add(kGqaPrefill, 512);
  const auto add_backward = [&](const Shape& shape, int64_t tokens) {
    benchmark::RegisterBenchmark(
        fmt::format("backward, {}/{} tokens", shape.name, tokens).c_str(),
        [&ctx, shape, tokens](benchmark::State& s) { run_backward(s, ctx, shape, tokens); })
        ->UseRealTime();
  };
  add_backward(kExpanded, 512);
  add_backward(kExpanded, 2048);
  add_backward(kGqaTraining, 512);
  add_backward(kTinyTraining, 64);
  add_backward(kTinyTraining, 512);
  benchmark::RunSpecifiedBenchmarks();
}
