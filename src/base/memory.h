// How much memory this process may still take: what the machine has free or can free, narrowed by the limits
// of its container (cgroup version 1 or 2, its own group and those above).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace fathom {

// Bytes, not counting swap; file pages that can be dropped count as available. Absent if the system does not
// say. `root` stands for "/": tests give a made-up tree.
std::optional<uint64_t> available_memory(const std::filesystem::path& root = "/");

}  // namespace fathom
