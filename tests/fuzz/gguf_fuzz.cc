// Any bytes: refused, or every tensor lies in the input without overlap and every key reads with
// its own type only.
#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "formats/gguf.h"

namespace {

// How many of the typed readers take the key; a value has one type (integers also read as numbers).
int readers_of(const fathom::Gguf& model, const std::string& key) {
  int taken = 0;
  const auto attempt = [&](auto read) {
    try {
      read();
      ++taken;
    } catch (const fathom::Error&) {
    }
  };
  attempt([&] { model.optional_integer(key, INT64_MIN, INT64_MAX); });
  attempt([&] { model.optional_number(key); });
  attempt([&] { model.optional_boolean(key); });
  attempt([&] { model.optional_string(key); });
  attempt([&] { model.optional_strings(key); });
  attempt([&] { model.optional_integers(key, INT64_MIN, INT64_MAX); });
  attempt([&] { model.optional_numbers(key); });
  return taken;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes = std::as_bytes(std::span(data, size));
  try {
    const fathom::Gguf model = fathom::Gguf::parse(bytes, "input");
    for (const auto& [key, value] : model.metadata())
      FATHOM_CHECK(readers_of(model, key) <= 2, key);
    std::vector<const fathom::TensorInfo*> order;
    for (const fathom::TensorInfo& tensor : model.tensors()) {
      FATHOM_CHECK(tensor.data >= bytes.data() && tensor.data + tensor.bytes <= bytes.data() + size,
                   tensor.name);
      FATHOM_CHECK(model.find(tensor.name) == &tensor, tensor.name);
      int64_t rows = 1;
      for (const int64_t n : tensor.shape) rows *= n;
      const int64_t cols = tensor.shape.empty() ? 1 : tensor.shape.back();
      if (cols > 0) {
        FATHOM_CHECK(tensor.bytes ==
                         static_cast<uint64_t>(rows / cols * fathom::row_bytes(tensor.dtype, cols)),
                     tensor.name);
      }
      if (tensor.bytes > 0) order.push_back(&tensor);
    }
    std::sort(order.begin(), order.end(),
              [](const auto* a, const auto* b) { return a->data < b->data; });
    for (size_t i = 1; i < order.size(); ++i)
      FATHOM_CHECK(order[i - 1]->data + order[i - 1]->bytes <= order[i]->data);
  } catch (const fathom::Error&) {
  }
  return 0;
}
