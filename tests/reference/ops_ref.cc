#include "tests/reference/ops_ref.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "tests/reference/expect_close.h"

namespace fathom::reference {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }

std::vector<double> dense(ConstRows x) {
  std::vector<double> y;
  for (int64_t t = 0; t < x.rows; ++t) y.insert(y.end(), x.row(t), x.row(t) + x.cols);
  return y;
}

// Ids of the `count` largest, the lower id first among equals.
std::vector<int> largest(const std::vector<double>& x, int count) {
  std::vector<int> ids(x.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int a, int b) { return x[at(a)] > x[at(b)]; });
  ids.resize(at(count));
  return ids;
}

float int8_scale(const CachedPart& part, int64_t row, int64_t kv_head, int64_t i) {
  float scale;
  std::memcpy(&scale,
              part.scales + row * part.row_stride +
                  (kv_head * part.head_stride / kInt8Block + i / kInt8Block) * 4,
              4);
  return scale;
}

double element(const CachedPart& part, int64_t row, int64_t kv_head, int64_t i) {
  const int64_t index = row * part.row_stride + kv_head * part.head_stride + i;
  if (part.dtype == DType::kBF16) {
    bf16 x;
    std::memcpy(&x, part.data + index * 2, 2);
    return bf16_to_f32(x);
  }
  if (part.dtype == DType::kI8) {
    return (std::to_integer<int>(part.data[index]) - 128) *
           static_cast<double>(int8_scale(part, row, kv_head, i));
  }
  float x;
  std::memcpy(&x, part.data + index * 4, 4);
  return x;
}

}  // namespace

std::vector<double> rms_norm_ref(ConstRows x, const float* weight, double eps) {
  std::vector<double> y;
  for (int64_t t = 0; t < x.rows; ++t) {
    double squares = 0;
    for (int64_t i = 0; i < x.cols; ++i) squares += static_cast<double>(x.row(t)[i]) * x.row(t)[i];
    const double root = std::sqrt(squares / static_cast<double>(x.cols) + eps);
    for (int64_t i = 0; i < x.cols; ++i) y.push_back(x.row(t)[i] / root * weight[i]);
  }
  return y;
}

std::vector<double> rope_angles_ref(std::span<const int32_t> positions,
                                    std::span<const double> inv_freq, double magnitude) {
  std::vector<double> y;
  for (const int32_t position : positions) {
    for (const double f : inv_freq) {
      // wider than the kernel's, where the CPU can
      const long double angle = static_cast<long double>(position) * f;
      y.push_back(static_cast<double>(std::cos(angle) * magnitude));
      y.push_back(static_cast<double>(std::sin(angle) * magnitude));
    }
  }
  return y;
}

std::vector<double> rope_ref(ConstRows cos_sin, RopeLayout layout, int64_t heads,
                             int64_t head_stride, int64_t offset, ConstRows x) {
  std::vector<double> y = dense(x);
  const int64_t pairs = cos_sin.cols / 2;
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t p = 0; p < pairs; ++p) {
        const int64_t base = t * x.cols + h * head_stride + offset;
        double& a = y[at(layout == RopeLayout::kInterleaved ? base + 2 * p : base + p)];
        double& b = y[at(layout == RopeLayout::kInterleaved ? base + 2 * p + 1 : base + p + pairs)];
        const double c = cos_sin.row(t)[2 * p], s = cos_sin.row(t)[2 * p + 1], old = a;
        a = old * c - b * s;
        b = old * s + b * c;
      }
    }
  }
  return y;
}

std::vector<double> swiglu_ref(ConstRows gate, ConstRows up) {
  std::vector<double> y;
  for (int64_t t = 0; t < gate.rows; ++t) {
    for (int64_t i = 0; i < gate.cols; ++i) {
      const double g = gate.row(t)[i];
      y.push_back(g / (1 + std::exp(-g)) * up.row(t)[i]);
    }
  }
  return y;
}

std::vector<double> log_sum_exp_ref(ConstRows x) {
  std::vector<double> y;
  for (int64_t t = 0; t < x.rows; ++t) {
    double max = -std::numeric_limits<double>::infinity(), sum = 0;
    bool nan = false;
    for (int64_t i = 0; i < x.cols; ++i) {
      max = std::max(max, static_cast<double>(x.row(t)[i]));
      nan = nan || std::isnan(x.row(t)[i]);
    }
    for (int64_t i = 0; i < x.cols; ++i) sum += std::exp(x.row(t)[i] - max);
    if (nan || std::isinf(max)) {
      y.push_back(nan || max > 0 ? std::numeric_limits<double>::quiet_NaN() : max);
    } else {
      y.push_back(std::log(sum) + max);
    }
  }
  return y;
}

RouteRef route_ref(const RouterRule& rule, ConstRows logits, const float* e_score_correction_bias) {
  RouteRef result;
  const int n = rule.n_routed_experts, k = rule.num_experts_per_tok, group_size = n / rule.n_group;
  for (int64_t t = 0; t < logits.rows; ++t) {
    const std::vector<double> x(logits.row(t), logits.row(t) + n);
    std::vector<double> s(x);
    const double max = *std::max_element(x.begin(), x.end());
    double total = 0;
    for (const double v : x) total += std::exp(v - max);
    for (double& v : s)
      v = rule.scoring_func == ScoringFunc::kSoftmax ? std::exp(v - max) / total
                                                     : 1 / (1 + std::exp(-v));
    std::vector<double> c = s;
    if (rule.topk_method == TopkMethod::kNoauxTc) {
      for (int e = 0; e < n; ++e) c[at(e)] += e_score_correction_bias[e];
    }
    if (rule.topk_method != TopkMethod::kGreedy) {
      std::vector<double> group_score;
      for (int g = 0; g < rule.n_group; ++g) {
        std::vector<double> members(c.begin() + g * group_size, c.begin() + (g + 1) * group_size);
        std::sort(members.rbegin(), members.rend());
        const double second = members.size() > 1 ? members[1] : 0;
        group_score.push_back(rule.topk_method == TopkMethod::kNoauxTc ? members[0] + second
                                                                       : members[0]);
      }
      const std::vector<int> kept = largest(group_score, rule.topk_group);
      for (int e = 0; e < n; ++e) {
        if (std::find(kept.begin(), kept.end(), e / group_size) != kept.end()) continue;
        c[at(e)] =
            rule.topk_method == TopkMethod::kNoauxTc ? -std::numeric_limits<double>::infinity() : 0;
        if (rule.topk_method == TopkMethod::kGroupLimitedGreedy) s[at(e)] = 0;
      }
    }
    std::vector<int> chosen = largest(c, k);
    std::sort(chosen.begin(), chosen.end());
    double sum = 0;
    for (const int e : chosen) sum += s[at(e)];
    for (const int e : chosen) {
      double w = s[at(e)];
      if (rule.scoring_func == ScoringFunc::kSigmoid) {
        if (rule.norm_topk_prob) w /= sum + 1e-20;
        w *= rule.routed_scaling_factor;
      } else if (k > 1 && rule.norm_topk_prob) {
        w /= sum + 1e-20;
      } else {
        w *= rule.routed_scaling_factor;
      }
      result.experts.push_back(e);
      result.weights.push_back(w);
    }
  }
  return result;
}

std::vector<double> scatter_add_weighted_ref(ConstRows y, std::span<const int64_t> position,
                                             std::span<const float> weights, ConstRows inout) {
  std::vector<double> result = dense(inout);
  const int64_t k = inout.rows == 0 ? 0 : static_cast<int64_t>(position.size()) / inout.rows;
  for (int64_t t = 0; t < inout.rows; ++t) {
    for (int64_t i = 0; i < inout.cols; ++i) {
      for (int64_t j = t * k; j < (t + 1) * k; ++j) {
        result[at(t * inout.cols + i)] +=
            static_cast<double>(weights[at(j)]) * y.row(position[at(j)])[i];
      }
    }
  }
  return result;
}

// What rounding to bf16 twice, once in the sum over values and once in that of weights, adds.
constexpr double kBf16Unit = 0x1p-8;

AttentionRef attention_ref(ConstRows q, int64_t position, int64_t num_attention_heads,
                           int64_t num_key_value_heads, double scale, const AttentionKeys& keys,
                           Precision precision) {
  AttentionRef result;
  const int64_t d1 = keys.key.dim, d2 = keys.key_rope.dim;
  for (int64_t t = 0; t < q.rows; ++t) {
    for (int64_t h = 0; h < num_attention_heads; ++h) {
      const int64_t kv_head = h / (num_attention_heads / num_key_value_heads), n = position + t + 1;
      const float* x = q.row(t) + h * (d1 + d2);
      std::vector<double> p;
      double largest_abs = 0, largest_rounding = 0;
      std::vector<double> q_scale(at(d1 + d2));  // in I8, block by block of each part
      for (int64_t i = 0; i < d1 + d2; ++i) {
        const int64_t begin = i < d1 ? i / kInt8Block * kInt8Block : i - (i - d1) % kInt8Block,
                      end = std::min(begin + kInt8Block, i < d1 ? d1 : d1 + d2);
        for (int64_t k = begin; k < end; ++k)
          q_scale[at(i)] = std::max(q_scale[at(i)], std::abs(double{x[k]}) / 127);
      }
      for (int64_t j = 0; j < n; ++j) {
        const int64_t row = keys.block_rows[at(j / kKeyBlock)] + j % kKeyBlock;
        double dot = 0, abs = 0, rounding = 0;
        for (int64_t i = 0; i < d1 + d2; ++i) {
          const double k = i < d1 ? element(keys.key, row, kv_head, i)
                                  : element(keys.key_rope, row, kv_head, i - d1);
          dot += x[i] * k;
          abs += std::abs(x[i] * k);
          if (keys.key.dtype == DType::kI8) rounding += q_scale[at(i)] * std::abs(k);
        }
        p.push_back(scale * dot);
        largest_abs = std::max(largest_abs, abs);
        largest_rounding = std::max(largest_rounding, rounding);
      }
      const double max = *std::max_element(p.begin(), p.end());
      double sum = 0;
      for (double& v : p) sum += v = std::exp(v - max);
      const auto segments = static_cast<double>((n + kKeySegment - 1) / kKeySegment);
      double e = (2 * scale * static_cast<double>(d1 + d2 + 6) * largest_abs + 2 * kKeySegment +
                  8 * segments) *
                 kUnit;
      if (keys.key.dtype == DType::kBF16 && precision == Precision::kNative)
        e += kBf16Unit + std::expm1(kBf16Unit * scale * largest_abs);
      e += std::expm1((1 + 0x1p-12) * scale * largest_rounding);
      for (int64_t i = 0; i < keys.value.dim; ++i) {
        double out = 0, abs = 0;
        for (int64_t j = 0; j < n; ++j) {
          const int64_t row = keys.block_rows[at(j / kKeyBlock)] + j % kKeyBlock;
          const double v = p[at(j)] / sum * element(keys.value, row, kv_head, i);
          out += v;
          abs += std::abs(v);
        }
        double weights = 0;
        for (int64_t b = 0; keys.value.dtype == DType::kI8 && b < n; b += kKeyBlock) {
          double weight = 0, largest_scale = 0, codes = 0;
          for (int64_t j = b; j < std::min(n, b + kKeyBlock); ++j) {
            const int64_t row = keys.block_rows[at(j / kKeyBlock)] + j % kKeyBlock;
            const double s = int8_scale(keys.value, row, kv_head, i);
            weight = std::max(weight, p[at(j)] / sum);
            largest_scale = std::max(largest_scale, s);
            codes += std::abs(element(keys.value, row, kv_head, i)) / s;
          }
          weights += weight * largest_scale * codes;
        }
        result.out.push_back(out);
        result.bounds.push_back(e * abs + (1 + 0x1p-12) / 510 * weights);
      }
    }
  }
  return result;
}

}  // namespace fathom::reference
