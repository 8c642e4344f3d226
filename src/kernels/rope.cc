#include "kernels/rope.h"

#include <cmath>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void rope_interleaved(const float* cos_sin, int64_t pairs, float direction,
                                          float* x))
FATHOM_SIMD_DECLARE(void rope_half_split(const float* cos_sin, int64_t pairs, float direction,
                                         float* x))

void rope_angles(Context& ctx, std::span<const int32_t> positions, std::span<const double> inv_freq,
                 double magnitude, Rows cos_sin) {
  const auto pairs = static_cast<int64_t>(inv_freq.size());
  FATHOM_CHECK(cos_sin.rows == static_cast<int64_t>(positions.size()), cos_sin.rows,
               positions.size());
  FATHOM_CHECK(cos_sin.cols == 2 * pairs, cos_sin.cols, pairs);
  constexpr int64_t kCost = 32;  // sine and cosine, in units of an ordinary element
  for_rows(ctx, cos_sin.rows, cos_sin.cols * kCost, [&](int64_t t, int) {
    float* row = cos_sin.row(t);
    for (int64_t p = 0; p < pairs; ++p) {
      const double angle = positions[static_cast<size_t>(t)] * inv_freq[static_cast<size_t>(p)];
      row[2 * p] = static_cast<float>(std::cos(angle) * magnitude);
      row[2 * p + 1] = static_cast<float>(std::sin(angle) * magnitude);
    }
  });
}

namespace {

// direction 1: by the angles, -1: by their negatives.
void rotate(Context& ctx, ConstRows cos_sin, RopeLayout layout, int64_t heads, int64_t head_stride,
            int64_t offset, float direction, Rows x) {
  FATHOM_CHECK(cos_sin.rows == x.rows && cos_sin.cols % 2 == 0, cos_sin.rows, x.rows, cos_sin.cols);
  FATHOM_CHECK(
      offset >= 0 && (heads == 0 || (heads - 1) * head_stride + offset + cos_sin.cols <= x.cols),
      heads, head_stride, offset, x.cols);
  const auto rotate_head = layout == RopeLayout::kInterleaved
                               ? FATHOM_SIMD_CALL(ctx.isa(), rope_interleaved)
                               : FATHOM_SIMD_CALL(ctx.isa(), rope_half_split);
  for_rows(ctx, x.rows, heads * cos_sin.cols, [&](int64_t t, int) {
    for (int64_t h = 0; h < heads; ++h) {
      rotate_head(cos_sin.row(t), cos_sin.cols / 2, direction, x.row(t) + h * head_stride + offset);
    }
  });
}

}  // namespace

void rope(Context& ctx, ConstRows cos_sin, RopeLayout layout, int64_t heads, int64_t head_stride,
          int64_t offset, Rows x) {
  rotate(ctx, cos_sin, layout, heads, head_stride, offset, 1.0f, x);
}

void rope_backward(Context& ctx, ConstRows cos_sin, RopeLayout layout, int64_t heads,
                   int64_t head_stride, int64_t offset, Rows dx) {
  rotate(ctx, cos_sin, layout, heads, head_stride, offset, -1.0f, dx);
}

}  // namespace fathom
