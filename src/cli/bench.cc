#include "cli/bench.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/random.h"
#include "cli/interrupt.h"
#include "cli/models.h"
#include "engine/engine.h"
#include "kernels/gemm.h"
#include "kernels/roofline.h"

namespace fathom {
namespace {

// Work of one step, by the unit that limits it.
struct Cost {
  double bytes = 0;
  double f32_flops = 0, bf16_flops = 0, int8_ops = 0;

  void add_weight(const WeightView& w, double rows, double share = 1) {
    if (w.empty()) return;
    bytes += share * static_cast<double>(
                         w.rows * row_bytes(w.dtype, w.cols) +
                         (w.block_scales != nullptr ? (w.rows + 127) / 128 * w.scale_cols * 4 : 0));
    const double flops = share * 2 * rows * static_cast<double>(w.rows * w.cols);
    const bool blocks = dtype_info(w.dtype).block_elements > 1;
    (blocks ? int8_ops : w.dtype == DType::kBF16 ? bf16_flops : f32_flops) += flops;
  }
  double shortest_seconds(const Roofs& roofs) const {
    // without an instruction for them, bytes are multiplied no faster than f32
    const double int8 = std::max(roofs.int8_ops, roofs.f32_flops);
    return std::max(f32_flops / roofs.f32_flops + bf16_flops / roofs.bf16_flops + int8_ops / int8,
                    bytes / roofs.read_bytes);
  }
};

void add_mlp(const MlpWeights& mlp, double rows, Cost& cost) {
  for (const Linear* w : {&mlp.gate_proj, &mlp.up_proj, &mlp.down_proj})
    cost.add_weight(w->weight, rows);
}

void add_block(const BlockWeights& block, const ModelConfig& config, double rows, Cost& cost) {
  if (block.mla) {
    const MlaWeights& w = *block.mla;
    for (const Linear* v : {&w.q_proj, &w.q_a_proj, &w.q_b_proj, &w.kv_a_proj_with_mqa, &w.o_proj})
      cost.add_weight(v->weight, rows);
    for (const WeightView& v : w.absorbed.k_up_transposed) cost.add_weight(v, rows);
    for (const WeightView& v : w.absorbed.v_up) cost.add_weight(v, rows);
  } else {
    for (const Linear* v :
         {&block.gqa->q_proj, &block.gqa->k_proj, &block.gqa->v_proj, &block.gqa->o_proj})
      cost.add_weight(v->weight, rows);
  }
  if (block.mlp) add_mlp(*block.mlp, rows, cost);
  if (!block.moe) return;
  const MoeWeights& moe = *block.moe;
  if (moe.shared_experts) add_mlp(*moe.shared_experts, rows, cost);
  // Rows choose experts about evenly: of E experts, 1 - (1 - k/E)^rows are read; each row pays for
  // k.
  const double chosen = static_cast<double>(config.router.num_experts_per_tok) /
                        static_cast<double>(config.n_routed_experts);
  const double read = 1 - std::pow(1 - chosen, rows);
  for (const auto* part : {&moe.gate_proj, &moe.up_proj, &moe.down_proj}) {
    for (const WeightView& expert : part->weight) {
      cost.add_weight(expert, rows * chosen / read, read);
    }
  }
}

// `rows` new tokens after `context` cached ones, logits of the last.
Cost step_cost(const Model& model, int64_t context, int64_t rows, DType cache_dtype) {
  const ModelConfig& c = model.config();
  Cost cost;
  for (const BlockWeights& block : model.weights().layers)
    add_block(block, c, static_cast<double>(rows), cost);
  cost.add_weight(model.weights().lm_head.weight, 1);
  const double pairs = static_cast<double>(rows) *
                       (static_cast<double>(context) + static_cast<double>(rows + 1) / 2);
  const double per_pair = c.is_mla() ? static_cast<double>(2 * c.kv_lora_rank + c.qk_rope_head_dim)
                                     : static_cast<double>(2 * c.head_dim);
  cost.f32_flops +=
      2 * pairs * per_pair * static_cast<double>(c.num_attention_heads * c.num_hidden_layers);
  cost.bytes +=
      static_cast<double>(context * KvCache::bytes_per_token(c, c.num_hidden_layers, cache_dtype));
  return cost;
}

void report(const BenchOptions& options, const std::string& work, int64_t context, double tokens,
            const std::vector<double>& seconds, const Cost& cost, const Roofs& roofs) {
  const Spread s = spread_of(seconds);
  const double share = cost.shortest_seconds(roofs) / s.median;
  const double gflops = (cost.f32_flops + cost.bf16_flops + cost.int8_ops) / s.median / 1e9,
               gbytes = cost.bytes / s.median / 1e9;
  if (options.json) {
    print_json({{"work", work},
                {"context", context},
                {"tokens", tokens},
                {"tokens_per_second", tokens / s.median},
                {"seconds", {{"median", s.median}, {"p10", s.low}, {"p90", s.high}}},
                {"gflops", gflops},
                {"gbytes_per_second", gbytes},
                {"share_of_roof", share}});
    return;
  }
  out("  {:<14} {:>8}  {:>9.1f}  {:>6.1f} - {:<8.1f} {:>8.1f}  {:>6.1f}   {:3.0f} %\n", work,
      context, tokens / s.median, tokens / s.high, tokens / s.low, gflops, gbytes, share * 100);
}

Request random_request(const Model& model, int64_t prompt_tokens, int64_t max_tokens) {
  const RandomKey key{1, RandomPurpose::kTest, 0};
  Request request;
  for (int64_t i = 0; i < prompt_tokens; ++i) {
    request.prompt.push_back(
        static_cast<int32_t>(random_bits(key, static_cast<uint64_t>(i)) %
                             static_cast<uint64_t>(model.config().vocab_size)));
  }
  request.max_tokens = max_tokens;  // no stop ids: it runs to the end
  return request;
}

// Seconds of prefill (with the first token), and of each decode step after it.
struct Timing {
  double prefill = 0;
  std::vector<double> decode;
};

Timing time_request(Engine& engine, Request request) {
  Timing timing;
  const uint64_t id = engine.submit(std::move(request));
  std::vector<TokenEvent> events;
  bool first = true;
  while (true) {
    const double begin = seconds_now();
    events.clear();
    FATHOM_CHECK(engine.step(events));
    const double seconds = seconds_now() - begin;
    (first ? timing.prefill : timing.decode.emplace_back()) += seconds;
    for (const TokenEvent& event : events) {
      FATHOM_CHECK(event.request == id, event.request, id);
      if (event.finish == FinishReason::kNumericalError)
        throw Error(ExitCode::kDiverged, "bench: logits are not finite");
      if (event.finish != FinishReason::kNone) return timing;
      first = false;
    }
    check_interrupt();
  }
}

void bench_model(const BenchOptions& options, Context& ctx, const Roofs& roofs) {
  // The prompt of a decode line is at least one token; each request ends with one token that needs
  // no row but counts.
  const auto decode_tokens = [&](int64_t context) {
    return std::max<int64_t>(1, context) + options.generate + 1;
  };
  OpenOptions open;
  for (const int64_t n : options.prefill)
    open.context_tokens = std::max(open.context_tokens, n + 1);
  for (const int64_t n : options.contexts)
    open.context_tokens = std::max(open.context_tokens, decode_tokens(n));
  open.cache_dtype = parse_cache_dtype(options.cache);
  const OpenedModel opened = open_model(resolve_model(options.model), open, options.output);
  const Model& model = opened.model;
  const int64_t longest = model.config().max_position_embeddings;
  EngineOptions engine_options;
  engine_options.context_tokens = std::min(open.context_tokens, longest);
  engine_options.cache_dtype = open.cache_dtype.value_or(default_cache_dtype(model));
  // the same prompts come again and again, and each is to be computed
  engine_options.prefix_cache = false;
  Engine engine(model, ctx, engine_options);
  if (!options.json) {
    out("{}\n{} threads, {}, cache {}\n\n", opened.name, ctx.pool().threads(), isa_name(ctx.isa()),
        dtype_name(engine_options.cache_dtype));
    out("  {:<14} {:>8}  {:>9}  {:>17} {:>8}  {:>6}   roof\n", "", "context", "tok/s", "10 - 90 %",
        "GFLOP/s", "GB/s");
  }
  const auto fits = [&](std::string_view flag, int64_t n, int64_t tokens) {
    if (tokens > longest && !options.output.quiet)
      note("note: {} {}: left out: takes {} tokens, the model's context is {}", flag, n, tokens,
           longest);
    return tokens <= longest;
  };
  InterruptScope scope;
  for (const int64_t n : options.prefill) {
    if (!fits("--prefill", n, n + 1)) continue;
    std::vector<double> seconds;
    for (int i = 0; i < options.repeat; ++i)
      seconds.push_back(time_request(engine, random_request(model, n, 1)).prefill);
    report(options, fmt::format("prefill {}", n), 0, static_cast<double>(n), seconds,
           step_cost(model, 0, n, engine_options.cache_dtype), roofs);
  }
  for (const int64_t context : options.contexts) {
    if (!fits("--at", context, decode_tokens(context))) continue;
    const Timing timing = time_request(
        engine, random_request(model, std::max<int64_t>(1, context), options.generate + 1));
    report(options, "decode", context, 1, timing.decode,
           step_cost(model, context + options.generate / 2, 1, engine_options.cache_dtype), roofs);
  }
}

// Matrices of one format, together larger than any cache, so that each call reads memory as a model
// does.
class WeightSet {
 public:
  WeightSet(DType dtype, int64_t rows, int64_t cols) {
    constexpr int64_t kTotalBytes = 256 << 20;
    const int64_t bytes = rows * row_bytes(dtype, cols);
    const int64_t count = std::max<int64_t>(1, kTotalBytes / bytes);
    memory_.resize(static_cast<size_t>(count * bytes / 8 + 8));
    fill(dtype);
    for (int64_t i = 0; i < count; ++i) {
      views_.push_back({dtype, rows, cols,
                        reinterpret_cast<const std::byte*>(memory_.data()) + i * bytes, nullptr,
                        0});
    }
  }
  const WeightView& next() { return views_[at_++ % views_.size()]; }

 private:
  // Any bits make a block; a scale whose upper byte is below 0x40 is finite in every format.
  void fill(DType dtype) {
    const RandomKey key{2, RandomPurpose::kTest, 0};
    // a prime number of words is random enough for timing and quick to make
    constexpr uint64_t kPeriod = 4099;
    std::vector<uint64_t> pattern(kPeriod);
    for (uint64_t i = 0; i < kPeriod; ++i) pattern[i] = random_bits(key, i) & 0x3f3f3f3f3f3f3f3f;
    if (dtype == DType::kF32 || dtype == DType::kBF16) {
      const bool wide = dtype == DType::kF32;
      for (uint64_t i = 0; i < kPeriod; ++i) {
        uint64_t word = 0;
        for (uint64_t j = 0; j < (wide ? 2 : 4); ++j) {
          const auto value = static_cast<float>(random_uniform(key, 4 * i + j) - 0.5);
          word |= wide ? uint64_t{std::bit_cast<uint32_t>(value)} << 32 * j
                       : uint64_t{f32_to_bf16(value)} << 16 * j;
        }
        pattern[i] = word;
      }
    }
    for (size_t i = 0; i < memory_.size(); ++i) memory_[i] = pattern[i % kPeriod];
  }

  std::vector<uint64_t> memory_;
  std::vector<WeightView> views_;
  size_t at_ = 0;
};

void bench_kernels(const BenchOptions& options, Context& ctx, const Roofs& roofs) {
  constexpr int64_t kRows = 2048, kCols = 2048;
  constexpr double kSeconds = 0.3;  // for each line
  if (!options.json) {
    out("{} threads, {}; roofs: f32 {:.0f}, bf16 {:.0f} GFLOP/s, int8 {:.0f} GOP/s, memory {:.1f} "
        "GB/s\n\n",
        ctx.pool().threads(), isa_name(ctx.isa()), roofs.f32_flops / 1e9, roofs.bf16_flops / 1e9,
        roofs.int8_ops / 1e9, roofs.read_bytes / 1e9);
    out("linear layers, {} x {} weights\n\n  {:<14} {:>8}  {:>9}  {:>17} {:>8}  {:>6}   roof\n",
        kRows, kCols, "", "", "rows/s", "10 - 90 %", "GFLOP/s", "GB/s");
  }
  for (const DType dtype :
       {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ6_K}) {
    WeightSet weights(dtype, kRows, kCols);
    for (const int64_t m : {1, 16, 512}) {
      std::vector<float> x(static_cast<size_t>(m * kCols), 0.5f), y(static_cast<size_t>(m * kRows));
      std::vector<double> seconds;
      const double begin = seconds_now();
      while (seconds.size() < 5 || seconds_now() - begin < kSeconds) {
        const double start = seconds_now();
        linear(ctx, {x.data(), m, kCols, kCols}, weights.next(), nullptr,
               {y.data(), m, kRows, kRows});
        seconds.push_back(seconds_now() - start);
      }
      Cost cost;
      cost.add_weight(weights.next(), static_cast<double>(m));
      report(options, fmt::format("{} x {}", dtype_name(dtype), m), 0, static_cast<double>(m),
             seconds, cost, roofs);
    }
  }
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  FATHOM_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
  };
  return {at(0.1), at(0.5), at(0.9)};
}

int run_bench(const BenchOptions& options) {
  if (options.repeat < 1) fail("--repeat: found {}, expected 1 or more", options.repeat);
  if (options.generate < 1) fail("--generate: found {}, expected 1 or more", options.generate);
  for (const int64_t n : options.prefill) {
    if (n < 1) fail("--prefill: found {}, expected 1 or more", n);
  }
  for (const int64_t n : options.contexts) {
    if (n < 0) fail("--at: found {}, expected 0 or more", n);
  }
  constexpr double kRoofSeconds = 2;
  Context ctx(thread_count(options.threads));
  if (!options.output.quiet) note("measuring the roofs ...");
  const Roofs roofs = measure_roofs(ctx, kRoofSeconds);
  if (options.kernels_only) {
    bench_kernels(options, ctx, roofs);
  } else {
    bench_model(options, ctx, roofs);
  }
  return 0;
}

}  // namespace fathom
