#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>

#include "base/check.h"
#include "base/random.h"

namespace fathom {

Bpe::Bpe(const std::array<int32_t, 256>& byte_ids, size_t merges)
    : byte_ids_(byte_ids), slots_(std::bit_ceil(2 * merges + 2)) {
  merged_.reserve(merges);
}

size_t Bpe::slot_of(int32_t left, int32_t right) const {
  const size_t mask = slots_.size() - 1;
  size_t i = mix_bits(uint64_t(uint32_t(left)) << 32 | uint32_t(right)) & mask;
  while (slots_[i].rank != kNoRank && (slots_[i].left != left || slots_[i].right != right))
    i = (i + 1) & mask;
  return i;
}

bool Bpe::add_merge(int32_t left, int32_t right, int32_t merged) {
  FATHOM_CHECK(2 * merged_.size() + 2 <= slots_.size(), merged_.size());
  Slot& slot = slots_[slot_of(left, right)];
  if (slot.rank != kNoRank) return false;
  slot = {left, right, static_cast<uint32_t>(merged_.size())};
  merged_.push_back(merged);
  return true;
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  std::vector<uint64_t>& heap = scratch.heap;
  symbols.clear();
  heap.clear();
  const auto append = [&](int32_t id) {
    const auto i = static_cast<uint32_t>(symbols.size());
    symbols.push_back({id, kNoRank, i - 1, i + 1});
  };
  for (const char c : piece) {
    if (const int32_t id = byte_ids_[static_cast<unsigned char>(c)]; id != kNoToken) {
      append(id);
    } else {
      for (const unsigned char byte : {0xef, 0xbf, 0xbd}) append(byte_ids_[byte]);
    }
  }
  const auto count = static_cast<uint32_t>(symbols.size());

  // Looks up the pair that begins at `i`, after one of its symbols changed.
  const auto update = [&](uint32_t i) {
    const uint32_t next = symbols[i].next;
    symbols[i].rank =
        next < count ? slots_[slot_of(symbols[i].id, symbols[next].id)].rank : kNoRank;
    if (symbols[i].rank != kNoRank) heap.push_back(uint64_t(symbols[i].rank) << 32 | i);
    return symbols[i].rank != kNoRank;
  };
  const auto update_and_sift = [&](uint32_t i) {
    if (update(i)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  for (uint32_t i = 0; i < count; ++i) update(i);
  std::make_heap(heap.begin(), heap.end(), std::greater<>());

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    const auto i = static_cast<uint32_t>(heap.back());
    const auto rank = static_cast<uint32_t>(heap.back() >> 32);
    heap.pop_back();
    if (symbols[i].rank != rank) continue;  // one of the pair has merged meanwhile
    const uint32_t gone = symbols[i].next;
    symbols[i].id = merged_[rank];
    symbols[i].next = symbols[gone].next;
    symbols[gone].rank = kNoRank;
    if (symbols[i].next < count) symbols[symbols[i].next].previous = i;
    update_and_sift(i);
    if (i != 0) update_and_sift(symbols[i].previous);
  }
  for (uint32_t i = 0; i < count; i = symbols[i].next) ids.push_back(symbols[i].id);
}

}  // namespace fathom
