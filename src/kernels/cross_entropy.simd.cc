#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {

// inout = e^(inout - shift) * factor.
void scaled_exp(float shift, float factor, int64_t n, float* inout) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    store_n(exp(load_n(inout + i, count) - set(shift)) * set(factor), inout + i, count);
  }
}

// sum of y e^y, y = x - shift <= 0. Terms with y <= -87.3 count as 0, as in exp().
double shifted_sum_x_exp(const float* x, float shift, int64_t n) {
  constexpr int64_t kBlock = 4096;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    const auto terms = [&](F32x16 v) {
      const F32x16 y = v - set(shift);
      return max(set(-100.0f), y) * exp(y);  // -inf would make 0 * -inf
    };
    F32x16 sum = zero();
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) sum = sum + terms(load(x + i));
    float lanes[kLanes], rest[kLanes];
    store(sum, lanes);
    store(terms(load_n(x + i, end - i)), rest);
    for (int64_t j = 0; j < kLanes; ++j)
      total += static_cast<double>(lanes[j]) + (j < end - i ? rest[j] : 0.0f);
  }
  return total;
}

// p = e^(inout - shift) * factor; inout = p * (a + b * (inout - shift)).
void scaled_exp_times_line(float shift, float factor, float a, float b, int64_t n, float* inout) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = n - i < kLanes ? n - i : kLanes;
    const F32x16 y = load_n(inout + i, count) - set(shift);
    store_n(exp(y) * set(factor) * fma(set(b), max(set(-100.0f), y), set(a)), inout + i, count);
  }
}

}  // namespace fathom::FATHOM_SIMD_TARGET
