// Checksums of files: XXH3, 64 bits. They find damage (bad disks, cut files), not forgery.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace fathom {

uint64_t hash_bytes(std::span<const std::byte> bytes);
std::string hash_text(uint64_t hash);  // 16 hexadecimal digits

// The hash of bytes that come in pieces; how they were cut does not matter.
class Hasher {
 public:
  Hasher();
  ~Hasher();
  void add(std::span<const std::byte> bytes);
  uint64_t value() const;  // of all bytes so far

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fathom
