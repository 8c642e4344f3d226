// Byte-pair merging inside one piece: the lowest-ranked mergeable pair first, the leftmost among
// equals, until none is left. O(n log n) in the piece: pairs wait in a heap, symbols hang in a
// linked list.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace fathom {

class Bpe {
 public:
  // Working memory, kept between pieces; one per thread.
  struct Scratch {
    struct Symbol {
      int32_t id;
      // of the pair with the next symbol; kNoRank without such a merge, or if the symbol is gone
      uint32_t rank;
      uint32_t previous, next;
    };
    std::vector<Symbol> symbols;
    // rank << 32 | position, smallest on top; stale entries are skipped
    std::vector<uint64_t> heap;
  };

  Bpe() = default;
  // `byte_ids`: the token of each byte, or kNoToken. Room is made for `merges` merges.
  Bpe(const std::array<int32_t, 256>& byte_ids, size_t merges);
  // The merge of the next rank. False if the pair has one already. REQUIRES: no more merges than
  // room was made for.
  bool add_merge(int32_t left, int32_t right, int32_t merged);

  // Appends the ids of `piece`. A byte without a token becomes U+FFFD. REQUIRES: the bytes of
  // U+FFFD have tokens, the piece is shorter than 1 GiB.
  void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

  size_t merge_count() const { return merged_.size(); }

  static constexpr int32_t kNoToken = -1;

 private:
  static constexpr uint32_t kNoRank = UINT32_MAX;
  struct Slot {
    int32_t left, right;
    uint32_t rank = kNoRank;
  };
  // the pair's slot, or the empty one where it would go
  size_t slot_of(int32_t left, int32_t right) const;

  std::array<int32_t, 256> byte_ids_{};
  std::vector<Slot> slots_;      // open addressing, a power of two, at most half full
  std::vector<int32_t> merged_;  // by rank
};

}  // namespace fathom
