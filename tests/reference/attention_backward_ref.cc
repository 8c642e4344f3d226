#include "tests/reference/attention_backward_ref.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "tests/reference/expect_close.h"

namespace fathom::reference {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

double element(const CachedPart& part, int64_t row, int64_t kv_head, int64_t i) {
  const int64_t index = row * part.row_stride + kv_head * part.head_stride + i;
  bf16 half;
  float x;
  if (part.dtype == DType::kBF16) {
    std::memcpy(&half, part.data + index * 2, 2);
    return bf16_to_f32(half);
  }
  std::memcpy(&x, part.data + index * 4, 4);
  return x;
}

// gradient[i] += a * b, where a is off by at most `a_error` and the sum has `terms` terms.
void add(Gradient& gradient, int64_t i, double a, double b, double a_error, int64_t terms) {
  gradient.value[at(i)] += a * b;
  gradient.bounds[at(i)] +=
      a_error * std::abs(b) + static_cast<double>(terms) * kUnit * std::abs(a * b);
}

}  // namespace

AttentionBackwardRef attention_backward_ref(ConstRows q, int64_t num_attention_heads,
                                            int64_t num_key_value_heads, double scale,
                                            const AttentionKeys& keys, ConstRows dout) {
  const int64_t T = q.rows, d1 = keys.key.dim, d2 = keys.key_rope.dim, d = d1 + d2,
                value_dim = keys.value.dim;
  const int64_t group = num_attention_heads / num_key_value_heads;
  AttentionBackwardRef result{Gradient(T * num_attention_heads * d),
                              Gradient(T * num_key_value_heads * d1), Gradient(T * d2),
                              Gradient(T * num_key_value_heads * value_dim)};
  for (int64_t h = 0; h < num_attention_heads; ++h) {
    const int64_t kv_head = h / group;
    const auto row_of = [&](int64_t j) {
      return keys.block_rows[at(j / kKeyBlock)] + j % kKeyBlock;
    };
    const auto key = [&](int64_t j, int64_t i) {
      return i < d1 ? element(keys.key, row_of(j), kv_head, i)
                    : element(keys.key_rope, row_of(j), kv_head, i - d1);
    };
    const auto value = [&](int64_t j, int64_t i) {
      return element(keys.value, row_of(j), kv_head, i);
    };
    for (int64_t t = 0; t < T; ++t) {
      const float *x = q.row(t) + h * d, *dy = dout.row(t) + h * value_dim;
      const auto n = static_cast<double>(t + 1);
      std::vector<double> p, dp;
      double largest_score = 0, largest_dp = 0, sum = 0;
      for (int64_t j = 0; j <= t; ++j) {
        double score = 0, score_abs = 0, dot = 0, dot_abs = 0;
        for (int64_t i = 0; i < d; ++i)
          score += x[i] * key(j, i), score_abs += std::abs(x[i] * key(j, i));
        for (int64_t i = 0; i < value_dim; ++i)
          dot += dy[i] * value(j, i), dot_abs += std::abs(dy[i] * value(j, i));
        p.push_back(scale * score);
        dp.push_back(dot);
        largest_score = std::max(largest_score, score_abs);
        largest_dp = std::max(largest_dp, dot_abs);
      }
      const double max = *std::max_element(p.begin(), p.end());
      for (double& s : p) sum += s = std::exp(s - max);
      for (double& s : p) s /= sum;
      double dout_out = 0;
      for (int64_t i = 0; i < value_dim; ++i) {
        double out = 0;
        for (int64_t j = 0; j <= t; ++j) out += p[at(j)] * value(j, i);
        dout_out += dy[i] * out;
      }
      const double r =
          (2 * scale * static_cast<double>(d + 6) * largest_score + n / 4 + 16) * kUnit;
      const double e =
          (3 * r + (2 * static_cast<double>(value_dim) + n / 4 + 10) * kUnit) * largest_dp * scale;
      for (int64_t j = 0; j <= t; ++j) {
        const double pj = p[at(j)], ds = scale * pj * (dp[at(j)] - dout_out);
        const double floored = std::max(pj, 0x1p-100);
        for (int64_t i = 0; i < d; ++i) {
          add(result.dq, (t * num_attention_heads + h) * d + i, ds, key(j, i), e * floored, t + 1);
          if (i < d1)
            add(result.dkey, (j * num_key_value_heads + kv_head) * d1 + i, ds, x[i], e * floored,
                group * T);
          if (i >= d1)
            add(result.dkey_rope, j * d2 + i - d1, ds, x[i], e * floored, num_attention_heads * T);
        }
        for (int64_t i = 0; i < value_dim; ++i) {
          add(result.dvalue, (j * num_key_value_heads + kv_head) * value_dim + i, pj, dy[i],
              r * floored, group * T);
        }
      }
    }
  }
  return result;
}

}  // namespace fathom::reference
