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

}  // namespace

std::string cpu_name(const fs::path& root) {
  const std::string info = read_system_file(root / "proc/cpuinfo");
  const std::string_view value = field(info, "model name");
  const size_t begin = value.find_first_not_of("\t :");
  return begin == value.npos ? "unknown CPU" : std::string(value.substr(begin));
}

std::vector<std::string> cpu_vector_flags(const fs::path& root) {
  constexpr std::array<std::string_view, 15> kFlags = {
      "f16c",        "fma",         "avx2",     "avx_vnni",    "avx512f",
      "avx512bw",    "avx512dq",    "avx512vl", "avx512_vbmi", "avx512_vnni",
      "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",    "amx_int8"};
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
  if (begin != modes.npos && end != modes.npos && end > begin)
    pages.transparent = modes.substr(begin + 1, end - begin - 1);
  pages.reserved =
      leading_number(field(read_system_file(root / "proc/meminfo"), "HugePages_Total:"))
          .value_or(0);
  return pages;
}

}  // namespace fathom
