#include "kernels/cached_rows.h"

#include <cstring>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/elementwise.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void to_int8_row(const float* x, int64_t n, uint8_t* codes, float* scales))
FATHOM_SIMD_DECLARE(void from_int8_row(const uint8_t* codes, const float* scales, int64_t begin,
                                       int64_t n, float* out))

namespace {

int64_t scales_at(int64_t width) { return ceil_div(width, 4) * 4; }

}  // namespace

int64_t cached_row_bytes(DType dtype, int64_t width) {
  FATHOM_CHECK(dtype == DType::kF32 || dtype == DType::kBF16 || dtype == DType::kI8,
               dtype_name(dtype));
  return dtype == DType::kI8 ? scales_at(width) + ceil_div(width, kInt8Block) * 4
                             : row_bytes(dtype, width);
}

void store_cached_row(Isa isa, DType dtype, const float* x, int64_t width, std::byte* row) {
  if (dtype == DType::kBF16) return to_bf16(isa, x, width, reinterpret_cast<bf16*>(row));
  if (dtype == DType::kF32) {
    std::memcpy(row, x, static_cast<size_t>(width) * sizeof(float));
    return;
  }
  const int64_t scales = scales_at(width);
  std::memset(row + width, 0, static_cast<size_t>(scales - width));
  FATHOM_SIMD_CALL(isa, to_int8_row)
  (x, width, reinterpret_cast<uint8_t*>(row), reinterpret_cast<float*>(row + scales));
}

void load_cached_row(Isa isa, DType dtype, const std::byte* row, int64_t width, int64_t begin,
                     int64_t n, float* out) {
  if (dtype == DType::kBF16)
    return from_bf16(isa, reinterpret_cast<const bf16*>(row) + begin, n, out);
  if (dtype == DType::kF32) {
    std::memcpy(out, row + begin * 4, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  FATHOM_SIMD_CALL(isa, from_int8_row)
  (reinterpret_cast<const uint8_t*>(row), reinterpret_cast<const float*>(row + scales_at(width)),
   begin, n, out);
}

CachedPart cached_part(DType dtype, const std::byte* base, int64_t width, int64_t column,
                       int64_t head_stride, int64_t dim) {
  if (dtype != DType::kI8) return {dtype, base + row_bytes(dtype, column), width, head_stride, dim};
  FATHOM_CHECK(column % kInt8Block == 0 && head_stride % kInt8Block == 0, column, head_stride);
  return {dtype,       base + column, cached_row_bytes(dtype, width),
          head_stride, dim,           base + scales_at(width) + column / kInt8Block * 4};
}

}  // namespace fathom
