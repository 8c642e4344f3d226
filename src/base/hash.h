// Checksums of files: XXH3, 64 bits. They find damage (bad disks, cut files), not forgery.
// And names for content, 128 bits: two contents that anybody meets have two names, unless they were
// made to collide.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace fathom {

uint64_t hash_bytes(std::span<const std::byte> bytes);
std::string hash_text(uint64_t hash);  // 16 hexadecimal digits

struct Hash128 {
  uint64_t low = 0, high = 0;
  bool operator==(const Hash128&) const = default;
};

// Names `bytes` as they follow the content that `before` names: chained from block to block, a name
// stands for a whole beginning. Throws nothing, allocates nothing.
Hash128 hash_chained(const Hash128& before, std::span<const std::byte> bytes);
std::string hash_text(const Hash128& hash);  // 32 hexadecimal digits

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
