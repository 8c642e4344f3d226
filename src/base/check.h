// Our own bugs. FATHOM_CHECK is always on: it prints the condition, the values and the place, and
// aborts.
// FATHOM_DCHECK is for hot loops and is on in debug and sanitizer builds only.
#pragma once

#include <fmt/format.h>

#include <string>

namespace fathom::internal {
[[noreturn]] void check_failed(const char* file, int line, const char* condition,
                               const std::string& values);

template <class... Values>
std::string check_values(const Values&... values) {
  std::string text;
  ((text += fmt::format("{} ", values)), ...);
  return text;
}
}  // namespace fathom::internal

#define FATHOM_CHECK(condition, ...)                                                   \
  do {                                                                                 \
    if (!(condition)) [[unlikely]] {                                                   \
      ::fathom::internal::check_failed(__FILE__, __LINE__, #condition,                 \
                                       ::fathom::internal::check_values(__VA_ARGS__)); \
    }                                                                                  \
  } while (false)

#ifdef __OPTIMIZE__
#define FATHOM_DCHECK(condition, ...) static_cast<void>(0)
#else
#define FATHOM_DCHECK(condition, ...) FATHOM_CHECK(condition __VA_OPT__(, ) __VA_ARGS__)
#endif
