#include "kernels/adamw.h"

#include <algorithm>

#include "base/check.h"
#include "kernels/dispatch.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void adamw_range(float lr, float beta1, float beta2, float eps, float decay,
                                     float bias2, float gradient_scale, int64_t n, float* w,
                                     float* gradient, float* m, float* v, uint16_t* compute);
                    double sum_of_squares_range(const float* x, int64_t n))

namespace {
constexpr int64_t kItem = 1 << 16;  // elements: 1 MiB of the four arrays
}

void adamw(Context& ctx, const AdamWStep& s, std::span<float> w, std::span<float> gradient,
           std::span<float> m, std::span<float> v, std::span<bf16> compute) {
  FATHOM_CHECK(gradient.size() == w.size() && m.size() == w.size() && v.size() == w.size(),
               w.size());
  FATHOM_CHECK(compute.empty() || compute.size() == w.size(), compute.size(), w.size());
  const auto n = static_cast<int64_t>(w.size());
  ctx.pool().run((n + kItem - 1) / kItem, [&](int64_t item, int) {
    const int64_t i = item * kItem;
    FATHOM_SIMD_CALL(ctx.isa(), adamw_range)
    (s.lr / s.bias1, s.beta1, s.beta2, s.eps, s.lr * s.weight_decay, s.bias2, s.gradient_scale,
     std::min(kItem, n - i), w.data() + i, gradient.data() + i, m.data() + i, v.data() + i,
     compute.empty() ? nullptr : compute.data() + i);
  });
}

double sum_of_squares(Context& ctx, std::span<const float> x) {
  const auto n = static_cast<int64_t>(x.size()), items = (n + kItem - 1) / kItem;
  ArenaScope scope(ctx.scratch());
  auto* const sums = scope.array<double>(items);
  ctx.pool().run(items, [&](int64_t item, int) {
    const int64_t i = item * kItem;
    sums[item] =
        FATHOM_SIMD_CALL(ctx.isa(), sum_of_squares_range)(x.data() + i, std::min(kItem, n - i));
  });
  double sum = 0;
  for (int64_t item = 0; item < items; ++item) sum += sums[item];
  return sum;
}

}  // namespace fathom
