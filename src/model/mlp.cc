#include "model/mlp.h"

#include <algorithm>
#include <optional>

#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/gemm_backward.h"
#include "kernels/moe_permute.h"
#include "kernels/router.h"
#include "model/expert_cache.h"

namespace fathom {
namespace {

WeightView router_weight(const ModelConfig& c, const MoeWeights& w) {
  return {.dtype = DType::kF32,
          .rows = c.n_routed_experts,
          .cols = c.hidden_size,
          .data = reinterpret_cast<const std::byte*>(w.gate.data())};
}

std::span<const float> slot_weights(const MoeActivations& a) {
  return {a.weights, a.position.size()};
}

// The three layers of MLPs in one go, where nobody wants to see what is between them: not the
// backward pass, nor an observer, nor LoRA's side paths.
template <class Layer>
bool in_one_go(Context& ctx, const Layer& gate, const Layer& up, const Layer& down,
               const MlpActivations& a, const SwigluExperts& w) {
  const bool lora = !gate.lora_a.empty() || !up.lora_a.empty() || !down.lora_a.empty();
  return !a.kept() && !lora && !ctx.input_observer() && has_swiglu_mlp(ctx, w);
}

SwigluExperts swiglu_experts(const Experts& gate, const Experts& up, const Experts& down) {
  return {gate.weight, up.weight, down.weight};
}

// y = expert(x) of these rows. An expert's rows do not see the others', so waves change no bit.
void wave_forward(Context& ctx, const ExpertWave& v, const MoeActivations& a) {
  const SwigluExperts experts = swiglu_experts(*v.gate_proj, *v.up_proj, *v.down_proj);
  if (in_one_go(ctx, *v.gate_proj, *v.up_proj, *v.down_proj, a.routed, experts))
    return swiglu_mlp(ctx, a.x.slice(v.row, v.rows), {}, v.offsets, experts,
                      a.y.slice(v.row, v.rows));
  const Rows x = a.x.slice(v.row, v.rows), gate = a.routed.gate.slice(v.row, v.rows),
             up = a.routed.up.slice(v.row, v.rows), act = a.routed.act.slice(v.row, v.rows);
  experts_forward(ctx, x, v.offsets, {{*v.gate_proj, gate}, {*v.up_proj, up}});
  swiglu(ctx, gate, up, act);
  experts_forward(ctx, act, v.offsets, *v.down_proj, a.y.slice(v.row, v.rows));
}

}  // namespace

void mlp_forward(Context& ctx, const MlpWeights& w, ConstRows x, const MlpActivations& a,
                 Rows out) {
  const SwigluExperts one{
      {&w.gate_proj.weight, 1}, {&w.up_proj.weight, 1}, {&w.down_proj.weight, 1}};
  if (in_one_go(ctx, w.gate_proj, w.up_proj, w.down_proj, a, one)) {
    const int64_t offsets[] = {0, x.rows};
    return swiglu_mlp(ctx, x, {}, offsets, one, out);
  }
  linears_forward(ctx, x, {{w.gate_proj, nullptr, a.gate}, {w.up_proj, nullptr, a.up}});
  swiglu(ctx, a.gate, a.up, a.act);
  linear_forward(ctx, a.act, w.down_proj, nullptr, out);
}

void mlp_backward(Context& ctx, const MlpWeights& w, ConstRows x, const MlpActivations& a,
                  ConstRows dout, const MlpGradients& g, Rows dx) {
  ArenaScope scope(ctx.scratch());
  const Rows dact = scope.rows(x.rows, a.act.cols), part = scope.rows(x.rows, x.cols);
  linear_backward(ctx, a.act, w.down_proj, dout, g.down_proj, dact);  // out = W_down act
  swiglu_backward(ctx, a.gate, a.up, dact, a.gate, a.up);             // act = silu(gate) * up
  linear_backward(ctx, x, w.gate_proj, a.gate, g.gate_proj, dx);      // gate = W_gate x
  linear_backward(ctx, x, w.up_proj, a.up, g.up_proj, part);          // up = W_up x
  add(ctx, part, dx);
}

void moe_forward(Context& ctx, const ModelConfig& c, const MoeWeights& w, ConstRows x,
                 const MoeActivations& a, Rows out) {
  linear(ctx, x, router_weight(c, w), nullptr, a.logits);
  route(ctx, c.router, a.logits,
        w.e_score_correction_bias.empty() ? nullptr : w.e_score_correction_bias.data(), a.experts,
        a.weights);
  sort_by_expert({a.experts, a.position.size()}, a.offsets, a.position);
  ExpertCache* const cache = w.streamed.cache;
  if (cache != nullptr)
    cache->begin(w.streamed.layer, a.offsets, w.gate_proj, w.up_proj, w.down_proj);

  // The shared experts lay the ground that the routed sum is added to. Meanwhile the disk works.
  if (w.shared_experts) {
    mlp_forward(ctx, *w.shared_experts, x, a.shared, out);
  } else {
    for (int64_t t = 0; t < x.rows; ++t) std::fill_n(out.row(t), out.cols, 0.0f);
  }

  const SwigluExperts experts = swiglu_experts(w.gate_proj, w.up_proj, w.down_proj);
  if (cache == nullptr && in_one_go(ctx, w.gate_proj, w.up_proj, w.down_proj, a.routed, experts)) {
    swiglu_mlp(ctx, x, a.position, a.offsets, experts, a.y);
    return scatter_add_weighted(ctx, a.y, a.position, slot_weights(a), out);
  }
  gather_by_expert(ctx, x, a.position, a.x);
  if (cache != nullptr) {
    while (const std::optional<ExpertWave> wave = cache->next()) wave_forward(ctx, *wave, a);
  } else {
    wave_forward(ctx, {0, a.x.rows, a.offsets, &w.gate_proj, &w.up_proj, &w.down_proj}, a);
  }
  scatter_add_weighted(ctx, a.y, a.position, slot_weights(a), out);
}

double moe_backward(Context& ctx, const ModelConfig& c, const MoeWeights& w, ConstRows x,
                    const MoeActivations& a, const BalanceObjective& balance, ConstRows dout,
                    const MoeGradients& g, Rows dx) {
  const auto slots = static_cast<int64_t>(a.position.size());
  const MlpActivations& r = a.routed;
  ArenaScope scope(ctx.scratch());
  const Rows part = scope.rows(x.rows, x.cols);

  // out += sum of weight * y
  float* dweights = scope.array<float>(slots);
  scatter_add_weighted_backward(ctx, dout, a.y, a.position, slot_weights(a), a.y,
                                {dweights, a.position.size()});
  const Rows dact = scope.rows(slots, r.act.cols), dslots = scope.rows(slots, x.cols);
  experts_backward(ctx, r.act, a.offsets, w.down_proj, a.y, g.down_proj, dact);
  swiglu_backward(ctx, r.gate, r.up, dact, r.gate, r.up);
  experts_backward(ctx, a.x, a.offsets, w.gate_proj, r.gate, g.gate_proj, dslots);
  experts_backward(ctx, a.x, a.offsets, w.up_proj, r.up, g.up_proj, a.y);
  add(ctx, a.y, dslots);
  gather_by_expert_backward(ctx, dslots, a.position, dx);

  // weights = route(W_router x)
  const Rows dlogits = scope.rows(x.rows, c.n_routed_experts);
  route_backward(ctx, c.router, a.logits, a.experts, dweights, dlogits);
  double loss = 0;
  if (balance.alpha.any()) {
    loss = balance_loss(ctx, c.router, a.logits, a.experts, balance.document_lengths, balance.alpha,
                        dlogits);
  }
  if (!g.gate.empty()) {
    linear_backward_weight(ctx, dlogits, x, DType::kF32,
                           {g.gate.data(), c.n_routed_experts, c.hidden_size, c.hidden_size});
  }
  linear_backward_input(ctx, dlogits, router_weight(c, w), part);
  add(ctx, part, dx);

  if (w.shared_experts) {
    mlp_backward(ctx, *w.shared_experts, x, a.shared, dout, *g.shared_experts, part);
    add(ctx, part, dx);
  }
  return loss;
}

}  // namespace fathom
