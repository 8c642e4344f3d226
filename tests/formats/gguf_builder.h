// Writes GGUF files byte by byte for tests: valid ones, and ones wrong in exactly one place.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

template <class T>
std::string le_bytes(T value) {
  return std::string(reinterpret_cast<const char*>(&value), sizeof value);
}
inline std::string gguf_string(std::string_view text) {
  return le_bytes<uint64_t>(text.size()) + std::string(text);
}

struct GgufBuilder {
  std::string magic = "GGUF";
  uint32_t version = 3;
  uint64_t alignment = 32;
  uint64_t extra_keys = 0;  // declared but not there
  uint64_t extra_tensors = 0;
  uint64_t key_count = 0;
  uint64_t tensor_count = 0;
  std::string keys;
  std::string tensors;
  std::string data;

  GgufBuilder& key(std::string_view name, uint32_t type, const std::string& value) {
    keys += gguf_string(name) + le_bytes(type) + value;
    ++key_count;
    return *this;
  }
  GgufBuilder& u32(std::string_view name, uint32_t value) { return key(name, 4, le_bytes(value)); }
  GgufBuilder& str(std::string_view name, std::string_view value) {
    return key(name, 8, gguf_string(value));
  }

  // `ne` innermost first, as the file has it.
  GgufBuilder& info(std::string_view name, const std::vector<uint64_t>& ne, uint32_t type,
                    uint64_t offset) {
    tensors += gguf_string(name) + le_bytes(static_cast<uint32_t>(ne.size()));
    for (const uint64_t n : ne) tensors += le_bytes(n);
    tensors += le_bytes(type) + le_bytes(offset);
    ++tensor_count;
    return *this;
  }
  // A tensor at the next aligned offset.
  GgufBuilder& tensor(std::string_view name, const std::vector<uint64_t>& ne, uint32_t type,
                      std::string_view contents) {
    pad(data);
    info(name, ne, type, data.size());
    data += contents;
    return *this;
  }

  std::string header() const {
    return magic + le_bytes(version) + le_bytes(tensor_count + extra_tensors) +
           le_bytes(key_count + extra_keys) + keys + tensors;
  }
  std::string bytes() const {
    std::string file = header();
    if (!data.empty()) pad(file);
    return file + data;
  }

 private:
  void pad(std::string& text) const {
    text.resize((text.size() + alignment - 1) / alignment * alignment, '\0');
  }
};

}  // namespace fathom
