// DeepSeekMoE routing: which experts a token visits and with what weight (V2 §2.2, V3 §2.1.2).
#pragma once

#include <cstdint>
#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

enum class ScoringFunc { kSoftmax, kSigmoid };
enum class TopkMethod { kGreedy, kGroupLimitedGreedy, kNoauxTc };

struct RouterRule {
  ScoringFunc scoring_func = ScoringFunc::kSigmoid;
  TopkMethod topk_method = TopkMethod::kNoauxTc;
  int n_routed_experts = 0;
  int num_experts_per_tok = 0;
  int n_group = 1;
  int topk_group = 1;
  bool norm_topk_prob = false;
  float routed_scaling_factor = 1.0f;
};

// logits [T, n_routed_experts] f32 (router weight times hidden, all f32).
//   s = softmax(logits) or sigmoid(logits)
//   kGreedy:             the num_experts_per_tok largest s
//   kGroupLimitedGreedy: the topk_group groups of largest max s; scores outside become 0; then the
//   largest
//   kNoauxTc:            c = s + e_score_correction_bias; the topk_group groups of largest sum of their two largest c; outside -inf;
//                        then the largest c. The bias chooses, it never weighs.
//   w = s of the chosen; softmax: if k > 1 and norm_topk_prob w /= sum w + 1e-20, else w *=
//   routed_scaling_factor;
//                        sigmoid: if norm_topk_prob w /= sum w + 1e-20; then w *=
//                        routed_scaling_factor.
// Scores, choice and weights are formed in double from the f32 logits and each weight is rounded
// once, so only what is equal by definition ties. Ties: lower index first. Result rows are sorted
// by expert id: experts [T, k], weights [T, k].
// e_score_correction_bias: [n_routed_experts], only for kNoauxTc, else null. A NaN logit (or +inf
// under softmax) gives NaN weights and valid expert ids. Each row depends on nothing but itself.
// REQUIRES: n_group divides n_routed_experts, topk_group <= n_group, num_experts_per_tok <=
// n_routed_experts.
void route(Context& ctx, const RouterRule& rule, ConstRows logits,
           const float* e_score_correction_bias, int32_t* experts, float* weights);

// Backward of route through the weights (the choice has no gradient): dlogits [T, n_routed_experts]
// is assigned; with g = d weights / d s,
//   sigmoid: dlogits[e] = g[e] s[e] (1 - s[e]);   softmax: dlogits[e] = s[e] (g[e] - sum_i g[i] s[i]).
// experts [T, k] as route() gave them, dweights [T, k]. Everything in double, each element rounded
// once.
void route_backward(Context& ctx, const RouterRule& rule, ConstRows logits, const int32_t* experts,
                    const float* dweights, Rows dlogits);

// Weights of the auxiliary losses that keep the load even; 0 = off.
struct BalanceAlpha {
  double sequence = 0;       // V2: alpha_1, of experts; V3: of L_Bal. One formula
  double device = 0;         // V2: alpha_2
  double communication = 0;  // V2: alpha_3

  bool any() const { return sequence != 0 || device != 0 || communication != 0; }
};

// The balance losses of each document of T tokens, averaged over the documents (V2 §2.2.3,
// equations 23 to 31; the first also V3 §2.1.2, equations 17 to 20):
//   sequence      sum_i f_i P_i,       f_i   = n_routed_experts / (k T) * (tokens that chose expert i)
//                                      P_i   = mean over the tokens of s_i (softmax) or s_i / sum_j s_j (sigmoid)
//   device        sum_g f'_g P'_g,     f'_g  = mean of f_i over the experts of group g
//                                      P'_g  = sum of P_i over them
//   communication sum_g f''_g P'_g,    f''_g = n_group / (topk_group T) * (tokens that chose an expert of g)
// The paper's devices are the router's groups: D = n_group, M = topk_group. The f have no gradient;
// the P are without the correction bias.
// Returns their sum, each times its alpha, and adds its gradient to dlogits. document_lengths: T >=
// 1, their sum is the rows of logits. In double, each gradient rounded once and added. Uses
// ctx.scratch() and worker scratch.
double balance_loss(Context& ctx, const RouterRule& rule, ConstRows logits, const int32_t* experts,
                    std::span<const int64_t> document_lengths, const BalanceAlpha& alpha,
                    Rows dlogits);

}  // namespace fathom
