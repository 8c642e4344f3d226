// Scalar and in double throughout: a few hundred numbers a token, and a choice made on unrounded scores ties only where the
// definition ties (f32 sigmoids of 20 and 21 would be equal).
#include "kernels/router.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>

#include "base/check.h"
#include "kernels/row_blocks.h"

namespace fathom {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

// One token's working memory: scores s, what the choice is made on, and the choice itself; the same for groups.
struct RowScratch {
  std::span<double> s, choice, group;
  std::span<uint8_t> chosen, kept;
};

void score(ScoringFunc scoring_func, const float* logits, std::span<double> s) {
  if (scoring_func == ScoringFunc::kSigmoid) {
    for (size_t e = 0; e < s.size(); ++e) s[e] = 1.0 / (1.0 + std::exp(-static_cast<double>(logits[e])));
    return;
  }
  const double largest = *std::max_element(logits, logits + s.size());
  double sum = 0;
  for (size_t e = 0; e < s.size(); ++e) sum += s[e] = std::exp(logits[e] - largest);
  for (double& x : s) x /= sum;
}

// Marks the `count` largest of x, the lower index first among equals. REQUIRES: count <= x.size(), no NaN.
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
    row.group[g] = noaux ? sum_of_two_largest(members) : *std::max_element(members.begin(), members.end());
  }
  choose_largest(row.group, rule.topk_group, row.kept);
  for (size_t e = 0; e < row.choice.size(); ++e) {
    if (!row.kept[e / size]) row.choice[e] = noaux ? -kInf : 0.0;
  }
}

void route_row(const RouterRule& rule, const float* logits, const float* bias, RowScratch& row, int32_t* experts,
               float* weights) {
  score(rule.scoring_func, logits, row.s);
  for (size_t e = 0; e < row.s.size(); ++e) row.choice[e] = row.s[e] + (bias != nullptr ? bias[e] : 0.0f);
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
  const bool sigmoid = rule.scoring_func == ScoringFunc::kSigmoid;
  const bool normalise = rule.norm_topk_prob && (sigmoid || rule.num_experts_per_tok > 1);
  const double factor = (normalise && !sigmoid ? 1.0 : rule.routed_scaling_factor) / (normalise ? sum : 1.0);
  for (size_t e = 0; e < w.size(); ++e) {
    if (!row.chosen[e]) continue;
    *experts++ = static_cast<int32_t>(e);
    *weights++ = static_cast<float>(w[e] * factor);
  }
}

}  // namespace

void route(Context& ctx, const RouterRule& rule, ConstRows logits, const float* e_score_correction_bias,
           int32_t* experts, float* weights) {
  const int k = rule.num_experts_per_tok, n_experts = rule.n_routed_experts, n_group = rule.n_group;
  FATHOM_CHECK(logits.cols == n_experts && k >= 0 && k <= n_experts, logits.cols, n_experts, k);
  FATHOM_CHECK(n_group >= 1 && n_experts % n_group == 0, n_experts, n_group);
  FATHOM_CHECK(rule.topk_group >= 1 && rule.topk_group <= n_group, rule.topk_group, n_group);
  FATHOM_CHECK((e_score_correction_bias != nullptr) == (rule.topk_method == TopkMethod::kNoauxTc));
  if (n_experts == 0) return;
  constexpr int64_t kCost = 16;  // an exponential and k comparisons, in units of an ordinary element
  for_rows(ctx, logits.rows, logits.cols * kCost, [&](int64_t t, int worker) {
    ArenaScope scope(ctx.worker_scratch(worker));
    const auto array = [&]<class T>(T, int n) { return std::span(scope.array<T>(n), static_cast<size_t>(n)); };
    RowScratch row{array(0.0, n_experts), array(0.0, n_experts), array(0.0, n_group),
                   array(uint8_t{0}, n_experts), array(uint8_t{0}, n_group)};
    route_row(rule, logits.row(t), e_score_correction_bias, row, experts + t * k, weights + t * k);
  });
}

}  // namespace fathom
