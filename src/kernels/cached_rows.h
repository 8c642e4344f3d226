// Rows of the key-value cache as they lie in memory, in each dtype it may have.
//
//   F32, BF16:  width elements
//   I8:         width codes, a byte each, zeros up to a multiple of 4; then a scale in f32 for
//               each kInt8Block of them: x = scale (code - 128)
//
// To I8, for each block: scale = max |x| / 127, code = 128 + x / scale to the nearest (even), 0
// where max |x| < 2^-100: an error of at most scale / 2 (1 + 2^-14). A block with NaN or infinity
// in it is NaN.
#pragma once

#include <cstddef>

#include "kernels/attention.h"
#include "tensor/context.h"

namespace fathom {

inline constexpr int64_t kInt8Block = 64;

// dtype: F32, BF16 or I8.
int64_t cached_row_bytes(DType dtype, int64_t width);

// x [width] to a row.
void store_cached_row(Isa isa, DType dtype, const float* x, int64_t width, std::byte* row);

// out [n] = columns [begin, begin + n) of a row.
void load_cached_row(Isa isa, DType dtype, const std::byte* row, int64_t width, int64_t begin,
                     int64_t n, float* out);

// Columns [column + h * head_stride, + dim) of rows at `base`, for attention(). REQUIRES: in I8, if
// not 0, column and head_stride are multiples of kInt8Block.
CachedPart cached_part(DType dtype, const std::byte* base, int64_t width, int64_t column,
                       int64_t head_stride, int64_t dim);

}  // namespace fathom
