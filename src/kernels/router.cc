// Scalar and in double throughout: a few hundred numbers a token, and a choice made on unrounded
// scores ties only where the definition ties (f32 sigmoids of 20 and 21 would be equal).
#include "kernels/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <span>

#include "base/check.h"
#include "kernels/row_blocks.h"

namespace fathom {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

constexpr int64_t kCost = 16;  // an exponential and k comparisons, in units of an ordinary element

// One token's working memory: scores s, what the choice is made on, and the choice itself; the same
// for groups.
struct RowScratch {
  std::span<double> s, choice, group, gradient;
  std::span<uint8_t> chosen, kept;
};

void score(ScoringFunc scoring_func, const float* logits, std::span<double> s) {
  if (scoring_func == ScoringFunc::kSigmoid) {
    for (size_t e = 0; e < s.size(); ++e)
      s[e] = 1.0 / (1.0 + std::exp(-static_cast<double>(logits[e])));
    return;
  }
  const double largest = *std::max_element(logits, logits + s.size());
  double sum = 0;
  for (size_t e = 0; e < s.size(); ++e) sum += s[e] = std::exp(logits[e] - largest);
  for (double& x : s) x /= sum;
}

// Marks the `count` largest of x, the lower index first among equals. REQUIRES: count <= x.size(),
// no NaN.
void choose_largest(std::span<const double> x, int count, std::span<uint8_t> chosen) {
  std::fill(chosen.begin(), chosen.end(), uint8_t{0});
  for (int i = 0; i < count; ++i) {
    size_t best = x.size();
    for (size_t e = 0; e < x.size(); ++e) {
      if (!chosen[e] && (best == x.size() || x[e] > x[best])) best = e;
    }
    chosen[best] = 1;
  }
}

double sum_of_two_largest(std::span<const double> x) {
  double first = -kInf, second = x.size() > 1 ? -kInf : 0.0;
  for (const double v : x) {
    if (x.size() > 1) second = std::max(second, std::min(first, v));
    first = std::max(first, v);
  }
  return first + second;
}

void mask_groups(const RouterRule& rule, RowScratch& row) {
  const bool noaux = rule.topk_method == TopkMethod::kNoauxTc;
  const size_t size = row.choice.size() / row.group.size();
  for (size_t g = 0; g < row.group.size(); ++g) {
    const std::span<const double> members = row.choice.subspan(g * size, size);
    row.group[g] =
        noaux ? sum_of_two_largest(members) : *std::max_element(members.begin(), members.end());
  }
  choose_largest(row.group, rule.topk_group, row.kept);
  for (size_t e = 0; e < row.choice.size(); ++e) {
    if (!row.kept[e / size]) row.choice[e] = noaux ? -kInf : 0.0;
  }
}

// What divides and multiplies the chosen scores: weights = w * scale / (normalise ? sum w + 1e-20 :
// 1).
struct WeightRule {
  bool normalise;
  double scale;
};

WeightRule weight_rule(const RouterRule& rule) {
  const bool sigmoid = rule.scoring_func == ScoringFunc::kSigmoid;
  const bool normalise = rule.norm_topk_prob && (sigmoid || rule.num_experts_per_tok > 1);
  return {normalise, normalise && !sigmoid ? 1.0 : rule.routed_scaling_factor};
}

void route_row(const RouterRule& rule, const float* logits, const float* bias, RowScratch& row,
               int32_t* experts, float* weights) {
  score(rule.scoring_func, logits, row.s);
  for (size_t e = 0; e < row.s.size(); ++e)
    row.choice[e] = row.s[e] + (bias != nullptr ? bias[e] : 0.0f);
  if (std::any_of(row.choice.begin(), row.choice.end(), [](double c) { return std::isnan(c); })) {
    for (int j = 0; j < rule.num_experts_per_tok; ++j) {
      experts[j] = j;
      weights[j] = std::numeric_limits<float>::quiet_NaN();
    }
    return;
  }
  if (rule.topk_method != TopkMethod::kGreedy) mask_groups(rule, row);
  choose_largest(row.choice, rule.num_experts_per_tok, row.chosen);
  // Without a bias the masked scores are the weights (V2); with one they only choose (V3 §2.1.2).
  const std::span<const double> w = bias != nullptr ? row.s : row.choice;
  double sum = 1e-20;
  for (size_t e = 0; e < w.size(); ++e) sum += row.chosen[e] ? w[e] : 0.0;
  const auto [normalise, scale] = weight_rule(rule);
  const double factor = scale / (normalise ? sum : 1.0);
  for (size_t e = 0; e < w.size(); ++e) {
    if (!row.chosen[e]) continue;
    *experts++ = static_cast<int32_t>(e);
    *weights++ = static_cast<float>(w[e] * factor);
  }
}

// g = d loss / d s becomes d loss / d logits.
void through_scores(ScoringFunc scoring_func, const float* logits, std::span<const double> s,
                    std::span<double> g) {
  if (scoring_func == ScoringFunc::kSigmoid) {
    for (size_t e = 0; e < s.size(); ++e) {
      // 1 - s without cancellation
      if (g[e] != 0) g[e] *= s[e] / (1.0 + std::exp(static_cast<double>(logits[e])));
    }
    return;
  }
  double mean = 0;
  for (size_t e = 0; e < s.size(); ++e) mean += g[e] * s[e];
  for (size_t e = 0; e < s.size(); ++e) g[e] = s[e] * (g[e] - mean);
}

void route_backward_row(const RouterRule& rule, const float* logits, const int32_t* experts,
                        const float* dweights, RowScratch& row, float* dlogits) {
  score(rule.scoring_func, logits, row.s);
  std::copy(row.s.begin(), row.s.end(), row.choice.begin());
  if (rule.topk_method == TopkMethod::kGroupLimitedGreedy) mask_groups(rule, row);
  const std::span<const double> w = row.choice;
  const auto [normalise, scale] = weight_rule(rule);
  double sum = 1e-20, mean = 0;
  for (int j = 0; j < rule.num_experts_per_tok; ++j) sum += w[static_cast<size_t>(experts[j])];
  for (int j = 0; j < rule.num_experts_per_tok; ++j)
    mean += dweights[j] * w[static_cast<size_t>(experts[j])] / sum;
  const std::span<double> g = row.gradient;
  std::fill(g.begin(), g.end(), 0.0);
  for (int j = 0; j < rule.num_experts_per_tok; ++j) {
    const auto e = static_cast<size_t>(experts[j]);
    // its group was left out: the weight is the constant 0
    if (w[e] == 0 && row.s[e] != 0) continue;
    g[e] = normalise ? scale / sum * (dweights[j] - mean) : scale * dweights[j];
  }
  through_scores(rule.scoring_func, logits, row.s, g);
  for (size_t e = 0; e < g.size(); ++e) dlogits[e] = static_cast<float>(g[e]);
}

// What P_i is multiplied with in the three losses together, which are linear in P: alpha_1 f_i +
// alpha_2 f'_g + alpha_3 f''_g, for i in group g. experts [T, k].
void balance_factors(const RouterRule& rule, std::span<const int32_t> experts, int64_t tokens,
                     const BalanceAlpha& alpha, std::span<double> f, std::span<double> group) {
  const auto k = static_cast<size_t>(rule.num_experts_per_tok), size = f.size() / group.size();
  const double count = static_cast<double>(tokens);
  std::fill(f.begin(), f.end(), 0.0);
  for (const int32_t e : experts)
    f[static_cast<size_t>(e)] += static_cast<double>(f.size()) / (static_cast<double>(k) * count);
  for (size_t g = 0; g < group.size(); ++g) {
    const auto members = f.subspan(g * size, size);
    group[g] = alpha.device * std::accumulate(members.begin(), members.end(), 0.0) /
               static_cast<double>(size);
  }
  const double sent = static_cast<double>(rule.n_group) / (rule.topk_group * count);
  for (size_t j = 0; j < experts.size(); ++j) {
    // A token's experts rise, so those of one group are neighbours: it is sent there once.
    const size_t g = static_cast<size_t>(experts[j]) / size;
    if (j % k == 0 || static_cast<size_t>(experts[j - 1]) / size != g)
      group[g] += alpha.communication * sent;
  }
  for (size_t e = 0; e < f.size(); ++e) f[e] = alpha.sequence * f[e] + group[e / size];
}

// One token's sum_i f_i P_i; adds its gradient times `scale`.
double balance_row(ScoringFunc scoring_func, const float* logits, std::span<const double> f,
                   double scale, std::span<double> s, std::span<double> g, float* dlogits) {
  score(scoring_func, logits, s);
  double sum = 1, loss = 0;
  if (scoring_func == ScoringFunc::kSigmoid) sum = std::accumulate(s.begin(), s.end(), 0.0);
  for (size_t e = 0; e < s.size(); ++e) loss += f[e] * s[e] / sum;
  // d (s_e / sum) / d s_i = (1[e = i] - s_e / sum) / sum; a softmax needs no division.
  for (size_t e = 0; e < s.size(); ++e)
    g[e] = scale * (scoring_func == ScoringFunc::kSigmoid ? (f[e] - loss) / sum : f[e]);
  through_scores(scoring_func, logits, s, g);
  for (size_t e = 0; e < s.size(); ++e) dlogits[e] = static_cast<float>(dlogits[e] + g[e]);
  return loss;
}

void check_rule(const RouterRule& rule, ConstRows logits) {
  const int k = rule.num_experts_per_tok, n_experts = rule.n_routed_experts, n_group = rule.n_group;
  FATHOM_CHECK(logits.cols == n_experts && k >= 0 && k <= n_experts, logits.cols, n_experts, k);
  FATHOM_CHECK(n_group >= 1 && n_experts % n_group == 0, n_experts, n_group);
  FATHOM_CHECK(rule.topk_group >= 1 && rule.topk_group <= n_group, rule.topk_group, n_group);
}

// body(t, row) for every row of logits, row with working memory of its own.
template <class Body>
void for_router_rows(Context& ctx, const RouterRule& rule, int64_t rows, Body body) {
  const int64_t n_experts = rule.n_routed_experts;
  for_rows(ctx, rows, n_experts * kCost, [&](int64_t t, int worker) {
    ArenaScope scope(ctx.worker_scratch(worker));
    const auto array = [&]<class T>(T, int64_t n) {
      return std::span(scope.array<T>(n), static_cast<size_t>(n));
    };
    RowScratch row{array(0.0, n_experts),        array(0.0, n_experts),
                   array(0.0, rule.n_group),     array(0.0, n_experts),
                   array(uint8_t{0}, n_experts), array(uint8_t{0}, rule.n_group)};
    body(t, row);
  });
}

}  // namespace

void route(Context& ctx, const RouterRule& rule, ConstRows logits,
           const float* e_score_correction_bias, int32_t* experts, float* weights) {
  check_rule(rule, logits);
  FATHOM_CHECK((e_score_correction_bias != nullptr) == (rule.topk_method == TopkMethod::kNoauxTc));
  const int k = rule.num_experts_per_tok;
  if (rule.n_routed_experts == 0) return;
  for_router_rows(ctx, rule, logits.rows, [&](int64_t t, RowScratch& row) {
    route_row(rule, logits.row(t), e_score_correction_bias, row, experts + t * k, weights + t * k);
  });
}

void route_backward(Context& ctx, const RouterRule& rule, ConstRows logits, const int32_t* experts,
                    const float* dweights, Rows dlogits) {
  check_rule(rule, logits);
  FATHOM_CHECK(dlogits.rows == logits.rows && dlogits.cols == logits.cols, dlogits.rows,
               logits.rows, dlogits.cols);
  const int k = rule.num_experts_per_tok;
  if (rule.n_routed_experts == 0) return;
  for_router_rows(ctx, rule, logits.rows, [&](int64_t t, RowScratch& row) {
    route_backward_row(rule, logits.row(t), experts + t * k, dweights + t * k, row, dlogits.row(t));
  });
}

double balance_loss(Context& ctx, const RouterRule& rule, ConstRows logits, const int32_t* experts,
                    std::span<const int64_t> document_lengths, const BalanceAlpha& alpha,
                    Rows dlogits) {
  check_rule(rule, logits);
  FATHOM_CHECK(dlogits.rows == logits.rows && dlogits.cols == logits.cols, dlogits.rows,
               logits.rows, dlogits.cols);
  const int64_t k = rule.num_experts_per_tok, n_experts = rule.n_routed_experts;
  if (k == 0) return 0;
  ArenaScope scope(ctx.scratch());
  const std::span f(scope.array<double>(n_experts), static_cast<size_t>(n_experts));
  const std::span group(scope.array<double>(rule.n_group), static_cast<size_t>(rule.n_group));
  double* const losses = scope.array<double>(logits.rows);
  const auto documents = static_cast<double>(document_lengths.size());
  double total = 0;
  int64_t begin = 0;
  for (const int64_t length : document_lengths) {
    FATHOM_CHECK(length >= 1 && length <= logits.rows - begin, length, begin, logits.rows);
    balance_factors(rule, {experts + begin * k, static_cast<size_t>(length * k)}, length, alpha, f,
                    group);
    const double scale = 1 / (documents * static_cast<double>(length));
    for_router_rows(ctx, rule, length, [&](int64_t i, RowScratch& row) {
      const int64_t t = begin + i;
      losses[t] = balance_row(rule.scoring_func, logits.row(t), f, scale, row.s, row.gradient,
                              dlogits.row(t));
    });
    for (int64_t t = begin; t < begin + length; ++t) total += scale * losses[t];
    begin += length;
  }
  FATHOM_CHECK(begin == logits.rows, begin, logits.rows);
  return total;
}

}  // namespace fathom
