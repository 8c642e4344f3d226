// Declares a function of a *.simd.cc file in each target's namespace, and picks one at run time.
//
//   FATHOM_SIMD_DECLARE(void rms_norm_row(const float* x, int64_t n, float eps, float* out))
//   FATHOM_SIMD_CALL(ctx.isa(), rms_norm_row)(x, n, eps, out);
//
// FATHOM_VNNI_..: of the files that are compiled for kAvxVnni, too (cmake/fathom.cmake); all others
// run as AVX2 there.
//
// Internal to src/kernels. The argument of DECLARE uses plain types only: it is seen by every
// target's translation unit.
#pragma once

#include "tensor/context.h"

#if defined(__x86_64__)
#define FATHOM_SIMD_DECLARE(...) \
  namespace portable {           \
  __VA_ARGS__;                   \
  }                              \
  namespace avx2 {               \
  __VA_ARGS__;                   \
  }                              \
  namespace avx512 {             \
  __VA_ARGS__;                   \
  }
#define FATHOM_SIMD_CALL(isa, function)                     \
  ((isa) == ::fathom::Isa::kAvx512     ? avx512::function   \
   : (isa) == ::fathom::Isa::kPortable ? portable::function \
                                       : avx2::function)
#define FATHOM_VNNI_DECLARE(...)   \
  FATHOM_SIMD_DECLARE(__VA_ARGS__) \
  namespace avxvnni {              \
  __VA_ARGS__;                     \
  }
#define FATHOM_VNNI_CALL(isa, function) \
  ((isa) == ::fathom::Isa::kAvxVnni ? avxvnni::function : FATHOM_SIMD_CALL(isa, function))
#else
#define FATHOM_SIMD_DECLARE(...) \
  namespace portable {           \
  __VA_ARGS__;                   \
  }
#define FATHOM_SIMD_CALL(isa, function) (static_cast<void>(isa), portable::function)
#define FATHOM_VNNI_DECLARE(...) FATHOM_SIMD_DECLARE(__VA_ARGS__)
#define FATHOM_VNNI_CALL(isa, function) FATHOM_SIMD_CALL(isa, function)
#endif

namespace fathom {

// Whether this is an Intel processor: only for choices between ways to the same bits, by what was
// measured.
bool is_intel();

// Whether VBMI is there, to look up codes of FP8 64 at a time.
bool looks_up_f8(Isa isa);

// Whether vdpbf16ps is the fastest way to multiply bf16 here (gemm.cc); VBMI is there, too.
bool native_bf16(Isa isa);

}  // namespace fathom
