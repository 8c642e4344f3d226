#include "kernels/moe_permute.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void add_weighted_rows(const float* y, int64_t stride, const int64_t* position,
                                           const float* weights, int64_t k, int64_t n,
                                           float* inout))
FATHOM_SIMD_DECLARE(void sum_rows(const float* y, int64_t stride, const int64_t* position,
                                  int64_t k, int64_t n, float* out))
FATHOM_SIMD_DECLARE(float dot_and_scale(const float* dout, const float* y, float weight, int64_t n,
                                        float* dy))

void sort_by_expert(std::span<const int32_t> experts, std::span<int64_t> offsets,
                    std::span<int64_t> position) {
  FATHOM_CHECK(!offsets.empty() && position.size() == experts.size(), offsets.size(),
               position.size());
  const size_t n_experts = offsets.size() - 1;
  std::fill(offsets.begin(), offsets.end(), int64_t{0});
  for (const int32_t e : experts) {
    FATHOM_CHECK(e >= 0 && static_cast<size_t>(e) < n_experts, e, n_experts);
    ++offsets[static_cast<size_t>(e) + 1];
  }
  for (size_t e = 0; e < n_experts; ++e) offsets[e + 1] += offsets[e];
  // While rows are handed out, offsets[e] is the next free row of expert e: in the end where e + 1
  // begins.
  for (size_t i = 0; i < experts.size(); ++i)
    position[i] = offsets[static_cast<size_t>(experts[i])]++;
  for (size_t e = n_experts; e > 0; --e) offsets[e] = offsets[e - 1];
  offsets[0] = 0;
}

void gather_by_expert(Context& ctx, ConstRows x, std::span<const int64_t> position, Rows out) {
  const auto slots = static_cast<int64_t>(position.size());
  FATHOM_CHECK(out.rows == slots && out.cols == x.cols, out.rows, slots, out.cols, x.cols);
  if (slots == 0) return;
  FATHOM_CHECK(x.rows > 0 && slots % x.rows == 0, slots, x.rows);
  const int64_t k = slots / x.rows;
  for_rows(ctx, slots, x.cols, [&](int64_t i, int) {
    std::copy_n(x.row(i / k), x.cols, out.row(position[static_cast<size_t>(i)]));
  });
}

void scatter_add_weighted(Context& ctx, ConstRows y, std::span<const int64_t> position,
                          std::span<const float> weights, Rows inout) {
  const auto slots = static_cast<int64_t>(position.size());
  FATHOM_CHECK(y.rows == slots && weights.size() == position.size(), y.rows, slots, weights.size());
  FATHOM_CHECK(y.cols == inout.cols, y.cols, inout.cols);
  if (slots == 0) return;
  FATHOM_CHECK(inout.rows > 0 && slots % inout.rows == 0, slots, inout.rows);
  const int64_t k = slots / inout.rows;
  const auto add_rows = FATHOM_SIMD_CALL(ctx.isa(), add_weighted_rows);
  for_row_pieces(ctx, inout.rows, inout.cols, [&](int64_t t, int64_t begin, int64_t count) {
    add_rows(y.data + begin, y.stride, position.data() + t * k, weights.data() + t * k, k, count,
             inout.row(t) + begin);
  });
}

void gather_by_expert_backward(Context& ctx, ConstRows dout, std::span<const int64_t> position,
                               Rows dx) {
  const auto slots = static_cast<int64_t>(position.size());
  FATHOM_CHECK(dout.rows == slots && dout.cols == dx.cols, dout.rows, slots, dout.cols, dx.cols);
  if (dx.rows == 0) return;
  FATHOM_CHECK(slots % dx.rows == 0, slots, dx.rows);
  const int64_t k = slots / dx.rows;
  const auto sum = FATHOM_SIMD_CALL(ctx.isa(), sum_rows);
  for_row_pieces(ctx, dx.rows, dx.cols, [&](int64_t t, int64_t begin, int64_t count) {
    sum(dout.data + begin, dout.stride, position.data() + t * k, k, count, dx.row(t) + begin);
  });
}

void scatter_add_weighted_backward(Context& ctx, ConstRows dout, ConstRows y,
                                   std::span<const int64_t> position,
                                   std::span<const float> weights, Rows dy,
                                   std::span<float> dweights) {
  const auto slots = static_cast<int64_t>(position.size());
  FATHOM_CHECK(y.rows == slots && dy.rows == slots, y.rows, dy.rows, slots);
  FATHOM_CHECK(weights.size() == position.size() && dweights.size() == position.size(),
               weights.size(), dweights.size(), slots);
  FATHOM_CHECK(y.cols == dout.cols && dy.cols == dout.cols, y.cols, dy.cols, dout.cols);
  if (slots == 0) return;
  FATHOM_CHECK(dout.rows > 0 && slots % dout.rows == 0, slots, dout.rows);
  const int64_t k = slots / dout.rows;
  const auto row = FATHOM_SIMD_CALL(ctx.isa(), dot_and_scale);
  for_rows(ctx, slots, dout.cols, [&](int64_t i, int) {
    const auto slot = static_cast<size_t>(i);
    dweights[slot] = row(dout.row(i / k), y.row(position[slot]), weights[slot], dout.cols,
                         dy.row(position[slot]));
  });
}

}  // namespace fathom
