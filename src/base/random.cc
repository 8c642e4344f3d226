#include "base/random.h"

#include <cmath>
#include <numbers>

namespace fathom {

double random_normal(const RandomKey& key, uint64_t position) {
  const double u = 1.0 - random_uniform(key, 2 * position);  // in (0, 1]: its logarithm is finite
  const double v = random_uniform(key, 2 * position + 1);
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

}  // namespace fathom
