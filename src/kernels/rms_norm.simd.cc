#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {

void rms_norm_row(const float* x, const float* weight, float eps, int64_t n, float* out) {
  F32x16 squares = zero();
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32x16 v = load(x + i);
    squares = fma(v, v, squares);
  }
  const int64_t whole = i, tail = n - i;
  const F32x16 last = load_n(x + whole, tail);
  squares = fma(last, last, squares);
  const float mean = reduce_add(squares) / static_cast<float>(n);
  const F32x16 factor = set(1.0f / __builtin_sqrtf(mean + eps));
  for (i = 0; i < whole; i += kLanes) store(load(x + i) * factor * load(weight + i), out + i);
  store_n(last * factor * load_n(weight + whole, tail), out + whole, tail);
}

// r = 1 / sqrt(mean x^2 + eps), c = r^2 mean(dy weight x).
void rms_norm_backward_factors(const float* x, const float* weight, float eps, const float* dy,
                               int64_t n, float* r, float* c) {
  F32x16 squares = zero(), products = zero();
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    const F32x16 v = load_n(x + i, count);
    squares = fma(v, v, squares);
    products = fma(load_n(dy + i, count) * load_n(weight + i, count), v, products);
  }
  const auto length = static_cast<float>(n);
  *r = 1.0f / __builtin_sqrtf(reduce_add(squares) / length + eps);
  *c = reduce_add(products) / length * *r * *r;
}

// cols <= 128. factors: r and c of each row.
void rms_norm_backward_columns(const float* x, int64_t x_stride, const float* weight,
                               const float* dy, int64_t dy_stride, const float* factors,
                               int64_t rows, int64_t cols, float* dx, int64_t dx_stride,
                               float* dweight) {
  double sum[128] = {};
  for (int64_t t = 0; t < rows; ++t, factors += 2) {
    const F32x16 r = set(factors[0]), c = set(factors[1]);
    for (int64_t i = 0; i < cols; i += kLanes) {
      const int64_t count = cols - i < kLanes ? cols - i : kLanes;
      const F32x16 v = load_n(x + t * x_stride + i, count),
                   d = load_n(dy + t * dy_stride + i, count);
      store_n((d * load_n(weight + i, count) - v * c) * r, dx + t * dx_stride + i, count);
      float terms[kLanes];
      store(d * (v * r), terms);
      for (int64_t j = 0; j < kLanes; ++j) sum[i + j] += terms[j];
    }
  }
  if (dweight == nullptr) return;
  for (int64_t i = 0; i < cols; ++i) dweight[i] = static_cast<float>(dweight[i] + sum[i]);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
