// Texts of tokens to their ids: half a million look-ups while loading, one per piece with
// ignore_merges.
// Open addressing; the texts stay where they are.
#pragma once

#include <bit>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

namespace fathom {

class TokenIndex {
 public:
  // Room for `capacity` texts.
  explicit TokenIndex(size_t capacity = 0) : slots_(std::bit_ceil(2 * capacity + 2)) {}

  // False if the text is there already. REQUIRES: there is room; `text` outlives this and has less
  // than 4 GiB.
  bool insert(std::string_view text, int32_t id) {
    const uint64_t hash = std::hash<std::string_view>()(text);
    Slot& slot = slots_[slot_of(text, hash)];
    if (slot.text != nullptr) return false;
    slot = {text.data(), static_cast<uint32_t>(text.size()), static_cast<uint32_t>(hash >> 32), id};
    return true;
  }
  std::optional<int32_t> find(std::string_view text) const {
    const Slot& slot = slots_[slot_of(text, std::hash<std::string_view>()(text))];
    return slot.text != nullptr ? std::optional(slot.id) : std::nullopt;
  }

 private:
  struct Slot {
    const char* text = nullptr;
    uint32_t size = 0, hash = 0;
    int32_t id = 0;
  };
  size_t slot_of(std::string_view text, uint64_t hash) const {  // where it is, or would go
    const size_t mask = slots_.size() - 1;
    for (size_t i = hash & mask;; i = (i + 1) & mask) {
      const Slot& slot = slots_[i];
      if (slot.text == nullptr ||
          (slot.hash == hash >> 32 && std::string_view(slot.text, slot.size) == text))
        return i;
    }
  }

  std::vector<Slot> slots_;  // a power of two, at most half full
};

}  // namespace fathom
