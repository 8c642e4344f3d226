#include "tensor/arena.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/base/count_allocations.h"

namespace fathom {
namespace {

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 64 == 0; }

TEST(Arena, ArraysAreAlignedAndDoNotOverlap) {
  Arena arena;
  ArenaScope scope(arena);
  std::vector<std::pair<unsigned char*, int64_t>> arrays;
  // Past the first block, so that several blocks are in use at once.
  for (int64_t bytes : {1, 63, 64, 65, 0, 1 << 19, 1 << 20, 3, 5 << 20, 7}) {
    auto* p = scope.array<unsigned char>(bytes);
    ASSERT_TRUE(aligned(p)) << bytes;
    std::memset(p, static_cast<int>(arrays.size() + 1), static_cast<size_t>(bytes));
    arrays.emplace_back(p, bytes);
  }
  for (size_t a = 0; a < arrays.size(); ++a) {
    for (int64_t i = 0; i < arrays[a].second; ++i) ASSERT_EQ(arrays[a].first[i], a + 1) << i;
  }
}

TEST(Arena, LeavingAScopeFreesWhatWasAllocatedInIt) {
  Arena arena;
  ArenaScope outer(arena);
  int* kept = outer.array<int>(10);
  *kept = 42;
  void* first;
  {
    ArenaScope inner(arena);
    first = inner.array<float>(1000);
  }
  ArenaScope again(arena);
  EXPECT_EQ(again.array<float>(1000), first);
  EXPECT_EQ(*kept, 42);
}

TEST(Arena, AScopeThatBeginsInALaterBlockEndsWhereItBegan) {
  Arena arena;
  ArenaScope outer(arena);
  outer.array<float>(1 << 18);
  outer.array<float>(1 << 19);  // does not fit into the first block
  void* first;
  {
    ArenaScope inner(arena);
    first = inner.array<float>(100);
  }
  ArenaScope again(arena);
  EXPECT_EQ(again.array<float>(100), first);
}

TEST(Arena, TheSecondStepOfTheSameSizeAllocatesNothing) {
  Arena arena;
  const auto step = [&] {
    ArenaScope scope(arena);
    scope.rows(300, 1000);
    for (int layer = 0; layer < 3; ++layer) {
      ArenaScope inner(arena);
      inner.rows(200, 3000);
      inner.rows(100, 7000);
    }
  };
  EXPECT_EQ(arena.reserved_bytes(), 0u);
  step();
  const size_t reserved = arena.reserved_bytes();
  EXPECT_GE(reserved, (300u * 1000 + 200 * 3000 + 100 * 7000) * sizeof(float));
  for (int i = 0; i < 3; ++i) {
    step();
    EXPECT_EQ(arena.reserved_bytes(), reserved);
  }
}

// It happens in a destructor.
TEST(Arena, WithoutMemoryForOneBlockOfAllItStaysUsable) {
  Arena arena;
  {
    ArenaScope scope(arena);
    scope.array<std::byte>(2 << 20);
    scope.array<std::byte>(2 << 20);  // a second block
    failing_allocation = allocations.load();
  }
  EXPECT_GT(allocations, failing_allocation);
  failing_allocation = -1;
  EXPECT_EQ(arena.reserved_bytes(), 0u);
  ArenaScope scope(arena);
  std::memset(scope.array<std::byte>(3 << 20), 1, 3 << 20);
}

TEST(Arena, WhatWasReservedIsEnoughForThatMuch) {
  Arena arena;
  arena.reserve(5 << 20);
  arena.reserve(1 << 20);
  for (int step = 0; step < 2; ++step) {
    ArenaScope scope(arena);
    scope.array<std::byte>(2 << 20);
    scope.array<std::byte>(3 << 20);
  }
  EXPECT_EQ(arena.reserved_bytes(), size_t{5} << 20);
}

TEST(Arena, RowsFollowEachOther) {
  Arena arena;
  ArenaScope scope(arena);
  const Rows rows = scope.rows(3, 5);
  EXPECT_EQ(rows.rows, 3);
  EXPECT_EQ(rows.cols, 5);
  EXPECT_EQ(rows.row(2), rows.data + 10);
  EXPECT_EQ(rows.columns(1, 2).row(2), rows.data + 11);
  EXPECT_EQ(rows.columns(1, 2).cols, 2);
  EXPECT_EQ(rows.slice(1, 2).row(1), rows.data + 10);
  EXPECT_EQ(rows.slice(1, 2).rows, 2);
}

}  // namespace
}  // namespace fathom
