#include "formats/tensor_info.h"

#include <limits>

#include "base/checked.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/utf8.h"

namespace fathom {

std::string shape_text(std::span<const int64_t> shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += fmt::format("{}{}", text.size() > 1 ? ", " : "", size);
  return text + "]";
}

uint64_t tensor_bytes(std::span<const int64_t> shape, DType dtype, std::string_view place) {
  const DTypeInfo& info = dtype_info(dtype);
  Checked elements = 1;
  for (const int64_t size : shape) elements = elements * static_cast<uint64_t>(size);
  const int64_t row = shape.empty() ? 1 : shape.back();
  if (row % info.block_elements != 0) {
    fail("{}: rows of {} elements, expected a multiple of {} ({} blocks)", place, row, info.block_elements, info.name);
  }
  // A block never takes fewer bytes than half its elements, so elements fit as well once the bytes do.
  const auto count = elements.value();
  const auto bytes = Checked(count.value_or(0) / static_cast<uint64_t>(info.block_elements)) *
                     static_cast<uint64_t>(info.block_bytes);
  if (!count || !bytes.value() || *bytes.value() > std::numeric_limits<int64_t>::max() / 2) {
    fail("{}: shape {} of {} is larger than any file", place, shape_text(shape), info.name);
  }
  return *bytes.value();
}

void check_tensor_name(std::string_view name, std::string_view place) {
  constexpr uint64_t kMaxBytes = Limits{}.tensor_name_bytes;
  if (name.empty() || name.size() > kMaxBytes) {
    fail("{}: tensor {}: name of {} bytes, expected 1 to {}", place, quoted(name), name.size(), kMaxBytes);
  }
  if (!is_valid_utf8(name)) fail("{}: tensor {}: name is not valid UTF-8", place, quoted(name));
}

}  // namespace fathom
