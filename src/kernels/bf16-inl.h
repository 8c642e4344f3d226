// Rounding to bf16, value by value: loops over it vectorise. The bits are f32_to_bf16()'s
// (tensor/dtype.h), which no *.simd.cc may include (simd-inl.h). attention_forms-inl.h has the same
// for vectors in registers; pack_rounded() in gemm_packed.simd.cc is the processor's own, with
// kFlush.
#pragma once

#include <stdint.h>

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// The bits of a float, to nearest even; the lower half is zero. NaN stays NaN. kFlush: subnormals
// are zero before they are rounded, as vcvtneps2bf16 has it, for operands of vdpbf16ps.
template <bool kFlush = false>
inline uint32_t round_bf16_bits(uint32_t bits) {
  const uint32_t size = bits & 0x7fffffff, rounded = bits + 0x7fff + (bits >> 16 & 1);
  return (size > 0x7f800000             ? bits | 0x00400000
          : kFlush && size < 0x00800000 ? 0
                                        : rounded) &
         0xffff0000;
}
inline uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }

// As it is stored.
template <bool kFlush = false>
inline uint16_t to_bf16(float x) {
  return static_cast<uint16_t>(round_bf16_bits<kFlush>(bits_of(x)) >> 16);
}

}  // namespace
}  // namespace fathom::FATHOM_SIMD_TARGET
