#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

constexpr float kInf = __builtin_inff();
// f32 lanes add at most kBlock / 16 terms before they go into the double
constexpr int64_t kBlock = 4096;

float row_max(const float* x, int64_t n) {
  F32x16 m = set(-kInf);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) m = max(m, load(x + i));
  float result = reduce_max(m);
  for (; i < n; ++i) result = x[i] > result ? x[i] : result;
  return result;
}

}  // namespace

// sum of e^(x - shift), shift = the largest x (0 if all are -inf). A NaN the maximum missed is in
// the sum.
double shifted_sum_exp(const float* x, int64_t n, float* shift) {
  const float largest = row_max(x, n);
  *shift = largest == -kInf ? 0.0f : largest;
  const F32x16 offset = set(*shift);
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = n - begin < kBlock ? n : begin + kBlock;
    F32x16 sum = zero();
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) sum = sum + exp(load(x + i) - offset);
    float lanes[kLanes], rest[kLanes];
    store(exp(load_n(x + i, end - i) - offset), rest);
    store(sum, lanes);
    for (int64_t j = 0; j < kLanes; ++j)
      total += static_cast<double>(lanes[j]) + (j < end - i ? rest[j] : 0.0f);
  }
  return total;
}

}  // namespace fathom::FATHOM_SIMD_TARGET
