// f32 to the stored weight formats: the inverse of quantize.h. The search for scales and codes is
// the program's own (quantizer.simd.cc); only the formats are given.
#pragma once

#include "tensor/context.h"
#include "tensor/dtype.h"

namespace fathom {

// What quantize_row() can make: F32, F16, BF16 and every GGUF block type of dtype.h.
bool can_quantize(DType dtype);

// The largest |x| that quantize_row() can bring near: its type's largest scale (f16: 65504) times
// its farthest level.
float largest_magnitude(DType dtype);

// `cols` values of one row to stored form. F32, F16, BF16: nearest even. Q8_0: scale max|x| / 127
// as f16, x / scale before that rounding to nearest, ties away, as GGUF's own quantiser has it. All
// other types: scales and codes that make the sum over a block of
//
//   importance[i] (x[i] - y[i])^2,   y = dequantize_row(the result)
//
// as small as a search finds: not proven least, but never above that of scales that lay the
// block's largest value on the farthest level (tests/kernels/quantizer_test.cc has the distance
// from the true minimum). importance [cols], not negative, null = all 1; a block whose importance
// is all zero or not finite counts as all 1.
//
// Every instruction set gives the same bytes. Thread-safe, allocates nothing.
// REQUIRES: can_quantize(dtype); cols a multiple of its block; every |x| at most
// largest_magnitude(dtype), none NaN.
void quantize_row(Isa isa, DType dtype, const float* x, const float* importance, int64_t cols,
                  std::byte* row);

}  // namespace fathom
