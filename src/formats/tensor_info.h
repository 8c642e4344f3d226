// A named tensor inside a mapped model file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/dtype.h"

namespace fathom {

struct TensorInfo {
  std::string name;
  // outermost first, whatever the file's own order (GGUF stores the reverse)
  std::vector<int64_t> shape;
  DType dtype = DType::kF32;
  // into the mapping; no alignment beyond what the file happens to have
  const std::byte* data = nullptr;
  uint64_t bytes = 0;
  uint32_t file = 0;  // index into the owner's files
};

// "[256, 7168]", for messages; "[]" is a scalar.
std::string shape_text(std::span<const int64_t> shape);

// The bytes a tensor of this shape takes. Throws "PLACE: shape [...] ..." if the sizes multiply
// past 63 bits, zeros left out, or the rows are not whole blocks of the type.
uint64_t tensor_bytes(std::span<const int64_t> shape, DType dtype, std::string_view place);

// Throws "PLACE: tensor 'NAME': name ..." unless the name is 1 to Limits::tensor_name_bytes bytes
// of UTF-8.
void check_tensor_name(std::string_view name, std::string_view place);

// The commonest thing that is no model though it bears a model's name: throws "PLACE: is a Git LFS
// pointer ...".
void check_not_lfs_pointer(std::span<const std::byte> bytes, std::string_view place);

}  // namespace fathom
