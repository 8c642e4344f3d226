#include "tensor/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "base/check.h"

namespace fathom {
namespace {
constexpr size_t kAlignment = 64;
constexpr size_t kSmallestBlock = 1 << 20;
constexpr size_t kHugePage = 2 << 20;

// Memory whose pages come when they are written to: huge ones where the system has them, one fault
// instead of 512.
std::unique_ptr<std::byte[]> new_memory(size_t bytes) {
  auto memory = std::make_unique_for_overwrite<std::byte[]>(bytes);
  const auto begin = reinterpret_cast<uintptr_t>(memory.get());
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = (begin + bytes) / kHugePage * kHugePage;
  // a refusal is harmless
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
  return memory;
}
}  // namespace

std::byte* Arena::allocate(size_t bytes) {
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  while (top_.block < blocks_.size()) {
    const Block& block = blocks_[top_.block];
    if (bytes <= block.bytes - top_.used) {
      std::byte* memory = block.aligned() + top_.used;
      top_.used += bytes;
      return memory;
    }
    top_ = {top_.block + 1, 0};
  }
  const size_t size = std::max({bytes, kSmallestBlock, reserved_bytes() / 2});
  blocks_.push_back({new_memory(size + kAlignment), size});
  top_ = {blocks_.size() - 1, bytes};
  return blocks_.back().aligned();
}

size_t Arena::reserved_bytes() const {
  size_t total = 0;
  for (const Block& block : blocks_) total += block.bytes;
  return total;
}

void Arena::reserve(size_t bytes) {
  FATHOM_CHECK(top_.block == 0 && top_.used == 0, top_.block, top_.used);
  if (reserved_bytes() >= bytes) return;
  blocks_.clear();
  blocks_.push_back({new_memory(bytes + kAlignment), bytes});
}

void Arena::rewind(Mark mark) {
  top_ = mark;
  // Once empty, several blocks become one of their total size: the next step fits without a seam.
  if (mark.block == 0 && mark.used == 0 && blocks_.size() > 1) {
    const size_t total = reserved_bytes();
    blocks_.clear();
    try {
      blocks_.push_back({new_memory(total + kAlignment), total});
    } catch (const std::bad_alloc&) {  // a destructor is here: stay empty, the next step asks again
    }
  }
}

}  // namespace fathom
