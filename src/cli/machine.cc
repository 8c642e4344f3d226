#include "cli/machine.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <fstream>
#include <optional>
#include <sstream>

#include "base/error.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

// Files of /proc and /sys: their size reads as 0, so read_file is not for them. Empty if missing.
std::string read_system_file(const fs::path& path) {
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  return in ? text.str() : "";
}

std::optional<uint64_t> leading_number(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == text.npos) return std::nullopt;
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data() + begin, text.data() + text.size(), value);
  return error == std::errc{} ? std::optional(value) : std::nullopt;
}

// The text after `key` on the first line that begins with it.
std::string_view field(std::string_view text, std::string_view key) {
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    if (line.starts_with(key)) return line.substr(key.size());
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return {};
}

// Narrows `memory` by the group at `group` and all above it: limit, and limit minus what is used and cannot be dropped.
void apply_cgroup(const fs::path& mount, fs::path group, const char* limit_file, const char* usage_file, MemoryState& memory) {
  while (true) {
    const auto limit = leading_number(read_system_file(mount / group / limit_file));
    if (limit && *limit < memory.total) {
      memory.total = *limit;
      memory.limited = true;
    }
    if (limit && memory.limited) {
      const std::string stat = read_system_file(mount / group / "memory.stat");
      const uint64_t usage = leading_number(read_system_file(mount / group / usage_file)).value_or(0);
      const uint64_t droppable = leading_number(field(stat, "inactive_file ")).value_or(0) + leading_number(field(stat, "active_file ")).value_or(0);
      const uint64_t fixed = usage - std::min(usage, droppable);
      memory.available = std::min(memory.available, *limit - std::min(*limit, fixed));
    }
    if (group.empty()) return;
    group = group.parent_path();
  }
}

}  // namespace

MemoryState memory_state(const fs::path& root) {
  const std::string meminfo = read_system_file(root / "proc/meminfo");
  MemoryState memory;
  memory.total = leading_number(field(meminfo, "MemTotal:")).value_or(0) * 1024;
  memory.available = leading_number(field(meminfo, "MemAvailable:")).value_or(0) * 1024;
  const std::string groups = read_system_file(root / "proc/self/cgroup");
  const auto group_after = [&](std::string_view key) { return fs::path(field(groups, key)).relative_path(); };
  apply_cgroup(root / "sys/fs/cgroup", group_after("0::"), "memory.max", "memory.current", memory);
  std::istringstream lines(groups);
  for (std::string line; std::getline(lines, line);) {  // version 1: "5:memory:/path"
    const size_t at = line.find(":memory:");
    if (at != line.npos) {
      apply_cgroup(root / "sys/fs/cgroup/memory", fs::path(line.substr(at + 8)).relative_path(), "memory.limit_in_bytes",
                   "memory.usage_in_bytes", memory);
    }
  }
  return memory;
}

std::string cpu_name(const fs::path& root) {
  const std::string info = read_system_file(root / "proc/cpuinfo");
  const std::string_view value = field(info, "model name");
  const size_t begin = value.find_first_not_of("\t :");
  return begin == value.npos ? "unknown CPU" : std::string(value.substr(begin));
}

std::vector<std::string> cpu_vector_flags(const fs::path& root) {
  constexpr std::array<std::string_view, 14> kFlags = {"f16c",         "fma",         "avx2",       "avx_vnni",  "avx512f",
                                                       "avx512bw",     "avx512dq",    "avx512vl",   "avx512_vnni", "avx512_bf16",
                                                       "avx512_fp16",  "amx_tile",    "amx_bf16",   "amx_int8"};
  const std::string info = read_system_file(root / "proc/cpuinfo");
  std::istringstream words{std::string(field(info, "flags"))};
  std::vector<std::string> found;
  for (std::string word; words >> word;) {
    if (std::find(kFlags.begin(), kFlags.end(), word) != kFlags.end()) found.push_back(word);
  }
  return found;
}

HugePages huge_pages(const fs::path& root) {
  HugePages pages;
  const std::string modes = read_system_file(root / "sys/kernel/mm/transparent_hugepage/enabled");
  const size_t begin = modes.find('['), end = modes.find(']');
  if (begin != modes.npos && end != modes.npos && end > begin) pages.transparent = modes.substr(begin + 1, end - begin - 1);
  pages.reserved = leading_number(field(read_system_file(root / "proc/meminfo"), "HugePages_Total:")).value_or(0);
  return pages;
}

}  // namespace fathom
