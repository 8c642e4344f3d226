// Any bytes: refused, or every tensor lies in the input, in order, without hole or overlap.
#include <cstdint>
#include <span>

#include "base/check.h"
#include "base/error.h"
#include "formats/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  try {
    const fathom::Safetensors model = fathom::Safetensors::parse(bytes, "input");
    const std::byte* end = nullptr;
    for (const fathom::TensorInfo& tensor : model.tensors()) {
      FATHOM_CHECK(
          tensor.data >= bytes.data() + 8 && tensor.data + tensor.bytes <= bytes.data() + size,
          tensor.name);
      FATHOM_CHECK(end == nullptr || tensor.data == end, tensor.name);
      FATHOM_CHECK(model.find(tensor.name) == &tensor, tensor.name);
      uint64_t elements = 1;
      for (const int64_t n : tensor.shape) elements *= static_cast<uint64_t>(n);
      FATHOM_CHECK(tensor.bytes == elements * static_cast<uint64_t>(
                                                  fathom::dtype_info(tensor.dtype).block_bytes),
                   tensor.name);
      end = tensor.data + tensor.bytes;
    }
    FATHOM_CHECK(end == nullptr || end == bytes.data() + size);
  } catch (const fathom::Error&) {
  }
  return 0;
}
