#include "model/expert_slots.h"

#include "base/check.h"

namespace fathom {

ExpertSlots::ExpertSlots(int64_t experts, int32_t slots)
    : slot_of_(static_cast<size_t>(experts), -1), slots_(static_cast<size_t>(slots) + 1) {
  FATHOM_CHECK(slots >= 1, slots);
  at(head()).before = at(head()).after = head();
  for (int32_t s = slots - 1; s >= 0; --s) free_.push_back(s);
}

void ExpertSlots::unlink(int32_t slot) {
  at(at(slot).before).after = at(slot).after;
  at(at(slot).after).before = at(slot).before;
}

void ExpertSlots::link_before(int32_t slot, int32_t next) {
  at(slot).before = at(next).before;
  at(slot).after = next;
  at(at(slot).before).after = slot;
  at(next).before = slot;
}

// A slot that holds nothing and is in no ring.
int32_t ExpertSlots::take() {
  if (!free_.empty()) {
    const int32_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  int32_t slot = at(head()).after;
  while (slot != head() && at(slot).pins > 0) slot = at(slot).after;
  FATHOM_CHECK(slot != head(), slots());
  unlink(slot);
  slot_of_[static_cast<size_t>(at(slot).expert)] = -1;
  return slot;
}

ExpertSlots::Place ExpertSlots::pin(int64_t expert, Use use) {
  Place place{slot_of(expert), true};
  if (place.slot < 0) {
    place = {take(), false};
    at(place.slot).expert = expert;
    slot_of_[static_cast<size_t>(expert)] = place.slot;
  } else if (use == Use::kAgain) {
    unlink(place.slot);
  }
  if (use == Use::kAgain) {
    link_before(place.slot, head());
  } else if (!place.hit) {
    link_before(place.slot, at(head()).after);
  }
  ++at(place.slot).pins;
  return place;
}

void ExpertSlots::unpin(int64_t expert) {
  const int32_t slot = slot_of(expert);
  FATHOM_CHECK(slot >= 0 && at(slot).pins > 0, expert);
  --at(slot).pins;
}

void ExpertSlots::forget(int64_t expert) {
  const int32_t slot = slot_of(expert);
  FATHOM_CHECK(slot >= 0 && at(slot).pins == 0, expert);
  slot_of_[static_cast<size_t>(expert)] = -1;
  unlink(slot);
  free_.push_back(slot);
}

}  // namespace fathom
