#include "train/muon.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "kernels/adamw.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/gemm_backward.h"

namespace fathom {
namespace {

constexpr int kIterations = 5;
constexpr float kA = 3.4445f, kB = -4.7750f, kC = 2.0315f;
// Against a momentum that fades: of an expert without tokens the direction would otherwise be
// followed for ever.
constexpr double kEps = 1e-7;
constexpr double kUpdateScale = 0.2;

// body(begin, end) for all of [0, n).
template <class Body>
void for_ranges(Context& ctx, int64_t n, Body body) {
  constexpr int64_t kItem = 1 << 16;
  ctx.pool().run((n + kItem - 1) / kItem,
                 [&](int64_t item, int) { body(item * kItem, std::min(n, (item + 1) * kItem)); });
}

WeightView weight_of(Rows x) {
  return {.dtype = DType::kF32,
          .rows = x.rows,
          .cols = x.cols,
          .data = reinterpret_cast<const std::byte*>(x.data)};
}

}  // namespace

void orthogonalise(Context& ctx, Rows x) {
  FATHOM_CHECK(x.stride == x.cols, x.stride, x.cols);
  const int64_t n = x.rows * x.cols, side = std::min(x.rows, x.cols);
  const bool wide = x.rows <= x.cols;
  ArenaScope scope(ctx.scratch());
  const Rows gram = scope.rows(side, side), polynomial = scope.rows(side, side);
  const Rows product = scope.rows(x.rows, x.cols);
  const double norm = std::sqrt(sum_of_squares(ctx, {x.data, static_cast<size_t>(n)}));
  const auto scale = static_cast<float>(1 / (norm + kEps));
  for_ranges(ctx, n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) x.data[i] *= scale;
  });
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    if (wide) {
      linear(ctx, x, weight_of(x), nullptr, gram);
    } else {
      std::fill_n(gram.data, side * side, 0.0f);
      linear_backward_weight(ctx, x, x, DType::kF32, gram);
    }
    // Symmetric to the bit, since products commute: a transpose would change nothing.
    linear(ctx, gram, weight_of(gram), nullptr, polynomial);
    for_ranges(ctx, side * side, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        polynomial.data[i] = kB * gram.data[i] + kC * polynomial.data[i];
      }
    });
    if (wide) {
      linear_backward_input(ctx, polynomial, weight_of(x), product);
    } else {
      linear(ctx, x, weight_of(polynomial), nullptr, product);
    }
    for_ranges(ctx, n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) x.data[i] = kA * x.data[i] + product.data[i];
    });
  }
}

void muon(Context& ctx, const MuonStep& s, Rows w, std::span<float> gradient,
          std::span<float> momentum, std::span<bf16> compute) {
  const int64_t n = w.rows * w.cols;
  FATHOM_CHECK(w.stride == w.cols, w.stride, w.cols);
  FATHOM_CHECK(std::ssize(gradient) == n && std::ssize(momentum) == n, gradient.size(),
               momentum.size(), n);
  FATHOM_CHECK(compute.empty() || std::ssize(compute) == n, compute.size(), n);
  ArenaScope scope(ctx.scratch());
  const Rows update = scope.rows(w.rows, w.cols);
  for_ranges(ctx, n, [&, g = gradient.data(), m = momentum.data()](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float scaled = s.gradient_scale * g[i];
      m[i] = s.momentum * m[i] + scaled;
      update.data[i] = scaled + s.momentum * m[i];
      g[i] = 0.0f;
    }
  });
  orthogonalise(ctx, update);
  const float keep = 1.0f - s.lr * s.weight_decay;
  const auto rate = static_cast<float>(s.lr * kUpdateScale *
                                       std::sqrt(static_cast<double>(std::max(w.rows, w.cols))));
  for_ranges(ctx, n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) w.data[i] = keep * w.data[i] - rate * update.data[i];
    if (!compute.empty()) to_bf16(ctx.isa(), w.data + begin, end - begin, compute.data() + begin);
  });
}

}  // namespace fathom
