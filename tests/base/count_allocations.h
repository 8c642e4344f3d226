// Counts what this program allocates, remembers the largest, and lets one allocation fail.
// Include it in one file of a test program: it replaces the allocation functions.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace fathom {
inline std::atomic<int64_t> allocations = 0;
inline std::atomic<size_t> largest_allocation = 0;    // since it was last set
inline std::atomic<int64_t> failing_allocation = -1;  // the one of this number, counted as above
}  // namespace fathom

// All forms that occur, so that none meets a sanitizer's own other half; not inline, or the
// compiler sees free() meet new.
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  size_t largest = fathom::largest_allocation;
  while (bytes > largest && !fathom::largest_allocation.compare_exchange_weak(largest, bytes)) {
  }
  if (fathom::allocations++ == fathom::failing_allocation) return nullptr;
  return std::malloc(bytes);
}
[[gnu::noinline]] void* operator new(size_t bytes) {
  if (void* memory = operator new(bytes, std::nothrow)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new[](size_t bytes) { return operator new(bytes); }
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
