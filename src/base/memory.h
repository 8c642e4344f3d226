// How much memory this process may still take: what the machine has free or can free, narrowed by
// the limits of its container (cgroup version 1 or 2, its own group and those above).
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>

namespace fathom {

struct MemoryState {
  uint64_t total = 0;      // of the machine or the tightest limit
  uint64_t available = 0;  // not counting swap; file pages that can be dropped count
  bool limited = false;    // by a container, to less than the machine has
};
// Absent if the system does not say. `root` stands for "/": tests give a made-up tree.
std::optional<MemoryState> memory_state(const std::filesystem::path& root = "/");
// the one figure of it
std::optional<uint64_t> available_memory(const std::filesystem::path& root = "/");

// What the limits of this process itself (RLIMIT_DATA, RLIMIT_AS) leave for memory of its own, as
// against files it maps; absent without such limits.
std::optional<uint64_t> own_memory_left(const std::filesystem::path& root = "/");

// What this process holds in memory: pages of mapped files, and its own.
struct ResidentMemory {
  uint64_t file = 0, anonymous = 0;
};
// Zeros if the system does not say.
ResidentMemory resident_memory(const std::filesystem::path& root = "/");

}  // namespace fathom
