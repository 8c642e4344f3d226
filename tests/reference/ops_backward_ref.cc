#include "tests/reference/ops_backward_ref.h"

#include <algorithm>
#include <cmath>

namespace fathom::reference {
namespace {

size_t at(int64_t i) { return static_cast<size_t>(i); }
int64_t size(const Doubles& x) { return static_cast<int64_t>(x.size()); }
int64_t size(std::span<const int64_t> x) { return static_cast<int64_t>(x.size()); }
int64_t size(std::span<const int32_t> x) { return static_cast<int64_t>(x.size()); }

Doubles softmax(std::span<const double> x) {
  const double max = *std::max_element(x.begin(), x.end());
  Doubles p;
  double sum = 0;
  for (const double v : x) sum += std::exp(v - max);
  for (const double v : x) p.push_back(std::exp(v - max) / sum);
  return p;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

Doubles scores(const RouterRule& rule, std::span<const double> logits) {
  if (rule.scoring_func == ScoringFunc::kSoftmax) return softmax(logits);
  Doubles s;
  for (const double x : logits) s.push_back(sigmoid(x));
  return s;
}

// Row vector ds times the Jacobian ds[i] / dlogits[j], written out.
Doubles through_scores(const RouterRule& rule, std::span<const double> logits, const Doubles& ds) {
  const Doubles s = scores(rule, logits);
  Doubles d(s.size());
  for (size_t j = 0; j < s.size(); ++j) {
    for (size_t i = 0; i < s.size(); ++i) {
      if (rule.scoring_func == ScoringFunc::kSoftmax)
        d[j] += ds[i] * s[i] * ((i == j ? 1 : 0) - s[j]);
      if (rule.scoring_func == ScoringFunc::kSigmoid && i == j)
        d[j] += ds[i] * s[i] * sigmoid(-logits[i]);
    }
  }
  return d;
}

// Element indices of pair p of row t.
struct Pair {
  size_t a, b;
};
Pair rope_pair(RopeLayout layout, int64_t t, int64_t p, int64_t dim) {
  const bool interleaved = layout == RopeLayout::kInterleaved;
  return {at(t * dim + (interleaved ? 2 * p : p)),
          at(t * dim + (interleaved ? 2 * p + 1 : p + dim / 2))};
}

}  // namespace

Doubles dense(ConstRows x) {
  Doubles y;
  for (int64_t t = 0; t < x.rows; ++t) y.insert(y.end(), x.row(t), x.row(t) + x.cols);
  return y;
}

Doubles linear_value(const Doubles& x, const Doubles& w, const Doubles& bias) {
  const int64_t n = size(bias), k = size(w) / n;
  Doubles y;
  for (int64_t m = 0; m < size(x) / k; ++m) {
    for (int64_t i = 0; i < n; ++i) {
      double sum = bias[at(i)];
      for (int64_t j = 0; j < k; ++j) sum += x[at(m * k + j)] * w[at(i * k + j)];
      y.push_back(sum);
    }
  }
  return y;
}

LinearGradient linear_gradient(const Doubles& x, const Doubles& w, int64_t n, const Doubles& dy) {
  LinearGradient g{Doubles(x.size()), Doubles(w.size()), Doubles(at(n)), Doubles(w.size())};
  const int64_t k = size(w) / n;
  for (int64_t m = 0; m < size(dy) / n; ++m) {
    for (int64_t i = 0; i < n; ++i) {
      const double d = dy[at(m * n + i)];
      g.db[at(i)] += d;
      for (int64_t j = 0; j < k; ++j) {
        g.dx[at(m * k + j)] += d * w[at(i * k + j)];
        g.dw[at(i * k + j)] += d * x[at(m * k + j)];
        g.dw_terms[at(i * k + j)] += std::abs(d * x[at(m * k + j)]);
      }
    }
  }
  return g;
}

Doubles rms_norm_value(const Doubles& x, const Doubles& weight, double eps) {
  const int64_t n = size(weight);
  Doubles y;
  for (int64_t t = 0; t < size(x) / n; ++t) {
    double squares = 0;
    for (int64_t i = 0; i < n; ++i) squares += x[at(t * n + i)] * x[at(t * n + i)];
    const double root = std::sqrt(squares / static_cast<double>(n) + eps);
    for (int64_t i = 0; i < n; ++i) y.push_back(x[at(t * n + i)] / root * weight[at(i)]);
  }
  return y;
}

RmsNormGradient rms_norm_gradient(const Doubles& x, const Doubles& weight, double eps,
                                  const Doubles& dy) {
  const int64_t n = size(weight);
  RmsNormGradient result{{}, Doubles(at(n)), {}, Doubles(at(n))};
  for (int64_t t = 0; t < size(x) / n; ++t) {
    double squares = 0, dot = 0, magnitude = 0;
    for (int64_t i = 0; i < n; ++i) {
      const double v = x[at(t * n + i)], g = dy[at(t * n + i)] * weight[at(i)];
      squares += v * v;
      dot += g * v;
      magnitude += std::abs(g * v);
    }
    const auto length = static_cast<double>(n);
    const double r = 1 / std::sqrt(squares / length + eps);
    for (int64_t i = 0; i < n; ++i) {
      const double v = x[at(t * n + i)], d = dy[at(t * n + i)], g = d * weight[at(i)];
      result.dx.push_back(r * g - r * r * r * v * dot / length);
      result.dx_terms.push_back(r * (std::abs(g) + std::abs(v) * r * r * magnitude / length));
      result.dweight[at(i)] += d * v * r;
      result.dweight_terms[at(i)] += std::abs(d * v * r);
    }
  }
  return result;
}

Doubles swiglu_value(const Doubles& gate, const Doubles& up) {
  Doubles y;
  for (size_t i = 0; i < gate.size(); ++i) y.push_back(gate[i] * sigmoid(gate[i]) * up[i]);
  return y;
}

SwigluGradient swiglu_gradient(const Doubles& gate, const Doubles& up, const Doubles& dy) {
  SwigluGradient result;
  for (size_t i = 0; i < gate.size(); ++i) {
    const double s = sigmoid(gate[i]);
    result.dgate.push_back(dy[i] * up[i] * s * (1 + gate[i] * sigmoid(-gate[i])));
    result.dup.push_back(dy[i] * gate[i] * s);
  }
  return result;
}

Doubles rope_value(ConstRows cos_sin, RopeLayout layout, const Doubles& x) {
  Doubles y(x.size());
  for (int64_t t = 0; t < cos_sin.rows; ++t) {
    for (int64_t p = 0; p < cos_sin.cols / 2; ++p) {
      const auto [a, b] = rope_pair(layout, t, p, cos_sin.cols);
      const double c = cos_sin.row(t)[2 * p], s = cos_sin.row(t)[2 * p + 1];
      y[a] = x[a] * c - x[b] * s;
      y[b] = x[a] * s + x[b] * c;
    }
  }
  return y;
}

Doubles rope_gradient(ConstRows cos_sin, RopeLayout layout, const Doubles& dy) {
  Doubles dx(dy.size());
  for (int64_t t = 0; t < cos_sin.rows; ++t) {
    for (int64_t p = 0; p < cos_sin.cols / 2; ++p) {
      const auto [a, b] = rope_pair(layout, t, p, cos_sin.cols);
      const double c = cos_sin.row(t)[2 * p], s = cos_sin.row(t)[2 * p + 1];
      dx[a] = dy[a] * c + dy[b] * s;
      dx[b] = dy[b] * c - dy[a] * s;
    }
  }
  return dx;
}

Doubles gather_value(const Doubles& x, std::span<const int64_t> position, int64_t cols) {
  Doubles y(position.size() * at(cols));
  const int64_t k = size(position) * cols / size(x);
  for (int64_t slot = 0; slot < size(position); ++slot) {
    for (int64_t c = 0; c < cols; ++c)
      y[at(position[at(slot)] * cols + c)] = x[at(slot / k * cols + c)];
  }
  return y;
}

Doubles gather_gradient(const Doubles& dout, std::span<const int64_t> position, int64_t k,
                        int64_t cols) {
  Doubles dx(dout.size() / at(k));
  for (int64_t slot = 0; slot < size(position); ++slot) {
    for (int64_t c = 0; c < cols; ++c)
      dx[at(slot / k * cols + c)] += dout[at(position[at(slot)] * cols + c)];
  }
  return dx;
}

Doubles scatter_value(const Doubles& y, std::span<const int64_t> position, const Doubles& weights,
                      int64_t k, int64_t cols) {
  Doubles out(y.size() / at(k));
  for (int64_t slot = 0; slot < size(position); ++slot) {
    for (int64_t c = 0; c < cols; ++c)
      out[at(slot / k * cols + c)] += weights[at(slot)] * y[at(position[at(slot)] * cols + c)];
  }
  return out;
}

ScatterGradient scatter_gradient(const Doubles& y, std::span<const int64_t> position,
                                 const Doubles& weights, int64_t k, int64_t cols,
                                 const Doubles& dout) {
  ScatterGradient result{Doubles(y.size()), Doubles(weights.size())};
  for (int64_t slot = 0; slot < size(position); ++slot) {
    for (int64_t c = 0; c < cols; ++c) {
      const size_t sorted = at(position[at(slot)] * cols + c), token = at(slot / k * cols + c);
      result.dy[sorted] = weights[at(slot)] * dout[token];
      result.dweights[at(slot)] += dout[token] * y[sorted];
    }
  }
  return result;
}

Doubles route_value(const RouterRule& rule, const Doubles& logits,
                    std::span<const int32_t> experts) {
  const int64_t n = rule.n_routed_experts, k = rule.num_experts_per_tok;
  const bool softmax_scores = rule.scoring_func == ScoringFunc::kSoftmax;
  Doubles w;
  for (int64_t t = 0; t < size(experts) / k; ++t) {
    const Doubles s = scores(rule, std::span(logits).subspan(at(t * n), at(n)));
    double sum = 1e-20;
    for (int64_t j = 0; j < k; ++j) sum += s[at(experts[at(t * k + j)])];
    const bool normalise = rule.norm_topk_prob && !(softmax_scores && k == 1);
    for (int64_t j = 0; j < k; ++j) {
      double v = s[at(experts[at(t * k + j)])];
      if (normalise) v /= sum;
      if (!(normalise && softmax_scores)) v *= rule.routed_scaling_factor;
      w.push_back(v);
    }
  }
  return w;
}

Doubles route_gradient(const RouterRule& rule, const Doubles& logits,
                       std::span<const int32_t> experts, const Doubles& dweights) {
  const int64_t n = rule.n_routed_experts, k = rule.num_experts_per_tok;
  const bool softmax_scores = rule.scoring_func == ScoringFunc::kSoftmax;
  const bool normalise = rule.norm_topk_prob && !(softmax_scores && k == 1);
  const double factor = normalise && softmax_scores ? 1 : rule.routed_scaling_factor;
  Doubles result;
  for (int64_t t = 0; t < size(experts) / k; ++t) {
    const std::span row = std::span(logits).subspan(at(t * n), at(n));
    const Doubles s = scores(rule, row);
    double sum = 1e-20;
    for (int64_t j = 0; j < k; ++j) sum += s[at(experts[at(t * k + j)])];
    Doubles ds(at(n));
    for (int64_t j = 0; j < k; ++j) {
      const size_t e = at(experts[at(t * k + j)]);
      const double d = factor * dweights[at(t * k + j)];
      ds[e] += normalise ? d / sum : d;
      // The sum that divides this weight contains every chosen score.
      for (int64_t i = 0; normalise && i < k; ++i)
        ds[at(experts[at(t * k + i)])] -= d * s[e] / (sum * sum);
    }
    const Doubles d = through_scores(rule, row, ds);
    result.insert(result.end(), d.begin(), d.end());
  }
  return result;
}

namespace {

// f of one document, V2 equation 24.
Doubles fractions(const RouterRule& rule, std::span<const int32_t> experts, int64_t tokens) {
  Doubles f(at(rule.n_routed_experts));
  for (const int32_t e : experts)
    f[at(e)] += static_cast<double>(rule.n_routed_experts) /
                static_cast<double>(rule.num_experts_per_tok * tokens);
  return f;
}

// f'_g, equation 27.
Doubles device_fractions(const RouterRule& rule, const Doubles& f) {
  const size_t size = f.size() / at(rule.n_group);
  Doubles result;
  for (size_t g = 0; g < at(rule.n_group); ++g) {
    double sum = 0;
    for (size_t j = g * size; j < (g + 1) * size; ++j) sum += f[j];
    result.push_back(sum / static_cast<double>(size));
  }
  return result;
}

// f''_g, equation 30.
Doubles sent_fractions(const RouterRule& rule, std::span<const int32_t> experts, int64_t tokens) {
  const int64_t k = rule.num_experts_per_tok, size = rule.n_routed_experts / rule.n_group;
  Doubles result;
  for (int64_t g = 0; g < rule.n_group; ++g) {
    double count = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      bool sent = false;
      for (int64_t j = 0; j < k; ++j) sent = sent || experts[at(t * k + j)] / size == g;
      count += sent ? 1 : 0;
    }
    result.push_back(count * rule.n_group /
                     (static_cast<double>(rule.topk_group) * static_cast<double>(tokens)));
  }
  return result;
}

// The losses of one document times their alphas, and the derivative by each P_i.
struct DocumentBalance {
  double loss = 0;
  Doubles by_p;
};

DocumentBalance document_balance(const RouterRule& rule, std::span<const int32_t> experts,
                                 const Doubles& p, int64_t tokens, const BalanceAlpha& alpha) {
  const Doubles f = fractions(rule, experts, tokens), device = device_fractions(rule, f),
                sent = sent_fractions(rule, experts, tokens);
  const size_t size = f.size() / device.size();
  DocumentBalance result{0, Doubles(f.size())};
  for (size_t i = 0; i < f.size(); ++i) {
    result.loss += alpha.sequence * f[i] * p[i];
    result.by_p[i] += alpha.sequence * f[i];
  }
  for (size_t g = 0; g < device.size(); ++g) {
    double of_group = 0;
    for (size_t j = g * size; j < (g + 1) * size; ++j) {
      of_group += p[j];
      result.by_p[j] += alpha.device * device[g] + alpha.communication * sent[g];
    }
    result.loss += alpha.device * device[g] * of_group;
    result.loss += alpha.communication * sent[g] * of_group;
  }
  return result;
}

// P of tokens [begin, begin + length).
Doubles mean_scores(const RouterRule& rule, const Doubles& logits, int64_t begin, int64_t length) {
  const int64_t n = rule.n_routed_experts;
  Doubles mean(at(n));
  for (int64_t t = begin; t < begin + length; ++t) {
    const Doubles s = scores(rule, std::span(logits).subspan(at(t * n), at(n)));
    double sum = 0;
    for (const double v : s) sum += v;
    // a softmax sums to 1
    for (size_t e = 0; e < s.size(); ++e) mean[e] += s[e] / sum / static_cast<double>(length);
  }
  return mean;
}

}  // namespace

double balance_value(const RouterRule& rule, const Doubles& logits,
                     std::span<const int32_t> experts, std::span<const int64_t> document_lengths,
                     const BalanceAlpha& alpha) {
  const int64_t k = rule.num_experts_per_tok;
  double total = 0;
  int64_t begin = 0;
  for (const int64_t length : document_lengths) {
    total += document_balance(rule, experts.subspan(at(begin * k), at(length * k)),
                              mean_scores(rule, logits, begin, length), length, alpha)
                 .loss;
    begin += length;
  }
  return total / static_cast<double>(document_lengths.size());
}

Doubles balance_gradient(const RouterRule& rule, const Doubles& logits,
                         std::span<const int32_t> experts,
                         std::span<const int64_t> document_lengths, const BalanceAlpha& alpha) {
  const int64_t n = rule.n_routed_experts, k = rule.num_experts_per_tok;
  Doubles result;
  int64_t begin = 0;
  for (const int64_t length : document_lengths) {
    const Doubles by_p = document_balance(rule, experts.subspan(at(begin * k), at(length * k)),
                                          mean_scores(rule, logits, begin, length), length, alpha)
                             .by_p;
    const double scale =
        1.0 / static_cast<double>(length) / static_cast<double>(document_lengths.size());
    for (int64_t t = begin; t < begin + length; ++t) {
      const std::span row = std::span(logits).subspan(at(t * n), at(n));
      const Doubles s = scores(rule, row);
      double sum = 0;
      for (const double v : s) sum += v;
      Doubles ds(at(n));
      for (size_t i = 0; i < ds.size(); ++i) {
        for (size_t e = 0; e < ds.size(); ++e)
          ds[i] += scale * by_p[e] * ((e == i ? 1 : 0) / sum - s[e] / (sum * sum));
      }
      const Doubles d = through_scores(rule, row, ds);
      result.insert(result.end(), d.begin(), d.end());
    }
    begin += length;
  }
  return result;
}

double cross_entropy_value(const Doubles& logits, std::span<const int32_t> targets,
                           int64_t vocab_size) {
  double loss = 0;
  for (int64_t t = 0; t < size(targets); ++t) {
    if (targets[at(t)] < 0) continue;
    const std::span row = std::span(logits).subspan(at(t * vocab_size), at(vocab_size));
    const double max = *std::max_element(row.begin(), row.end());
    double sum = 0;
    for (const double v : row) sum += std::exp(v - max);
    loss += std::log(sum) + max - row[at(targets[at(t)])];
  }
  return loss;
}

Doubles cross_entropy_gradient(const Doubles& logits, std::span<const int32_t> targets,
                               int64_t vocab_size) {
  Doubles result;
  for (int64_t t = 0; t < size(targets); ++t) {
    Doubles p(at(vocab_size));
    if (targets[at(t)] >= 0) {
      p = softmax(std::span(logits).subspan(at(t * vocab_size), at(vocab_size)));
      p[at(targets[at(t)])] -= 1;
    }
    result.insert(result.end(), p.begin(), p.end());
  }
  return result;
}

std::pair<double, double> log_prob_entropy_value(std::span<const double> logits, int32_t target) {
  const Doubles p = softmax(logits);
  double entropy = 0;
  for (const double v : p) entropy -= v > 0 ? v * std::log(v) : 0;
  return {-cross_entropy_value(Doubles(logits.begin(), logits.end()), {&target, 1}, size(logits)),
          entropy};
}

Doubles log_prob_entropy_gradient(std::span<const double> logits, int32_t target, double d_log_prob,
                                  double d_entropy) {
  Doubles p = softmax(logits);
  const double entropy = log_prob_entropy_value(logits, target).second;
  for (double& v : p) v *= -d_log_prob - d_entropy * ((v > 0 ? std::log(v) : 0) + entropy);
  p[at(target)] += d_log_prob;
  return p;
}

Doubles embedding_value(const Doubles& table, std::span<const int32_t> ids, int64_t cols) {
  Doubles y;
  for (const int32_t id : ids)
    y.insert(y.end(), table.begin() + id * cols, table.begin() + (id + 1) * cols);
  return y;
}

Doubles embedding_gradient(const Doubles& dy, std::span<const int32_t> ids, int64_t vocab_size,
                           int64_t cols) {
  Doubles d(at(vocab_size * cols));
  for (int64_t t = 0; t < size(ids); ++t) {
    for (int64_t c = 0; c < cols; ++c) d[at(ids[at(t)] * cols + c)] += dy[at(t * cols + c)];
  }
  return d;
}

}  // namespace fathom::reference
