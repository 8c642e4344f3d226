#include "base/memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <string>

namespace fathom {
namespace {

namespace fs = std::filesystem;

// The number behind `key` on the first line that begins with it.
std::optional<uint64_t> number_after(const fs::path& path, std::string_view key) {
  // files of /proc and /sys read as empty by size, so read_file is not for them
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (!line.starts_with(key)) continue;
    const size_t begin = std::min(line.find_first_not_of(" \t", key.size()), line.size());
    uint64_t value = 0;
    const auto [end, error] =
        std::from_chars(line.data() + begin, line.data() + line.size(), value);
    return error == std::errc{} ? std::optional(value) : std::nullopt;  // "max": no limit
  }
  return std::nullopt;
}

// Narrows `memory` by the group and all above it. A container may not see its own group's folder,
// only the mount.
void apply_groups(const fs::path& mount, fs::path group, const char* limit_file,
                  const char* usage_file, MemoryState& memory) {
  while (true) {
    if (const auto limit = number_after(mount / group / limit_file, "")) {
      const fs::path stat = mount / group / "memory.stat";
      const uint64_t usage = number_after(mount / group / usage_file, "").value_or(0);
      const uint64_t droppable = number_after(stat, "inactive_file ").value_or(0) +
                                 number_after(stat, "active_file ").value_or(0);
      const uint64_t held = usage - std::min(usage, droppable);
      memory.limited |= *limit < memory.total;
      memory.total = std::min(memory.total, *limit);
      memory.available = std::min(memory.available, *limit - std::min(*limit, held));
    }
    if (group.empty()) return;
    group = group.parent_path();
  }
}

}  // namespace

std::optional<MemoryState> memory_state(const fs::path& root) {
  const auto free_kib = number_after(root / "proc/meminfo", "MemAvailable:");
  if (!free_kib) return std::nullopt;
  MemoryState memory;
  memory.available = *free_kib * 1024;
  memory.total = number_after(root / "proc/meminfo", "MemTotal:").value_or(*free_kib) * 1024;
  std::ifstream groups(root / "proc/self/cgroup");
  // version 2: "0::/path", version 1: "5:memory:/path"
  for (std::string line; std::getline(groups, line);) {
    const fs::path mount = root / "sys/fs/cgroup";
    const auto path_from = [&](size_t at) { return fs::path(line.substr(at)).relative_path(); };
    if (line.starts_with("0::")) {
      apply_groups(mount, path_from(3), "memory.max", "memory.current", memory);
    } else if (const size_t at = line.find(":memory:"); at != line.npos) {
      apply_groups(mount / "memory", path_from(at + 8), "memory.limit_in_bytes",
                   "memory.usage_in_bytes", memory);
    }
  }
  return memory;
}

std::optional<uint64_t> available_memory(const fs::path& root) {
  const auto memory = memory_state(root);
  return memory ? std::optional(memory->available) : std::nullopt;
}

ResidentMemory resident_memory(const fs::path& root) {
  const auto bytes = [&](const char* kib) {
    return number_after(root / "proc/self/status", kib).value_or(0) * 1024;
  };
  return {bytes("RssFile:"), bytes("RssAnon:")};
}

std::optional<uint64_t> own_memory_left(const fs::path& root) {
  std::optional<uint64_t> left;
  const auto apply = [&](auto resource, const char* used_kib) {
    rlimit limit{};
    if (::getrlimit(resource, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return;
    const uint64_t most = limit.rlim_cur;
    const uint64_t used = number_after(root / "proc/self/status", used_kib).value_or(0) * 1024;
    left = std::min(left.value_or(UINT64_MAX), most - std::min(most, used));
  };
  apply(RLIMIT_DATA, "VmData:");
  apply(RLIMIT_AS, "VmSize:");
  return left;
}

}  // namespace fathom
