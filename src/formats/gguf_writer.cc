#include "formats/gguf_writer.h"

#include <cstring>

#include "base/check.h"
#include "base/file.h"
#include "formats/gguf.h"

namespace fathom {
namespace {

constexpr uint64_t kAlignment = 32;
enum ValueType : uint32_t { kU32 = 4, kI32 = 5, kF32 = 6, kBool = 7, kString = 8, kArray = 9 };

template <class T>
void append(std::string& out, T value) {
  char bytes[sizeof value];
  std::memcpy(bytes, &value, sizeof value);
  out.append(bytes, sizeof value);
}

void append_string(std::string& out, std::string_view text) {
  append(out, static_cast<uint64_t>(text.size()));
  out += text;
}

uint64_t aligned(uint64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

void GgufWriter::begin_key(std::string_view name, uint32_t type) {
  append_string(keys_, name);
  append(keys_, type);
  ++key_count_;
}
void GgufWriter::key(std::string_view name, uint32_t value) {
  begin_key(name, kU32);
  append(keys_, value);
}
void GgufWriter::key(std::string_view name, float value) {
  begin_key(name, kF32);
  append(keys_, value);
}
void GgufWriter::key(std::string_view name, bool value) {
  begin_key(name, kBool);
  append(keys_, static_cast<uint8_t>(value));
}
void GgufWriter::key(std::string_view name, std::string_view value) {
  begin_key(name, kString);
  append_string(keys_, value);
}
void GgufWriter::key(std::string_view name, const std::vector<std::string>& values) {
  begin_key(name, kArray);
  append(keys_, static_cast<uint32_t>(kString));
  append(keys_, static_cast<uint64_t>(values.size()));
  for (const std::string& value : values) append_string(keys_, value);
}
void GgufWriter::key(std::string_view name, const std::vector<int32_t>& values) {
  begin_key(name, kArray);
  append(keys_, static_cast<uint32_t>(kI32));
  append(keys_, static_cast<uint64_t>(values.size()));
  for (const int32_t value : values) append(keys_, value);
}

void GgufWriter::stored_key(std::string_view name, std::span<const std::byte> value) {
  append_string(keys_, name);
  keys_.append(reinterpret_cast<const char*>(value.data()), value.size());
  ++key_count_;
}

void GgufWriter::tensor(std::string name, std::vector<int64_t> shape, DType dtype,
                        std::function<void(const Put&)> fill) {
  FATHOM_CHECK(gguf_type_number(dtype) >= 0 && !shape.empty(), name);
  FATHOM_CHECK(shape.back() % dtype_info(dtype).block_elements == 0, name, shape.back());
  int64_t rows = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) rows *= shape[i];
  const auto bytes = static_cast<uint64_t>(rows * row_bytes(dtype, shape.back()));
  tensors_.push_back({std::move(name), std::move(shape), dtype, bytes, std::move(fill)});
}

std::string GgufWriter::header() const {
  std::string header = "GGUF";
  append(header, uint32_t{3});
  append(header, static_cast<uint64_t>(tensors_.size()));
  append(header, key_count_);
  header += keys_;
  uint64_t offset = 0;
  for (const Entry& t : tensors_) {
    append_string(header, t.name);
    append(header, static_cast<uint32_t>(t.shape.size()));
    for (auto it = t.shape.rbegin(); it != t.shape.rend(); ++it)
      append(header, static_cast<uint64_t>(*it));
    append(header, static_cast<uint32_t>(gguf_type_number(t.dtype)));
    append(header, offset);
    offset += aligned(t.bytes);
  }
  header.resize(aligned(header.size()), '\0');
  return header;
}

uint64_t GgufWriter::data_bytes() const {
  uint64_t bytes = 0;
  for (const Entry& t : tensors_) bytes += aligned(t.bytes);
  return bytes;
}

void GgufWriter::write(const std::filesystem::path& path) const {
  AtomicFile file(path);
  file.write(header());
  for (const Entry& t : tensors_) {
    uint64_t written = 0;
    t.fill([&](std::span<const std::byte> bytes) {
      file.write(bytes);
      written += bytes.size();
    });
    FATHOM_CHECK(written == t.bytes, t.name, written, t.bytes);
    file.write(std::string(aligned(written) - written, '\0'));
  }
  file.commit();
}

}  // namespace fathom
