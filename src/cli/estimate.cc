#include "cli/estimate.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/models.h"
#include "cli/streaming.h"
#include "engine/engine.h"

namespace fathom {
namespace {

std::vector<int64_t> context_ladder(const EstimateOptions& options, const ModelConfig& config) {
  for (const int64_t context : options.contexts) {
    if (context < 1 || context > config.max_position_embeddings) {
      fail("--ctx: found {}, expected 1 to {} (max_position_embeddings)", context,
           config.max_position_embeddings);
    }
  }
  if (!options.contexts.empty()) return options.contexts;
  std::vector<int64_t> ladder;
  for (int64_t context = 4096; context < config.max_position_embeddings; context *= 4)
    ladder.push_back(context);
  ladder.push_back(config.max_position_embeddings);
  return ladder;
}

}  // namespace

int run_estimate(const EstimateOptions& options) {
  const Checkpoint checkpoint = Checkpoint::open(resolve_model(options.model));
  const ModelConfig config = load_config(checkpoint);
  const ModelSizes sizes = measure_model(checkpoint, &config);
  const std::vector<int64_t> contexts = context_ladder(options, config);
  const MemoryState memory = usable_memory(options.memory_gib);
  const MemoryNeeds first =
      plan_memory(checkpoint, config, sizes, contexts.front(), DType::kBF16, memory.available, true)
          .needs;
  const auto wanted = parse_cache_dtype(options.cache);
  if (wanted) check_cache_dtype(config, *wanted);
  if (!options.json) {
    out("{}\n\n", true_name(checkpoint, config, std::nullopt, sizes));
    out("  weights    {:>10}   (in the files; share of each token read: {:.0f} %)\n",
        bytes_text(sizes.bytes),
        sizes.parameters == 0 ? 0
                              : 100.0 * static_cast<double>(sizes.active_parameters) /
                                    static_cast<double>(sizes.parameters));
    out("  rebuilt    {:>10}   (projections kept in a second form)\n", bytes_text(first.rebuilt));
    out("  work       {:>10}   (one step of {} tokens)\n", bytes_text(first.work), first.chunk);
    out("  available  {:>10}   of {}{}\n\n", bytes_text(memory.available), bytes_text(memory.total),
        memory_limit_text(memory, options.memory_gib));
    out("  {:>9}  {:<5}  {:>10}  {:>10}\n", "context", "cache", "cache", "total");
  }
  double disk_rate = 0;
  for (const int64_t context : contexts) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
      if (wanted ? *wanted != dtype : !takes_cache_dtype(config, dtype)) continue;
      auto [needs, fits, plan] =
          plan_memory(checkpoint, config, sizes, context, dtype, memory.available, true);
      if (plan) {
        if (disk_rate == 0) disk_rate = measure_expert_reads(checkpoint, config, kProbeSeconds);
        plan->disk_bytes_per_second = disk_rate;
      }
      const std::string_view name = dtype == DType::kF32    ? "f32"
                                    : dtype == DType::kBF16 ? "bf16"
                                                            : "int8";
      if (options.json) {
        nlohmann::ordered_json line = {{"context", context},
                                       {"cache", name},
                                       {"weight_bytes", needs.weights},
                                       {"rebuilt_bytes", needs.rebuilt},
                                       {"work_bytes", needs.work},
                                       {"chunk_tokens", needs.chunk},
                                       {"cache_bytes", needs.cache},
                                       {"total_bytes", needs.total},
                                       {"available_bytes", memory.available},
                                       {"fits", fits}};
        if (plan) line["streaming"] = stream_json(*plan);
        print_json(line);
      } else {
        out("  {:>9}  {:<5}  {:>10}  {:>10}  {}\n", context, name, bytes_text(needs.cache),
            bytes_text(needs.total),
            fits   ? "fits"
            : plan ? fmt::format("streamed: {:.0f} % of the experts in memory, {} a token from "
                                 "disk ({}/s): at most {:.2g} tok/s",
                                 100 * plan->kept(),
                                 bytes_text(static_cast<uint64_t>(plan->token_read_bytes)),
                                 bytes_text(static_cast<uint64_t>(plan->disk_bytes_per_second)),
                                 plan->tokens_per_second())
                   : fmt::format("does not fit: {} missing",
                                 bytes_text(needs.total - memory.available)));
      }
    }
  }
  return 0;
}

}  // namespace fathom
