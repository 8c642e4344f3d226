#include "formats/tensor_info.h"

#include <algorithm>
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
  const int64_t row = shape.empty() ? 1 : shape.back();
  if (row % info.block_elements != 0) {
    fail("{}: rows of {} elements, expected a multiple of {} ({} blocks)", place, row,
         info.block_elements, info.name);
  }
  // A size of 0 counts as 1 here, so that no product of some of the sizes overflows later either.
  Checked elements = 1;
  for (const int64_t size : shape)
    elements = elements * static_cast<uint64_t>(std::max<int64_t>(size, 1));
  const Checked bytes = elements * static_cast<uint64_t>(info.block_bytes);
  if (!bytes.value() || *bytes.value() > std::numeric_limits<int64_t>::max()) {
    fail("{}: shape {} of {} is larger than any file", place, shape_text(shape), info.name);
  }
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  return *bytes.value() / static_cast<uint64_t>(info.block_elements);
}

void check_tensor_name(std::string_view name, std::string_view place) {
  constexpr uint64_t kMaxBytes = Limits{}.tensor_name_bytes;
  if (name.empty() || name.size() > kMaxBytes) {
    fail("{}: tensor {}: name of {} bytes, expected 1 to {}", place, quoted(name), name.size(),
         kMaxBytes);
  }
  if (!is_valid_utf8(name)) fail("{}: tensor {}: name is not valid UTF-8", place, quoted(name));
}

void check_not_lfs_pointer(std::span<const std::byte> bytes, std::string_view place) {
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  if (text.starts_with("version https://git-lfs"))
    fail("{}: is a Git LFS pointer, expected the file itself (git lfs pull)", place);
}

}  // namespace fathom
