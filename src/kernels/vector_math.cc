#include "kernels/vector_math.h"

#include "kernels/dispatch.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void vector_exp(const float* x, int64_t n, float* out))

void vector_exp(Isa isa, const float* x, int64_t n, float* out) {
  FATHOM_SIMD_CALL(isa, vector_exp)(x, n, out);
}

}  // namespace fathom
