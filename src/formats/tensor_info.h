// A named tensor inside a mapped model file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "tensor/dtype.h"

namespace fathom {

struct TensorInfo {
  std::string name;
  std::vector<int64_t> shape;  // outermost first, whatever the file's own order (GGUF stores the reverse)
  DType dtype = DType::kF32;
  const std::byte* data = nullptr;  // into the mapping; no alignment beyond what the file happens to have
  uint64_t bytes = 0;
  uint32_t file = 0;  // index into the owner's files()
};

}  // namespace fathom
