#include "cli/ids.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "formats/json.h"
#include "formats/safetensors.h"

namespace fathom {
namespace {

constexpr int64_t kMaxId = std::numeric_limits<int32_t>::max();

int32_t checked_id(int64_t id, const std::string& place) {
  if (id < 0 || id > kMaxId) fail("{}: token id {}: expected 0 to {}", place, id, kMaxId);
  return static_cast<int32_t>(id);
}

std::vector<int32_t> ids_from_tensor(const TensorInfo& tensor, const std::string& place) {
  const bool wide = tensor.dtype == DType::kI64;
  if (!wide && tensor.dtype != DType::kI32)
    fail("{}: tensor 'input_ids': type {}, expected I64 or I32", place, dtype_name(tensor.dtype));
  const size_t width = wide ? 8 : 4;
  std::vector<int32_t> ids;
  for (size_t at = 0; at < tensor.bytes; at += width) {
    int64_t id = 0;
    if (wide) {
      std::memcpy(&id, tensor.data + at, width);
    } else {
      int32_t narrow = 0;
      std::memcpy(&narrow, tensor.data + at, width);
      id = narrow;
    }
    ids.push_back(checked_id(id, place));
  }
  return ids;
}

}  // namespace

std::vector<int32_t> parse_ids(std::string_view text, const std::string& place) {
  constexpr std::string_view kSeparators = " \t\r\n,";
  std::vector<int32_t> ids;
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin != text.npos && text[begin] == '[') {
    const nlohmann::json list = parse_json(text, place);
    for (const auto& id : list) {
      // what is unsigned and too large for int64_t would become negative
      const bool fits = id.is_number_integer() &&
                        (!id.is_number_unsigned() || std::in_range<int64_t>(id.get<uint64_t>()));
      if (!fits) fail("{}: found {}, expected a list of token ids", place, describe(id));
      ids.push_back(checked_id(id.get<int64_t>(), place));
    }
    return ids;
  }
  while (true) {
    const size_t at = text.find_first_not_of(kSeparators);
    if (at == text.npos) return ids;
    text.remove_prefix(at);
    const std::string_view word = text.substr(0, text.find_first_of(kSeparators));
    int64_t id = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc{} || end != word.data() + word.size())
      fail("{}: found {}, expected a token id", place, quoted(word));
    ids.push_back(checked_id(id, place));
    text.remove_prefix(word.size());
  }
}

std::vector<int32_t> read_ids(const std::filesystem::path& path) {
  if (path.extension() == ".safetensors") {
    const Safetensors file = Safetensors::open(path);
    const TensorInfo* tensor = file.find("input_ids");
    if (tensor == nullptr) fail("{}: tensor 'input_ids': missing", path.string());
    return ids_from_tensor(*tensor, path.string());
  }
  return parse_ids(read_text_file(path), path.string());
}

std::string read_stdin() {
  std::string text;
  std::vector<char> buffer(1 << 16);
  while (true) {
    const ssize_t n = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("stdin: cannot read: {}", std::strerror(errno));
    if (n == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(n));
    if (text.size() > Limits{}.text_bytes) fail("stdin: more than {} bytes", Limits{}.text_bytes);
  }
}

std::string read_text_file(const std::filesystem::path& path) {
  return path == "-" ? read_stdin() : read_file(path, Limits{}.text_bytes);
}

}  // namespace fathom
