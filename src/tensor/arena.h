// Scratch memory for one step: a bump allocator that keeps its memory. Allocate inside an
// ArenaScope; leaving the scope frees everything allocated in it. The arena grows while the first
// steps find out how much they need; from then on a step allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "tensor/view.h"

namespace fathom {

class Arena {
 public:
  // 64-byte aligned, uninitialised. Valid until the enclosing ArenaScope ends.
  std::byte* allocate(size_t bytes);
  size_t reserved_bytes() const;
  // Makes it hold at least `bytes`, in one block. The system gives pages when they are written to.
  // REQUIRES: nothing is allocated.
  void reserve(size_t bytes);

 private:
  friend class ArenaScope;
  struct Block {
    std::unique_ptr<std::byte[]> memory;
    size_t bytes;
    std::byte* aligned() const {
      return memory.get() + (64 - reinterpret_cast<uintptr_t>(memory.get()) % 64) % 64;
    }
  };
  struct Mark {
    size_t block = 0;
    size_t used = 0;
  };
  void rewind(Mark mark);  // throws nothing

  std::vector<Block> blocks_;
  Mark top_;
};

class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.top_) {}
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

  template <class T>
  T* array(int64_t count) {
    return reinterpret_cast<T*>(arena_.allocate(static_cast<size_t>(count) * sizeof(T)));
  }
  Rows rows(int64_t rows, int64_t cols) { return {array<float>(rows * cols), rows, cols, cols}; }

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace fathom
