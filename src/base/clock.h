// Monotonic time for rates and progress. Never part of a result.
#pragma once

#include <chrono>

namespace fathom {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace fathom
