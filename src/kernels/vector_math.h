// Elementary functions of many values, the same code that the other kernels use lane by lane.
#pragma once

#include <cstdint>

#include "tensor/context.h"

namespace fathom {

// out[i] = e^x[i] within 2 ulp; 0 where e^x is below the normal range, +inf above 88.72283, NaN
// stays NaN. out may be x.
// A value's result does not depend on its place or on n. Thread-safe.
void vector_exp(Isa isa, const float* x, int64_t n, float* out);

}  // namespace fathom
