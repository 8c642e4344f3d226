// What this machine has. Limits of containers (cgroups) count as the machine.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fathom {

struct MemoryState {
  uint64_t total = 0;
  uint64_t available = 0;  // without swapping; file pages that can be dropped count
  bool limited = false;    // by a cgroup, to less than the machine has
};
// `root` stands for "/": tests give a made-up tree.
MemoryState memory_state(const std::filesystem::path& root = "/");

std::string cpu_name(const std::filesystem::path& root = "/");
// The vector extensions of the CPU that matter here, in the kernel's spelling: "avx2", "avx512_bf16", "amx_tile", ...
std::vector<std::string> cpu_vector_flags(const std::filesystem::path& root = "/");

struct HugePages {
  std::string transparent;  // "always", "madvise", "never" or "" if unknown
  uint64_t reserved = 0;
};
HugePages huge_pages(const std::filesystem::path& root = "/");

}  // namespace fathom
