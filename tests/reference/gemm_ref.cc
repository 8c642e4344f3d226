#include "tests/reference/gemm_ref.h"

#include <cmath>

#include "tests/reference/expect_close.h"

namespace fathom::reference {

LinearRef linear_ref(ConstRows x, const std::vector<double>& w, int64_t n, const float* bias,
                     bool round_x) {
  LinearRef ref;
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < n; ++c) {
      double sum = 0, magnitude = 0;
      for (int64_t k = 0; k < x.cols; ++k) {
        const double a = round_x ? bf16_to_f32(f32_to_bf16(x.row(r)[k])) : x.row(r)[k];
        const double term = a * w[static_cast<size_t>(c * x.cols + k)];
        sum += term;
        magnitude += std::abs(term);
      }
      if (bias != nullptr) sum += bias[c];
      ref.y.push_back(sum);
      const double terms = static_cast<double>(x.cols) / 16 + 5;
      // The last term: sums below the normal range are rounded to multiples of 2^-149.
      const double bound =
          kUnit * (terms * magnitude + std::abs(sum)) + static_cast<double>(x.cols) * 0x1p-149;
      ref.bounds.push_back(std::isfinite(bound) ? bound : 0);
    }
  }
  return ref;
}

}  // namespace fathom::reference
