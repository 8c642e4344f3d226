// Writes a model as one GGUF file in chosen types, and says what that cost.
//
// Rows are read, quantised and read back in slabs of about four million values on all threads, so
// the memory is that of a slab (at most 16 MiB of output) and two rows per thread beside the mapped
// source, however large the model (a folder with MLA holds in addition what loading it rebuilds).
// Rows whose type is the source's are copied byte for byte. The same bytes and sums for every
// number of threads and instruction set.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "tensor/context.h"
#include "train/gguf_source.h"
#include "train/quantize_mix.h"

namespace fathom {

// Mean square of what each column of a tensor is multiplied by, under GGUF's name: [cols], or
// [parts, cols] for stacked experts (train/imatrix.h).
using Importance = std::map<std::string, std::vector<float>, std::less<>>;

struct StoredTensor {
  std::string name;
  TypeChoice type;
  DType from = DType::kF32;
  bool weighted = false;  // had an importance
  uint64_t values = 0, bytes = 0;
  double error = 0, norm = 0;  // sums of (w - q)^2 and of w^2
};

struct QuantizeOptions {
  uint32_t file_type = 0;         // general.file_type
  std::vector<TypeChoice> types;  // one per tensor of the source
  const Importance* importance = nullptr;
  // Called now and then with the bytes of tensors written so far; may throw to stop.
  std::function<void(uint64_t)> progress = [](uint64_t) {};
};

// Bytes of all tensors as they will be stored.
uint64_t quantized_bytes(const GgufSource& source, std::span<const TypeChoice> types);

// All or nothing: on any error `out` stays as it was. Throws Error naming tensor, row and column of
// the first value that is not finite or too large for its type, a tensor whose importance has
// another size, and a disk without room (exit code 3).
std::vector<StoredTensor> write_gguf(Context& ctx, const GgufSource& source,
                                     const std::filesystem::path& out,
                                     const QuantizeOptions& options);

}  // namespace fathom
