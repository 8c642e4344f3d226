#include "tests/reference/gemm_ref.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/reference/expect_close.h"

namespace fathom::reference {

namespace {

std::vector<double> rounded(const float* x, int64_t cols, Rounding rounding) {
  std::vector<double> out(x, x + cols);
  if (rounding == Rounding::kBf16 || rounding == Rounding::kBf16ForF8)
    for (double& v : out) v = bf16_to_f32(f32_to_bf16(static_cast<float>(v)));
  for (int64_t b = 0; rounding == Rounding::kInt8 && b < cols; b += 32) {
    float most = 0;
    bool finite = true;
    for (int64_t k = b; k < b + 32; ++k) {
      most = std::max(most, std::abs(x[k]));
      finite = finite && std::isfinite(x[k]);
    }
    const float scale = finite ? most / 127 : std::numeric_limits<float>::quiet_NaN();
    for (int64_t k = b; k < b + 32; ++k)
      out[static_cast<size_t>(k)] =
          most < 0x1p-100f ? 0 * scale : double{std::nearbyint(x[k] * (127 / most))} * scale;
  }
  return out;
}

}  // namespace

LinearRef linear_ref(ConstRows x, const std::vector<double>& w, int64_t n, const float* bias,
                     Rounding rounding) {
  LinearRef ref;
  const bool int8 = rounding == Rounding::kInt8;
  for (int64_t r = 0; r < x.rows; ++r) {
    const std::vector<double> a = rounded(x.row(r), x.cols, rounding);
    for (int64_t c = 0; c < n; ++c) {
      double sum = 0, magnitude = 0;
      const double* row = w.data() + c * x.cols;
      for (int64_t k = 0; k < x.cols; ++k) {
        sum += a[static_cast<size_t>(k)] * row[k];
        double weight = std::abs(row[k]);
        for (int64_t i = k / 32 * 32; int8 && i < k / 32 * 32 + 32; ++i)
          weight = std::max(weight, 6 * std::abs(row[i]));
        magnitude += std::abs(a[static_cast<size_t>(k)]) * weight;
      }
      if (bias != nullptr) sum += bias[c];
      ref.y.push_back(sum);
      const double terms = static_cast<double>(x.cols) / (int8 ? 8 : 16) +
                           (rounding == Rounding::kBf16ForF8 ? 7 : 5);
      // The last term: sums below the normal range are rounded to multiples of 2^-149.
      const double bound =
          kUnit * (terms * magnitude + std::abs(sum)) + static_cast<double>(x.cols) * 0x1p-149;
      ref.bounds.push_back(std::isfinite(bound) ? bound : 0);
    }
  }
  return ref;
}

}  // namespace fathom::reference
