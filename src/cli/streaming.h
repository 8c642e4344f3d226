// Models that are larger than memory: what of them stays, what is read again and again, and how
// fast that can be, said before anything is loaded.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "base/memory.h"
#include "cli/models.h"
#include "model/expert_cache.h"

namespace fathom {

// memory_state(), narrowed to `limit_gib` of available memory (--memory; 0 = not).
MemoryState usable_memory(double limit_gib);
// What narrowed it, to be put behind the figure: " (--memory)", " (limit of this container)" or "".
std::string_view memory_limit_text(const MemoryState& usable, double limit_gib);

// The plan for a model that needs more than is available, and whose routed experts are why: what
// every token needs stays, experts get the rest but for a sixteenth of what is available, kept for
// what nobody counts. The disk is not measured yet: kProbeSeconds of measure_expert_reads(). Absent
// if there are no experts to stream, or too little is left for them.
inline constexpr double kProbeSeconds = 0.3;
std::optional<StreamPlan> plan_streaming(const Checkpoint& checkpoint, const ModelConfig& config,
                                         const MemoryNeeds& needs, uint64_t available);

// "64 of 128 experts fit into memory (50 %, 1.2 GiB); ...", with what it assumes.
std::string stream_text(const StreamPlan& plan);
nlohmann::ordered_json stream_json(const StreamPlan& plan);

}  // namespace fathom
