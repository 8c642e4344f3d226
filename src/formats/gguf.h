// GGUF v3, and v2 which has the same layout, little endian; a model may be split over files
// `-00001-of-000NN.gguf`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/file.h"
#include "formats/tensor_info.h"

namespace fathom {

// A metadata value. All integers are widened, arrays are flat; the file's own type is checked on
// access.
struct GgufValue {
  std::variant<uint64_t, int64_t, double, bool, std::string, std::vector<uint64_t>,
               std::vector<int64_t>, std::vector<double>, std::vector<bool>,
               std::vector<std::string>>
      value;
  // its type number and bytes as they lie in the file
  std::span<const std::byte> stored = {};
};

class Gguf {
 public:
  // Opens one file, or all parts of a split model when `path` names its first part. Everything is
  // validated first.
  static Gguf open(const std::filesystem::path& path);
  // One file from memory, which must outlive the result; the other parts of a split model are not
  // looked for.
  static Gguf parse(std::span<const std::byte> bytes, const std::string& place);

  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* find(std::string_view name) const;
  const std::vector<MappedFile>& files() const { return files_; }
  const std::string& path() const { return path_; }  // of the first file: begins every error

  // Typed metadata. The plain forms throw "FILE: key 'K': missing" / "found string, expected
  // integer in [a, b]".
  bool has(std::string_view key) const;
  // any integer type of the file
  int64_t integer(std::string_view key, int64_t min, int64_t max) const;
  std::optional<int64_t> optional_integer(std::string_view key, int64_t min, int64_t max) const;
  double number(std::string_view key) const;  // any finite float or integer
  std::optional<double> optional_number(std::string_view key) const;
  std::optional<bool> optional_boolean(std::string_view key) const;
  const std::string& string(std::string_view key) const;
  const std::string* optional_string(std::string_view key) const;  // null if absent
  const std::vector<std::string>* optional_strings(std::string_view key) const;
  std::optional<std::vector<int64_t>> optional_integers(std::string_view key, int64_t min,
                                                        int64_t max) const;
  std::optional<std::vector<double>> optional_numbers(std::string_view key) const;

 private:
  const GgufValue* value(std::string_view key) const;  // null if absent
  const GgufValue& required(std::string_view key) const;
  void append_parts(int64_t parts);
  void index_names();

  std::string path_;
  std::vector<MappedFile> files_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<TensorInfo> tensors_;
  // the keys view tensors_, whose elements stay put when this moves
  std::map<std::string_view, size_t> by_name_;
};

}  // namespace fathom
