// Arithmetic on numbers that came from a file or a request. A Checked value that ever overflowed
// stays invalid;
// value() is absent then. Nothing wraps, nothing is guessed.
#pragma once

#include <cstdint>
#include <optional>

namespace fathom {

class Checked {
 public:
  constexpr Checked(uint64_t value)
      : value_(value) {}  // NOLINT: implicit by design, so that sums read as sums

  constexpr std::optional<uint64_t> value() const {
    return valid_ ? std::optional<uint64_t>(value_) : std::nullopt;
  }

  friend constexpr Checked operator+(Checked a, Checked b) {
    Checked r(0);
    r.valid_ = !__builtin_add_overflow(a.value_, b.value_, &r.value_) && a.valid_ && b.valid_;
    return r;
  }
  friend constexpr Checked operator*(Checked a, Checked b) {
    Checked r(0);
    r.valid_ = !__builtin_mul_overflow(a.value_, b.value_, &r.value_) && a.valid_ && b.valid_;
    return r;
  }
  // Rounded up to a multiple of `alignment`. REQUIRES: alignment is not 0.
  constexpr Checked align_up(uint64_t alignment) const {
    const uint64_t rest = value_ % alignment;
    return rest == 0 ? *this : *this + Checked(alignment - rest);
  }

 private:
  uint64_t value_;
  bool valid_ = true;
};

// The one question before any byte of a mapping is touched.
constexpr bool range_in_file(uint64_t offset, uint64_t length, uint64_t file_size) {
  return offset <= file_size && length <= file_size - offset;
}

}  // namespace fathom
