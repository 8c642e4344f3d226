#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace fathom::internal {

void check_failed(const char* file, int line, const char* condition, const std::string& values) {
  std::fprintf(stderr, "fathom: bug at %s:%d: %s %s\n", file, line, condition, values.c_str());
  std::abort();
}

}  // namespace fathom::internal
