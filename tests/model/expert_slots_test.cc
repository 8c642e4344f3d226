// The policy of the expert cache: what is kept, what goes, what may not go.
#include "model/expert_slots.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "base/random.h"

namespace fathom {
namespace {

using Use = ExpertSlots::Use;

bool use(ExpertSlots& slots, int64_t expert, Use how = Use::kAgain) {
  const bool hit = slots.pin(expert, how).hit;
  slots.unpin(expert);
  return hit;
}

TEST(ExpertSlots, TheLeastRecentlyUsedMakesRoom) {
  ExpertSlots slots(10, 3);
  for (const int64_t e : {1, 2, 3}) EXPECT_FALSE(use(slots, e));
  EXPECT_TRUE(use(slots, 1));
  EXPECT_FALSE(use(slots, 4));
  EXPECT_EQ(slots.slot_of(2), -1);
  for (const int64_t e : {1, 3, 4}) EXPECT_TRUE(use(slots, e)) << e;
}

TEST(ExpertSlots, WhatIsPinnedStays) {
  ExpertSlots slots(10, 2);
  const int32_t slot = slots.pin(1, Use::kAgain).slot;
  for (const int64_t e : {2, 3, 4}) use(slots, e);
  EXPECT_EQ(slots.slot_of(1), slot);
  slots.pin(1, Use::kAgain);  // twice
  slots.unpin(1);
  use(slots, 5);
  EXPECT_EQ(slots.slot_of(1), slot);
  slots.unpin(1);
  use(slots, 6), use(slots, 7);
  EXPECT_EQ(slots.slot_of(1), -1);
}

TEST(ExpertSlots, WhatPassesThroughLeavesTheOthers) {
  ExpertSlots slots(100, 4);
  for (const int64_t e : {0, 1, 2, 3}) use(slots, e);
  for (int64_t e = 10; e < 60; ++e) EXPECT_FALSE(use(slots, e, Use::kInPassing));
  EXPECT_EQ(slots.slot_of(0), -1);  // it made room for all of them
  for (const int64_t e : {1, 2, 3}) EXPECT_TRUE(use(slots, e)) << e;
}

TEST(ExpertSlots, APassOverEverythingHitsTheShareThatIsKept) {
  ExpertSlots slots(100, 60);
  int hits = 0;
  for (int pass = 0; pass < 4; ++pass) {
    hits = 0;
    for (int64_t e = 0; e < 100; ++e) hits += use(slots, e, Use::kInPassing);
  }
  EXPECT_EQ(hits, 59);  // all but the slot that the others run through
}

TEST(ExpertSlots, WhatWasForgottenIsMissingAndItsSlotIsTheNextToBeUsed) {
  ExpertSlots slots(10, 3);
  for (const int64_t e : {1, 2, 3}) use(slots, e);
  const int32_t slot = slots.slot_of(3);
  slots.forget(3);
  EXPECT_EQ(slots.slot_of(3), -1);
  EXPECT_EQ(slots.pin(4, Use::kAgain).slot, slot);
  for (const int64_t e : {1, 2}) EXPECT_TRUE(use(slots, e)) << e;
}

// Against a list kept in order, over a random life.
TEST(ExpertSlots, IsTheOrderedListItStandsFor) {
  constexpr int64_t kExperts = 40, kSlots = 12;
  ExpertSlots slots(kExperts, kSlots);
  std::vector<int64_t> order;  // front: next to go
  for (uint64_t i = 0; i < 5000; ++i) {
    const auto expert =
        static_cast<int64_t>(random_bits({.seed = 1}, 2 * i) % static_cast<uint64_t>(kExperts));
    const bool passing = random_bits({.seed = 1}, 2 * i + 1) % 3 == 0;
    const auto found = std::find(order.begin(), order.end(), expert);
    const bool hit = found != order.end();
    if (!hit && std::ssize(order) == kSlots) order.erase(order.begin());
    if (hit && !passing) order.erase(found);
    if (!hit && passing) order.insert(order.begin(), expert);
    if (!passing) order.push_back(expert);
    ASSERT_EQ(use(slots, expert, passing ? Use::kInPassing : Use::kAgain), hit) << i;
    for (int64_t e = 0; e < kExperts; ++e)
      ASSERT_EQ(slots.slot_of(e) >= 0, std::count(order.begin(), order.end(), e) == 1) << i;
  }
}

}  // namespace
}  // namespace fathom
