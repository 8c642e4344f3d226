// The one comparison of every numeric test. It passes only when both sides have the same shape, NaN
// and infinities (with their sign) in the same places, and |actual - expected| <= bound everywhere
// else; otherwise it fails the running test at the caller's line and prints the worst element. Two
// sides that share memory fail too: a buffer always agrees with itself.
//
// A bound comes from the arithmetic (u = 2^-24, number of terms, sum of |terms|), not from taste;
// it must be finite and >= 0.
#pragma once

#include <span>

#include "tensor/view.h"

namespace fathom::reference {

inline constexpr double kUnit = 0x1p-24;  // u: half an ulp of f32 at 1

// One bound per element, or one for all. `actual` is what the program computed, `expected` its
// plain twin.
void expect_close(std::span<const float> actual, std::span<const double> expected,
                  std::span<const double> bounds, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE());
void expect_close(std::span<const float> actual, std::span<const double> expected, double bound,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE());
// The same between doubles (a twin against another twin) and between floats.
void expect_close(std::span<const double> actual, std::span<const double> expected, double bound,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE());
void expect_close(std::span<const float> actual, std::span<const float> expected, double bound,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE());
// Strided rows against a dense [rows, cols].
void expect_close(ConstRows actual, std::span<const double> expected,
                  std::span<const double> bounds, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE());
void expect_close(ConstRows actual, std::span<const double> expected, double bound,
                  const char* file = __builtin_FILE(), int line = __builtin_LINE());

// Equal bit for bit: NaN payloads and the sign of zero count.
void expect_same_bits(std::span<const float> actual, std::span<const float> expected,
                      const char* file = __builtin_FILE(), int line = __builtin_LINE());
void expect_same_bits(ConstRows actual, ConstRows expected, const char* file = __builtin_FILE(),
                      int line = __builtin_LINE());

}  // namespace fathom::reference
