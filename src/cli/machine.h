// What this machine has, beside memory (base/memory.h).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace fathom {

// `root` stands for "/": tests give a made-up tree.
std::string cpu_name(const std::filesystem::path& root = "/");
// The vector extensions of the CPU that matter here, in the kernel's spelling: "avx2",
// "avx512_bf16", "amx_tile", ...
std::vector<std::string> cpu_vector_flags(const std::filesystem::path& root = "/");

struct HugePages {
  std::string transparent;  // "always", "madvise", "never" or "" if unknown
  uint64_t reserved = 0;
};
HugePages huge_pages(const std::filesystem::path& root = "/");

}  // namespace fathom
