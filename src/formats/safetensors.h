// safetensors: u64 header length, JSON header, data that tiles the rest of the file.
//
// Reading validates everything before it publishes a pointer: header size, strict JSON, names,
// dtypes, shapes, offsets contiguous from 0 to the end without hole or overlap, sizes equal to
// shape times type. Writing is streaming and atomic.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "formats/tensor_info.h"

namespace fathom {

class Safetensors {
 public:
  // One file. Tensors are in file order; `file` becomes their TensorInfo::file.
  // Throws fathom::Error "FILE: tensor 'NAME': found X, expected Y".
  static Safetensors open(const std::filesystem::path& path, uint32_t file = 0);
  // The same from memory, which must outlive the result. `place` begins every error.
  static Safetensors parse(std::span<const std::byte> bytes, const std::string& place,
                           uint32_t file = 0);

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const MappedFile& file() const { return file_; }

 private:
  MappedFile file_;
  std::vector<TensorInfo> tensors_;
  // the keys view tensors_, whose elements stay put when this moves
  std::map<std::string_view, size_t> by_name_;
  std::map<std::string, std::string> metadata_;
};

// One tensor to write; the data is borrowed.
struct TensorToWrite {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::span<const std::byte> data;
  // Instead of `data`, for what would need a second copy in memory: fills `out` with the tensor's
  // bytes from `begin` on. Called piece by piece, in order; pieces begin at multiples of 1 MiB.
  std::function<void(uint64_t begin, std::span<std::byte> out)> make = nullptr;
};

// Writes all of it or nothing (temporary file, fsync, rename); order is kept. The header is padded
// so that the data starts 8-byte aligned. REQUIRES: names are unique and UTF-8, dtypes are
// safetensors' own, data sizes are those of the shapes.
FileDigest write_safetensors(const std::filesystem::path& path,
                             std::span<const TensorToWrite> tensors,
                             const std::map<std::string, std::string>& metadata = {});

}  // namespace fathom
