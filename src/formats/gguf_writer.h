// Writes GGUF v3 files: metadata, then tensors whose bytes are made piece by piece, so that a file
// of any size takes the memory of a piece. All or nothing (temporary file, fsync, rename).
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/dtype.h"

namespace fathom {

class GgufWriter {
 public:
  void key(std::string_view name, uint32_t value);
  void key(std::string_view name, float value);
  void key(std::string_view name, bool value);
  void key(std::string_view name, std::string_view value);
  void key(std::string_view name, const char* value) { key(name, std::string_view(value)); }
  void key(std::string_view name, const std::vector<std::string>& values);
  void key(std::string_view name, const std::vector<int32_t>& values);
  // A value as another file has it (GgufValue::stored).
  void stored_key(std::string_view name, std::span<const std::byte> value);

  // Takes the next bytes of a tensor.
  using Put = std::function<void(std::span<const std::byte>)>;
  // shape outermost first; fill puts the tensor's bytes, all of them, in order. REQUIRES: a type
  // that GGUF has; the last dimension a multiple of its block; names unique.
  void tensor(std::string name, std::vector<int64_t> shape, DType dtype,
              std::function<void(const Put&)> fill);

  // The size write() will give the file.
  uint64_t file_bytes() const { return header().size() + data_bytes(); }
  void write(const std::filesystem::path& path) const;

 private:
  struct Entry {
    std::string name;
    std::vector<int64_t> shape;
    DType dtype;
    uint64_t bytes;
    std::function<void(const Put&)> fill;
  };
  std::string header() const;
  uint64_t data_bytes() const;
  void begin_key(std::string_view name, uint32_t type);

  std::string keys_;
  uint64_t key_count_ = 0;
  std::vector<Entry> tensors_;
};

// The number GGUF gives a storage type; -1 if it has none.
int32_t gguf_type_number(DType dtype);

}  // namespace fathom
