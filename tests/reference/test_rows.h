// What every kernel test needs: the instruction sets of this machine and rows whose surroundings
// show a stray access.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "base/random.h"
#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom::reference {

inline std::vector<Isa> instruction_sets() {
  std::vector<Isa> sets;
  for (const Isa isa : kIsas) {
    if (has_isa(isa)) sets.push_back(isa);
  }
  return sets;
}

// Uniform in [-1, 1), one stream of numbers per purpose.
inline float noise(uint64_t stream, int64_t i) {
  return static_cast<float>(
      random_uniform({.seed = 7, .sequence = stream}, static_cast<uint64_t>(i)) * 2 - 1);
}

// [rows, cols] filled with scale * noise, at an address that is no multiple of 16 and with a stride
// of its own. What lies between and around the rows is NaN: read, it poisons the result; written,
// intact() says so.
class PaddedRows {
 public:
  PaddedRows(int64_t rows, int64_t cols, uint64_t stream = 0, float scale = 1)
      : memory_(static_cast<size_t>(kPad + rows * (cols + kPad)), kNan) {
    view = {memory_.data() + kPad, rows, cols, cols + kPad};
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) view.row(r)[c] = scale * noise(stream, r * cols + c);
    }
  }
  PaddedRows(const PaddedRows&) = delete;
  PaddedRows& operator=(const PaddedRows&) = delete;

  bool intact() const {
    for (int64_t r = -1; r < view.rows; ++r) {
      for (int64_t i = 0; i < kPad; ++i) {
        const float x = memory_[static_cast<size_t>((r + 1) * (view.cols + kPad) + i)];
        if (x == x) return false;
      }
    }
    return true;
  }

  Rows view;

 private:
  static constexpr int64_t kPad = 3;
  static constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  std::vector<float> memory_;
};

}  // namespace fathom::reference
