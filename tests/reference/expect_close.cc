#include "tests/reference/expect_close.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>

namespace fathom::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Elements of either side; index counts row by row.
template <class T>
struct Side {
  const T* data;
  int64_t rows, cols, stride;
  int64_t size() const { return rows * cols; }
  T operator[](int64_t i) const { return data[i / cols * stride + i % cols]; }
  std::string place(int64_t i) const {
    return rows == 1 ? fmt::format("[{}]", i) : fmt::format("[{}, {}]", i / cols, i % cols);
  }
  const void* begin() const { return data; }
  const void* end() const { return size() == 0 ? data : data + (rows - 1) * stride + cols; }
};

template <class T>
Side<T> side(std::span<const T> s) {
  return {s.data(), 1, static_cast<int64_t>(s.size()), static_cast<int64_t>(s.size())};
}
Side<float> side(ConstRows r) { return {r.data, r.rows, r.cols, r.stride}; }

// Problems that make a comparison meaningless; empty when there are none.
template <class A, class E>
std::string not_comparable(const Side<A>& actual, const Side<E>& expected) {
  if (actual.size() != expected.size()) {
    return fmt::format("{} elements, expected {}", actual.size(), expected.size());
  }
  const std::less<const void*> before;
  if (actual.size() > 0 && before(actual.begin(), expected.end()) &&
      before(expected.begin(), actual.end())) {
    return "both sides are the same memory: the comparison proves nothing";
  }
  return "";
}

// By how much a value is out of its bound, relative to it: <= 1 passes; a wrong NaN or infinity is
// infinitely wrong.
double excess(double actual, double expected, double bound) {
  if (std::isnan(expected) || std::isnan(actual))
    return std::isnan(expected) == std::isnan(actual) ? 0 : kInfinity;
  if (std::isinf(expected) || std::isinf(actual)) return expected == actual ? 0 : kInfinity;
  const double error = std::abs(actual - expected);
  if (error <= bound) return bound > 0 ? error / bound : 0;
  return bound > 0 ? std::max(error / bound, 1 + 1e-15) : kInfinity;
}

template <class A, class E, class Bound>
void compare(const Side<A>& actual, const Side<E>& expected, Bound bound_of, const char* file,
             int line) {
  std::string problem = not_comparable(actual, expected);
  int64_t worst = 0, wrong = 0;
  double worst_excess = -1;
  for (int64_t i = 0; problem.empty() && i < actual.size(); ++i) {
    const double bound = bound_of(i);
    if (!(bound >= 0 && bound < kInfinity)) {
      problem = fmt::format("bound {} at {} is not a finite number >= 0", bound, actual.place(i));
      break;
    }
    const double e = excess(actual[i], expected[i], bound);
    wrong += e > 1;
    if (e > worst_excess) {
      worst_excess = e;
      worst = i;
    }
  }
  if (problem.empty() && wrong > 0) {
    problem = fmt::format(
        "{} of {} elements differ; worst at {}: {:.9g}, expected {:.9g}, difference {:.3g}, bound "
        "{:.3g}",
        wrong, actual.size(), actual.place(worst), static_cast<double>(actual[worst]),
        static_cast<double>(expected[worst]),
        static_cast<double>(actual[worst]) - static_cast<double>(expected[worst]), bound_of(worst));
  }
  if (!problem.empty()) ADD_FAILURE_AT(file, line) << "expect_close: " << problem;
}

template <class A>
void compare_each(const Side<A>& actual, std::span<const double> expected,
                  std::span<const double> bounds, const char* file, int line) {
  if (bounds.size() != expected.size()) {
    ADD_FAILURE_AT(file, line) << fmt::format("expect_close: {} bounds for {} elements",
                                              bounds.size(), expected.size());
    return;
  }
  compare(
      actual, side(expected), [&](int64_t i) { return bounds[static_cast<size_t>(i)]; }, file,
      line);
}

void compare_bits(const Side<float>& actual, const Side<float>& expected, const char* file,
                  int line) {
  std::string problem = not_comparable(actual, expected);
  for (int64_t i = 0; problem.empty() && i < actual.size(); ++i) {
    const auto a = std::bit_cast<uint32_t>(actual[i]), e = std::bit_cast<uint32_t>(expected[i]);
    if (a == e) continue;
    problem = fmt::format("first difference at {}: {:.9g} ({:#010x}), expected {:.9g} ({:#010x})",
                          actual.place(i), actual[i], a, expected[i], e);
  }
  if (!problem.empty()) ADD_FAILURE_AT(file, line) << "expect_same_bits: " << problem;
}

}  // namespace

void expect_close(std::span<const float> actual, std::span<const double> expected,
                  std::span<const double> bounds, const char* file, int line) {
  compare_each(side(actual), expected, bounds, file, line);
}

void expect_close(std::span<const float> actual, std::span<const double> expected, double bound,
                  const char* file, int line) {
  compare(
      side(actual), side(expected), [&](int64_t) { return bound; }, file, line);
}

void expect_close(std::span<const double> actual, std::span<const double> expected, double bound,
                  const char* file, int line) {
  compare(
      side(actual), side(expected), [&](int64_t) { return bound; }, file, line);
}

void expect_close(std::span<const float> actual, std::span<const float> expected, double bound,
                  const char* file, int line) {
  compare(
      side(actual), side(expected), [&](int64_t) { return bound; }, file, line);
}

void expect_close(ConstRows actual, std::span<const double> expected,
                  std::span<const double> bounds, const char* file, int line) {
  compare_each(side(actual), expected, bounds, file, line);
}

void expect_close(ConstRows actual, std::span<const double> expected, double bound,
                  const char* file, int line) {
  compare(
      side(actual), side(expected), [&](int64_t) { return bound; }, file, line);
}

void expect_same_bits(std::span<const float> actual, std::span<const float> expected,
                      const char* file, int line) {
  compare_bits(side(actual), side(expected), file, line);
}

void expect_same_bits(ConstRows actual, ConstRows expected, const char* file, int line) {
  if (actual.rows != expected.rows || actual.cols != expected.cols) {
    ADD_FAILURE_AT(file, line) << fmt::format("expect_same_bits: shape [{}, {}], expected [{}, {}]",
                                              actual.rows, actual.cols, expected.rows,
                                              expected.cols);
    return;
  }
  compare_bits(side(actual), side(expected), file, line);
}

}  // namespace fathom::reference
