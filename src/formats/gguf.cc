#include "formats/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "base/checked.h"
#include "base/error.h"
#include "base/limits.h"
#include "formats/gguf_writer.h"

namespace fathom {
namespace {

static_assert(std::endian::native == std::endian::little,
              "GGUF is little endian and used in place");

constexpr Limits kLimits;
constexpr uint64_t kDefaultAlignment = 32;

enum ValueType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

struct GgmlType {
  uint32_t id;
  DType dtype;
};
constexpr std::array kGgmlTypes = std::to_array<GgmlType>({
    {0, DType::kF32},     {1, DType::kF16},     {2, DType::kQ4_0},  {3, DType::kQ4_1},
    {6, DType::kQ5_0},    {7, DType::kQ5_1},    {8, DType::kQ8_0},  {10, DType::kQ2_K},
    {11, DType::kQ3_K},   {12, DType::kQ4_K},   {13, DType::kQ5_K}, {14, DType::kQ6_K},
    {20, DType::kIQ4_NL}, {23, DType::kIQ4_XS}, {24, DType::kI8},   {25, DType::kI16},
    {26, DType::kI32},    {27, DType::kI64},    {28, DType::kF64},  {30, DType::kBF16},
    {39, DType::kMXFP4},
});

// Named in refusals only.
struct UnsupportedType {
  uint32_t id;
  std::string_view name;
};
constexpr std::array kUnsupportedTypes = std::to_array<UnsupportedType>({
    {9, "Q8_1"},
    {15, "Q8_K"},
    {16, "IQ2_XXS"},
    {17, "IQ2_XS"},
    {18, "IQ3_XXS"},
    {19, "IQ1_S"},
    {21, "IQ3_S"},
    {22, "IQ2_S"},
    {29, "IQ1_M"},
    {34, "TQ1_0"},
    {35, "TQ2_0"},
});

DType dtype_by_id(uint32_t id, std::string_view place) {
  const auto has_id = [id](const auto& type) { return type.id == id; };
  const auto* found = std::find_if(kGgmlTypes.begin(), kGgmlTypes.end(), has_id);
  if (found != kGgmlTypes.end()) return found->dtype;
  const auto* named = std::find_if(kUnsupportedTypes.begin(), kUnsupportedTypes.end(), has_id);
  if (named != kUnsupportedTypes.end()) fail("{}: type {} is not supported", place, named->name);
  fail("{}: type {} is unknown", place, id);
}

// Takes values off the front of the file. `subject` names what is being read, for the message when
// the file ends too soon.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, std::string_view place)
      : bytes_(bytes), place_(place), subject_("header") {}

  void set_subject(std::string subject) { subject_ = std::move(subject); }
  std::string where() const { return fmt::format("{}: {}", place_, subject_); }
  uint64_t offset() const { return offset_; }

  // Throws unless `count` elements of at least `bytes` each are left. REQUIRES: the product fits
  // (counts are capped before).
  void require(uint64_t count, uint64_t bytes) const {
    const uint64_t left = bytes_.size() - offset_;
    if (count > left / bytes) {
      fail("{}: found {} bytes at byte {}, expected {} (truncated)", where(), left, offset_,
           count * bytes);
    }
  }

  template <class T>
  T number() {
    T value;
    require(1, sizeof value);
    std::memcpy(&value, bytes_.data() + offset_, sizeof value);
    offset_ += sizeof value;
    return value;
  }

  bool boolean() {
    const auto value = number<uint8_t>();
    if (value > 1) fail("{}: found boolean {}, expected 0 or 1", where(), value);
    return value == 1;
  }

  std::string string(uint64_t max_bytes) {
    const auto length = number<uint64_t>();
    if (length > max_bytes)
      fail("{}: string of {} bytes, expected at most {}", where(), length, max_bytes);
    require(length, 1);
    const auto* begin = reinterpret_cast<const char*>(bytes_.data()) + offset_;
    offset_ += length;
    return std::string(begin, length);
  }

  GgufValue value(uint32_t type) {
    switch (type) {
      case kU8:
        return {uint64_t{number<uint8_t>()}};
      case kU16:
        return {uint64_t{number<uint16_t>()}};
      case kU32:
        return {uint64_t{number<uint32_t>()}};
      case kU64:
        return {number<uint64_t>()};
      case kI8:
        return {int64_t{number<int8_t>()}};
      case kI16:
        return {int64_t{number<int16_t>()}};
      case kI32:
        return {int64_t{number<int32_t>()}};
      case kI64:
        return {number<int64_t>()};
      case kF32:
        return {double{number<float>()}};
      case kF64:
        return {number<double>()};
      case kBool:
        return {boolean()};
      case kString:
        return {string(kLimits.gguf_string_bytes)};
      case kArray:
        return array();
      default:
        fail("{}: value type {} is unknown", where(), type);
    }
  }

 private:
  GgufValue array() {
    const auto type = number<uint32_t>();
    const auto count = number<uint64_t>();
    if (count > kLimits.gguf_array_elements) {
      fail("{}: array of {} elements, expected at most {}", where(), count,
           kLimits.gguf_array_elements);
    }
    switch (type) {
      case kU8:
        return {numbers<uint64_t, uint8_t>(count)};
      case kU16:
        return {numbers<uint64_t, uint16_t>(count)};
      case kU32:
        return {numbers<uint64_t, uint32_t>(count)};
      case kU64:
        return {numbers<uint64_t, uint64_t>(count)};
      case kI8:
        return {numbers<int64_t, int8_t>(count)};
      case kI16:
        return {numbers<int64_t, int16_t>(count)};
      case kI32:
        return {numbers<int64_t, int32_t>(count)};
      case kI64:
        return {numbers<int64_t, int64_t>(count)};
      case kF32:
        return {numbers<double, float>(count)};
      case kF64:
        return {numbers<double, double>(count)};
      case kBool:
        return {booleans(count)};
      case kString:
        return {strings(count)};
      case kArray:
        fail("{}: array of arrays is not supported", where());
      default:
        fail("{}: array element type {} is unknown", where(), type);
    }
  }

  template <class Wide, class Stored>
  std::vector<Wide> numbers(uint64_t count) {
    require(count, sizeof(Stored));
    std::vector<Wide> values(count);
    for (Wide& v : values) v = static_cast<Wide>(number<Stored>());
    return values;
  }
  std::vector<bool> booleans(uint64_t count) {
    require(count, 1);
    std::vector<bool> values(count);
    for (uint64_t i = 0; i < count; ++i) values[i] = boolean();
    return values;
  }
  std::vector<std::string> strings(uint64_t count) {
    require(count, sizeof(uint64_t));
    std::vector<std::string> values;
    for (uint64_t i = 0; i < count; ++i) values.push_back(string(kLimits.gguf_token_bytes));
    return values;
  }

  std::span<const std::byte> bytes_;
  std::string_view place_;
  std::string subject_;
  uint64_t offset_ = 0;
};

void check_version(Reader& reader, const std::string& place) {
  const auto magic = reader.number<std::array<char, 4>>();
  const std::string_view found(magic.data(), magic.size());
  if (found != "GGUF") fail("{}: begins with {}, expected 'GGUF'", place, quoted(found));
  const auto version = reader.number<uint32_t>();
  if (version == 0x02000000 || version == 0x03000000)
    fail("{}: big-endian GGUF is not supported", place);
  if (version != 2 && version != 3) fail("{}: GGUF version {}, expected 2 or 3", place, version);
}

// Name, shape, type; leaves the offset of the data in `offset`.
TensorInfo read_tensor(Reader& reader, const std::string& place, uint64_t& offset) {
  TensorInfo tensor;
  tensor.name = reader.string(kLimits.tensor_name_bytes);
  check_tensor_name(tensor.name, place);
  reader.set_subject("tensor " + quoted(tensor.name));
  const auto rank = reader.number<uint32_t>();
  if (rank > kLimits.gguf_dims)
    fail("{}: rank {}, expected at most {}", reader.where(), rank, kLimits.gguf_dims);
  for (uint32_t i = 0; i < rank; ++i) {
    const auto size = reader.number<uint64_t>();
    if (!std::in_range<int64_t>(size))
      fail("{}: size {} of dimension {} is too large", reader.where(), size, i);
    tensor.shape.push_back(static_cast<int64_t>(size));
  }
  std::reverse(tensor.shape.begin(), tensor.shape.end());
  tensor.dtype = dtype_by_id(reader.number<uint32_t>(), reader.where());
  tensor.bytes = tensor_bytes(tensor.shape, tensor.dtype, reader.where());
  offset = reader.number<uint64_t>();
  return tensor;
}

void check_no_overlap(const std::vector<TensorInfo>& tensors, const std::string& place) {
  std::vector<const TensorInfo*> order;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.bytes > 0) order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(),
            [](const auto* a, const auto* b) { return a->data < b->data; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i]->data < order[i - 1]->data + order[i - 1]->bytes) {
      fail("{}: tensor {}: overlaps tensor {}", place, quoted(order[i]->name),
           quoted(order[i - 1]->name));
    }
  }
}

struct DescribeValue {
  std::string operator()(uint64_t v) const { return fmt::format("integer {}", v); }
  std::string operator()(int64_t v) const { return fmt::format("integer {}", v); }
  std::string operator()(double v) const { return fmt::format("number {}", v); }
  std::string operator()(bool v) const { return fmt::format("boolean {}", v); }
  std::string operator()(const std::string& v) const { return "string " + quoted(v); }
  std::string operator()(const std::vector<uint64_t>&) const { return "array of integers"; }
  std::string operator()(const std::vector<int64_t>&) const { return "array of integers"; }
  std::string operator()(const std::vector<double>&) const { return "array of numbers"; }
  std::string operator()(const std::vector<bool>&) const { return "array of booleans"; }
  std::string operator()(const std::vector<std::string>&) const { return "array of strings"; }
};

[[noreturn]] void fail_type(const std::string& path, std::string_view key, const GgufValue& value,
                            std::string_view expected) {
  fail("{}: key {}: found {}, expected {}", path, quoted(key),
       std::visit(DescribeValue{}, value.value), expected);
}

}  // namespace

Gguf Gguf::open(const std::filesystem::path& path) {
  MappedFile file(path);
  Gguf model = parse(file.bytes(), file.path());
  model.files_.push_back(std::move(file));
  const int64_t parts =
      model.optional_integer("split.count", 0, static_cast<int64_t>(kLimits.split_files))
          .value_or(0);
  if (parts > 1) model.append_parts(parts);
  return model;
}

// The other files of a split model, whose names follow from the first one's.
void Gguf::append_parts(int64_t parts) {
  const std::string suffix = fmt::format("-00001-of-{:05}.gguf", parts);
  const int64_t number = integer("split.no", 0, parts - 1);
  if (number != 0)
    fail("{}: is part {} of {}, expected the first part (*{})", path_, number + 1, parts, suffix);
  if (!path_.ends_with(suffix))
    fail("{}: is the first of {} parts, expected a name ending in {}", path_, parts, suffix);
  const std::string stem = path_.substr(0, path_.size() - suffix.size());
  for (int64_t part = 1; part < parts; ++part) {
    MappedFile file(fmt::format("{}-{:05}-of-{:05}.gguf", stem, part + 1, parts));
    Gguf next = parse(file.bytes(), file.path());
    next.integer("split.no", part, part);
    next.integer("split.count", parts, parts);
    for (TensorInfo& tensor : next.tensors_) {
      tensor.file = static_cast<uint32_t>(part);
      tensors_.push_back(std::move(tensor));
    }
    files_.push_back(std::move(file));
  }
  const auto count = static_cast<int64_t>(tensors_.size());
  const int64_t declared = integer("split.tensors.count", 0, static_cast<int64_t>(kLimits.tensors));
  if (count != declared)
    fail("{}: {} tensors in all parts, expected {} (split.tensors.count)", path_, count, declared);
  index_names();
}

Gguf Gguf::parse(std::span<const std::byte> bytes, const std::string& place) {
  check_not_lfs_pointer(bytes, place);
  Gguf model;
  model.path_ = place;
  Reader reader(bytes, place);
  check_version(reader, place);
  const auto tensor_count = reader.number<uint64_t>();
  const auto key_count = reader.number<uint64_t>();
  if (tensor_count > kLimits.tensors)
    fail("{}: {} tensors, expected at most {}", place, tensor_count, kLimits.tensors);
  if (key_count > kLimits.gguf_keys)
    fail("{}: {} keys, expected at most {}", place, key_count, kLimits.gguf_keys);

  for (uint64_t i = 0; i < key_count; ++i) {
    reader.set_subject(fmt::format("key {} of {}", i + 1, key_count));
    std::string key = reader.string(kLimits.gguf_token_bytes);
    reader.set_subject("key " + quoted(key));
    const auto [slot, is_new] = model.metadata_.try_emplace(std::move(key));
    if (!is_new) fail("{}: found twice", reader.where());
    const uint64_t begin = reader.offset();
    slot->second = reader.value(reader.number<uint32_t>());
    slot->second.stored = bytes.subspan(begin, reader.offset() - begin);
  }
  const auto alignment = static_cast<uint64_t>(
      model
          .optional_integer("general.alignment", static_cast<int64_t>(kLimits.gguf_alignment_min),
                            static_cast<int64_t>(kLimits.gguf_alignment_max))
          .value_or(kDefaultAlignment));
  if (!std::has_single_bit(alignment))
    fail("{}: key 'general.alignment': found {}, expected a power of two", place, alignment);

  std::vector<uint64_t> offsets;
  for (uint64_t i = 0; i < tensor_count; ++i) {
    reader.set_subject(fmt::format("tensor {} of {}", i + 1, tensor_count));
    model.tensors_.push_back(read_tensor(reader, place, offsets.emplace_back()));
  }
  model.index_names();
  const Checked data_start = Checked(reader.offset()).align_up(alignment);
  for (size_t i = 0; i < offsets.size(); ++i) {
    TensorInfo& tensor = model.tensors_[i];
    const auto begin = (data_start + offsets[i]).value();
    if (offsets[i] % alignment != 0) {
      fail("{}: tensor {}: offset {}, expected a multiple of {}", place, quoted(tensor.name),
           offsets[i], alignment);
    }
    if (!begin || !range_in_file(*begin, tensor.bytes, bytes.size())) {
      fail("{}: tensor {}: {} bytes at offset {} lie outside the file of {} bytes (truncated?)",
           place, quoted(tensor.name), tensor.bytes, offsets[i], bytes.size());
    }
    tensor.data = bytes.data() + *begin;
  }
  check_no_overlap(model.tensors_, place);
  return model;
}

void Gguf::index_names() {
  by_name_.clear();
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (!by_name_.emplace(tensors_[i].name, i).second)
      fail("{}: tensor {}: found twice", path_, quoted(tensors_[i].name));
  }
}

const TensorInfo* Gguf::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found != by_name_.end() ? &tensors_[found->second] : nullptr;
}

const GgufValue* Gguf::value(std::string_view key) const {
  const auto found = metadata_.find(key);
  return found != metadata_.end() ? &found->second : nullptr;
}

const GgufValue& Gguf::required(std::string_view key) const {
  const GgufValue* found = value(key);
  if (found == nullptr) fail("{}: key {}: missing", path_, quoted(key));
  return *found;
}

bool Gguf::has(std::string_view key) const { return value(key) != nullptr; }

int64_t Gguf::integer(std::string_view key, int64_t min, int64_t max) const {
  const GgufValue& found = required(key);
  if (const auto* u = std::get_if<uint64_t>(&found.value);
      u && std::cmp_greater_equal(*u, min) && std::cmp_less_equal(*u, max)) {
    return static_cast<int64_t>(*u);
  }
  if (const auto* i = std::get_if<int64_t>(&found.value); i && *i >= min && *i <= max) return *i;
  fail_type(path_, key, found, fmt::format("integer in [{}, {}]", min, max));
}

double Gguf::number(std::string_view key) const {
  const GgufValue& found = required(key);
  if (const auto* d = std::get_if<double>(&found.value); d && std::isfinite(*d)) return *d;
  if (const auto* u = std::get_if<uint64_t>(&found.value)) return static_cast<double>(*u);
  if (const auto* i = std::get_if<int64_t>(&found.value)) return static_cast<double>(*i);
  fail_type(path_, key, found, "a finite number");
}

const std::string& Gguf::string(std::string_view key) const {
  const GgufValue& found = required(key);
  if (const auto* s = std::get_if<std::string>(&found.value)) return *s;
  fail_type(path_, key, found, "string");
}

std::optional<int64_t> Gguf::optional_integer(std::string_view key, int64_t min,
                                              int64_t max) const {
  return has(key) ? std::optional(integer(key, min, max)) : std::nullopt;
}

std::optional<double> Gguf::optional_number(std::string_view key) const {
  return has(key) ? std::optional(number(key)) : std::nullopt;
}

std::optional<bool> Gguf::optional_boolean(std::string_view key) const {
  const GgufValue* found = value(key);
  if (found == nullptr) return std::nullopt;
  if (const auto* b = std::get_if<bool>(&found->value)) return *b;
  fail_type(path_, key, *found, "boolean");
}

const std::string* Gguf::optional_string(std::string_view key) const {
  return has(key) ? &string(key) : nullptr;
}

const std::vector<std::string>* Gguf::optional_strings(std::string_view key) const {
  const GgufValue* found = value(key);
  if (found == nullptr) return nullptr;
  if (const auto* strings = std::get_if<std::vector<std::string>>(&found->value)) return strings;
  fail_type(path_, key, *found, "array of strings");
}

std::optional<std::vector<int64_t>> Gguf::optional_integers(std::string_view key, int64_t min,
                                                            int64_t max) const {
  const GgufValue* found = value(key);
  if (found == nullptr) return std::nullopt;
  return std::visit(
      [&]<class V>(const V& values) -> std::vector<int64_t> {
        if constexpr (std::is_same_v<V, std::vector<uint64_t>> ||
                      std::is_same_v<V, std::vector<int64_t>>) {
          std::vector<int64_t> integers;
          for (const auto v : values) {
            if (std::cmp_less(v, min) || std::cmp_greater(v, max)) {
              fail("{}: key {}: element {}: found {}, expected an integer in [{}, {}]", path_,
                   quoted(key), integers.size(), v, min, max);
            }
            integers.push_back(static_cast<int64_t>(v));
          }
          return integers;
        } else {
          fail_type(path_, key, *found, "array of integers");
        }
      },
      found->value);
}

std::optional<std::vector<double>> Gguf::optional_numbers(std::string_view key) const {
  const GgufValue* found = value(key);
  if (found == nullptr) return std::nullopt;
  const auto* numbers = std::get_if<std::vector<double>>(&found->value);
  if (numbers == nullptr) fail_type(path_, key, *found, "array of numbers");
  for (size_t i = 0; i < numbers->size(); ++i) {
    if (!std::isfinite((*numbers)[i])) {
      fail("{}: key {}: element {}: found {}, expected a finite number", path_, quoted(key), i,
           (*numbers)[i]);
    }
  }
  return *numbers;
}

int32_t gguf_type_number(DType dtype) {
  for (const GgmlType& type : kGgmlTypes) {
    if (type.dtype == dtype) return static_cast<int32_t>(type.id);
  }
  return -1;
}

}  // namespace fathom
