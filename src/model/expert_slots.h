// Which routed expert lies in which slot of a bounded store, and which one makes room: the policy
// of model/expert_cache.h, without memory and without I/O.
//
// Least recently used first, with one exception: a use "in passing" (a prefill step that goes
// through most experts of a layer, which says nothing about the next step) does not count as
// recent. What comes in in passing is the next to go, so a long prompt runs through a few slots
// and leaves the others as they are. Plain LRU would let each layer of the prompt push out the
// next: no hits at all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fathom {

class ExpertSlots {
 public:
  enum class Use { kAgain, kInPassing };
  struct Place {
    int32_t slot = -1;
    bool hit = false;  // the expert was there; else the slot is to be filled
  };

  // Experts are [0, experts).
  ExpertSlots(int64_t experts, int32_t slots);

  // The expert's slot, a new one if it has none; it stays until as many unpin(). REQUIRES: it is
  // there, or not all slots are pinned. Allocates nothing.
  Place pin(int64_t expert, Use use);
  void unpin(int64_t expert);
  // The expert is not there after all (its read failed). REQUIRES: it is there, unpinned.
  void forget(int64_t expert);

  int32_t slot_of(int64_t expert) const { return slot_of_[static_cast<size_t>(expert)]; }  // or -1
  int32_t slots() const { return static_cast<int32_t>(slots_.size()) - 1; }

 private:
  struct Slot {
    int32_t before = 0, after = 0;  // in the ring of use; the last slot is its head
    int64_t expert = -1;
    int32_t pins = 0;
  };
  Slot& at(int32_t slot) { return slots_[static_cast<size_t>(slot)]; }
  int32_t head() const { return slots(); }
  void unlink(int32_t slot);
  void link_before(int32_t slot, int32_t next);
  int32_t take();

  std::vector<int32_t> slot_of_;
  std::vector<Slot> slots_;    // filled ones from head().after, the next to go, to head().before
  std::vector<int32_t> free_;  // in no ring
};

}  // namespace fathom
