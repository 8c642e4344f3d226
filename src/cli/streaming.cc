#include "cli/streaming.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace fathom {
namespace {

uint64_t bytes_of(double gib) {
  return static_cast<uint64_t>(gib * static_cast<double>(uint64_t{1} << 30));
}

uint64_t less(uint64_t a, uint64_t b) { return a - std::min(a, b); }

}  // namespace

MemoryState usable_memory(double limit_gib) {
  MemoryState memory = memory_state().value_or(MemoryState{});
  // Where the system does not say what is available, the limit is all there is to go by.
  if (limit_gib > 0 && (memory.available == 0 || bytes_of(limit_gib) < memory.available))
    memory.available = bytes_of(limit_gib);
  return memory;
}

std::string_view memory_limit_text(const MemoryState& usable, double limit_gib) {
  if (limit_gib > 0 && usable.available == bytes_of(limit_gib)) return " (--memory)";
  return usable.limited ? " (limit of this container)" : "";
}

std::optional<StreamPlan> plan_streaming(const Checkpoint& checkpoint, const ModelConfig& config,
                                         const MemoryNeeds& needs, uint64_t available) {
  const auto layout = expert_layout(checkpoint, config);
  if (!layout || needs.total == UINT64_MAX) return std::nullopt;
  const uint64_t usable = available - available / 16;
  // Mapped files do not count against limits on a process's own memory.
  const uint64_t own = needs.total - needs.weights;
  const uint64_t left = std::min(less(usable, needs.total - layout->bytes),
                                 less(own_memory_left().value_or(UINT64_MAX), own + own / 16));
  StreamPlan plan;
  plan.expert_bytes = layout->bytes;
  plan.experts = layout->experts;
  plan.slots = static_cast<int64_t>(
      std::min(left / layout->slot_bytes, static_cast<uint64_t>(layout->experts)));
  if (plan.slots < layout->least_slots) return std::nullopt;
  plan.cache_bytes = static_cast<uint64_t>(plan.slots) * layout->slot_bytes;
  plan.token_read_bytes = static_cast<double>(layout->token_bytes) * (1 - plan.kept());
  return plan;
}

std::string stream_text(const StreamPlan& plan) {
  return fmt::format(
      "{} of {} experts fit into memory ({:.0f} %, {}); the others are read when they are "
      "chosen. If each is as likely as the next, a token reads {} from disk, which gives {}/s "
      "here: at most {:.{}f} tok/s",
      plan.slots, plan.experts, 100 * plan.kept(), bytes_text(plan.cache_bytes),
      bytes_text(static_cast<uint64_t>(plan.token_read_bytes)),
      bytes_text(static_cast<uint64_t>(plan.disk_bytes_per_second)), plan.tokens_per_second(),
      plan.tokens_per_second() < 10 ? 1 : 0);
}

nlohmann::ordered_json stream_json(const StreamPlan& plan) {
  return {{"experts", plan.experts},
          {"experts_in_memory", plan.slots},
          {"expert_cache_bytes", plan.cache_bytes},
          {"read_bytes_per_token", plan.token_read_bytes},
          {"disk_bytes_per_second", plan.disk_bytes_per_second},
          {"most_tokens_per_second", std::isfinite(plan.tokens_per_second())
                                         ? nlohmann::ordered_json(plan.tokens_per_second())
                                         : nlohmann::ordered_json(nullptr)}};
}

}  // namespace fathom
