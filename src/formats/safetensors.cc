#include "formats/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "base/check.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "formats/json.h"

namespace fathom {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little,
              "safetensors are little endian and used in place");

constexpr std::string_view kMetadata = "__metadata__";
constexpr int64_t kMaxInt = std::numeric_limits<int64_t>::max();

// The container's types; those of DType that it does not have are GGUF's.
constexpr std::array kDTypes = {DType::kBool,   DType::kU8,  DType::kI8,  DType::kF8E5M2,
                                DType::kF8E4M3, DType::kI16, DType::kU16, DType::kF16,
                                DType::kBF16,   DType::kI32, DType::kU32, DType::kF32,
                                DType::kF64,    DType::kI64, DType::kU64};

std::optional<DType> dtype_by_name(std::string_view name) {
  const auto* found =
      std::find_if(kDTypes.begin(), kDTypes.end(), [&](DType d) { return dtype_name(d) == name; });
  return found != kDTypes.end() ? std::optional(*found) : std::nullopt;
}

// The JSON text between the length and the data.
std::string_view header_text(std::span<const std::byte> bytes, const std::string& place) {
  check_not_lfs_pointer(bytes, place);
  uint64_t length = 0;
  if (bytes.size() < sizeof length) {
    fail("{}: {} bytes, expected at least {} (the header's length)", place, bytes.size(),
         sizeof length);
  }
  std::memcpy(&length, bytes.data(), sizeof length);
  constexpr uint64_t kMaxBytes = Limits{}.safetensors_header_bytes;
  if (length > kMaxBytes)
    fail("{}: header of {} bytes, expected at most {}", place, length, kMaxBytes);
  if (!range_in_file(sizeof length, length, bytes.size())) {
    fail("{}: header of {} bytes, found only {} (truncated)", place, length,
         bytes.size() - sizeof length);
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + sizeof length, length);
  if (!text.starts_with('{'))
    fail("{}: header: found {}, expected '{{'", place, quoted(text.substr(0, 1)));
  return text;
}

std::map<std::string, std::string> read_metadata(const json& object, const std::string& place) {
  const JsonObject fields(object, place);
  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : object.items()) {
    if (!value.is_string())
      fail("{}: {}: found {}, expected a string", place, quoted(key), describe(value));
    metadata.emplace(key, value.get_ref<const std::string&>());
  }
  return metadata;
}

TensorInfo read_tensor(const std::string& name, const json& entry, std::span<const std::byte> data,
                       const std::string& place) {
  const JsonObject fields(entry, place);
  for (const auto& [key, value] : entry.items()) {
    if (key != "dtype" && key != "shape" && key != "data_offsets") {
      fail("{}: found field {}, expected only dtype, shape and data_offsets", place, quoted(key));
    }
  }
  TensorInfo tensor;
  tensor.name = name;
  const std::string dtype = fields.string("dtype");
  const auto known = dtype_by_name(dtype);
  if (!known) fail("{}: dtype {} is not supported", place, quoted(dtype));
  tensor.dtype = *known;
  tensor.shape = fields.integers("shape", 0, kMaxInt);
  constexpr uint64_t kMaxRank = Limits{}.tensor_rank;
  if (tensor.shape.size() > kMaxRank)
    fail("{}: rank {}, expected at most {}", place, tensor.shape.size(), kMaxRank);
  const auto offsets = fields.integers("data_offsets", 0, kMaxInt);
  if (offsets.size() != 2)
    fail("{}: data_offsets: found {} numbers, expected 2", place, offsets.size());
  const auto begin = static_cast<uint64_t>(offsets[0]);
  const auto end = static_cast<uint64_t>(offsets[1]);
  if (begin > end || end > data.size()) {
    fail("{}: data_offsets [{}, {}], expected an ordered pair within the {} bytes of data", place,
         begin, end, data.size());
  }
  tensor.data = data.data() + begin;
  tensor.bytes = tensor_bytes(tensor.shape, tensor.dtype, place);
  if (tensor.bytes != end - begin) {
    fail("{}: {} bytes of data, expected {} (shape {} of {})", place, end - begin, tensor.bytes,
         shape_text(tensor.shape), dtype);
  }
  return tensor;
}

void write_made(AtomicFile& file, const TensorToWrite& tensor, uint64_t bytes) {
  constexpr uint64_t kPiece = 1 << 20;
  std::vector<std::byte> buffer(std::min(bytes, kPiece));
  for (uint64_t begin = 0; begin < bytes; begin += kPiece) {
    const std::span piece(buffer.data(), std::min(kPiece, bytes - begin));
    tensor.make(begin, piece);
    file.write(piece);
  }
}

}  // namespace

Safetensors Safetensors::open(const std::filesystem::path& path, uint32_t file) {
  MappedFile mapped(path);
  Safetensors model = parse(mapped.bytes(), mapped.path(), file);
  model.file_ = std::move(mapped);
  return model;
}

Safetensors Safetensors::parse(std::span<const std::byte> bytes, const std::string& place,
                               uint32_t file) {
  const std::string_view text = header_text(bytes, place);
  const std::span<const std::byte> data = bytes.subspan(sizeof(uint64_t) + text.size());
  const json header = parse_json(text, place + ": header");

  Safetensors model;
  constexpr uint64_t kMaxTensors = Limits{}.tensors;
  if (header.size() > kMaxTensors)
    fail("{}: {} tensors, expected at most {}", place, header.size(), kMaxTensors);
  model.tensors_.reserve(header.size());
  for (const auto& [name, entry] : header.items()) {
    if (name == kMetadata) {
      model.metadata_ = read_metadata(entry, fmt::format("{}: {}", place, kMetadata));
    } else {
      check_tensor_name(name, place);
      TensorInfo tensor =
          read_tensor(name, entry, data, fmt::format("{}: tensor {}", place, quoted(name)));
      tensor.file = file;
      model.tensors_.push_back(std::move(tensor));
    }
  }
  std::stable_sort(model.tensors_.begin(), model.tensors_.end(),
                   [](const TensorInfo& a, const TensorInfo& b) {
                     return std::tie(a.data, a.bytes) < std::tie(b.data, b.bytes);
                   });

  const std::byte* end = data.data();
  for (const TensorInfo& tensor : model.tensors_) {
    if (tensor.data != end) {
      fail("{}: tensor {}: begins at {}, expected {} ({} the tensor before it)", place,
           quoted(tensor.name), tensor.data - data.data(), end - data.data(),
           tensor.data < end ? "overlaps" : "a hole after");
    }
    end += tensor.bytes;
    model.by_name_.emplace(tensor.name, &tensor - model.tensors_.data());
  }
  const auto used = static_cast<uint64_t>(end - data.data());
  if (used != data.size())
    fail("{}: {} bytes of data, expected {} (the end of the last tensor)", place, data.size(),
         used);
  return model;
}

const TensorInfo* Safetensors::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found != by_name_.end() ? &tensors_[found->second] : nullptr;
}

FileDigest write_safetensors(const std::filesystem::path& path,
                             std::span<const TensorToWrite> tensors,
                             const std::map<std::string, std::string>& metadata) {
  const std::string place = path.string();
  std::string header = "{";
  const auto add_field = [&](const std::string& key, const json& value) {
    header += fmt::format("{}{}:{}", header.size() > 1 ? "," : "", json(key).dump(), value.dump());
  };
  if (!metadata.empty()) add_field(std::string(kMetadata), metadata);
  std::set<std::string_view> names;
  uint64_t end = 0;
  for (const TensorToWrite& tensor : tensors) {
    FATHOM_CHECK(
        is_valid_utf8(tensor.name) && tensor.name != kMetadata && names.insert(tensor.name).second,
        tensor.name);
    FATHOM_CHECK(dtype_by_name(dtype_name(tensor.dtype)).has_value(), tensor.name,
                 dtype_name(tensor.dtype));
    const uint64_t bytes = tensor_bytes(tensor.shape, tensor.dtype, place);
    FATHOM_CHECK(tensor.make ? tensor.data.empty() : tensor.data.size() == bytes, tensor.name,
                 tensor.data.size());
    const uint64_t begin = std::exchange(end, end + bytes);
    add_field(tensor.name, {{"dtype", dtype_name(tensor.dtype)},
                            {"shape", tensor.shape},
                            {"data_offsets", {begin, end}}});
  }
  header += '}';
  const uint64_t length = *Checked(header.size()).align_up(8).value();
  header.resize(length, ' ');

  AtomicFile file(path);
  file.write(std::as_bytes(std::span(&length, 1)));
  file.write(header);
  for (const TensorToWrite& tensor : tensors) {
    if (tensor.make) {
      write_made(file, tensor, tensor_bytes(tensor.shape, tensor.dtype, place));
    } else {
      file.write(tensor.data);
    }
  }
  return file.commit();
}

}  // namespace fathom
