#include "model/mlp.h"

#include <algorithm>

#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/moe_permute.h"
#include "kernels/router.h"

namespace fathom {

void mlp_forward(Context& ctx, const MlpWeights& w, ConstRows x, Rows out) {
  ArenaScope scope(ctx.scratch());
  const Rows gate = scope.rows(x.rows, w.gate_proj.rows);
  const Rows up = scope.rows(x.rows, w.up_proj.rows);
  linear(ctx, x, w.gate_proj, nullptr, gate);
  linear(ctx, x, w.up_proj, nullptr, up);
  swiglu(ctx, gate, up, gate);
  linear(ctx, gate, w.down_proj, nullptr, out);
}

void moe_forward(Context& ctx, const ModelConfig& c, const MoeWeights& w, ConstRows x, Rows out,
                 int32_t* experts_out) {
  const int64_t tokens = x.rows, slots = tokens * c.router.num_experts_per_tok;
  ArenaScope scope(ctx.scratch());

  // The shared experts lay the ground that the routed sum is added to.
  if (w.shared_experts) {
    mlp_forward(ctx, *w.shared_experts, x, out);
  } else {
    for (int64_t t = 0; t < tokens; ++t) std::fill_n(out.row(t), out.cols, 0.0f);
  }

  const Rows logits = scope.rows(tokens, c.n_routed_experts);
  const WeightView gate{DType::kF32,   c.n_routed_experts,
                        c.hidden_size, reinterpret_cast<const std::byte*>(w.gate.data()),
                        nullptr,       0};
  linear(ctx, x, gate, nullptr, logits);
  auto* experts = scope.array<int32_t>(slots);
  auto* weights = scope.array<float>(slots);
  route(ctx, c.router, logits,
        w.e_score_correction_bias.empty() ? nullptr : w.e_score_correction_bias.data(), experts,
        weights);
  if (experts_out != nullptr) std::copy_n(experts, slots, experts_out);

  auto* offsets = scope.array<int64_t>(c.n_routed_experts + 1);
  auto* position = scope.array<int64_t>(slots);
  const std::span<int64_t> offset_span(offsets, static_cast<size_t>(c.n_routed_experts + 1));
  const std::span<int64_t> position_span(position, static_cast<size_t>(slots));
  sort_by_expert({experts, static_cast<size_t>(slots)}, offset_span, position_span);
  const Rows sorted = scope.rows(slots, c.hidden_size);
  gather_by_expert(ctx, x, position_span, sorted);
  const Rows gate_rows = scope.rows(slots, c.moe_intermediate_size);
  const Rows up_rows = scope.rows(slots, c.moe_intermediate_size);
  grouped_linear(ctx, sorted, offset_span, w.gate_proj, gate_rows);
  grouped_linear(ctx, sorted, offset_span, w.up_proj, up_rows);
  swiglu(ctx, gate_rows, up_rows, gate_rows);
  grouped_linear(ctx, gate_rows, offset_span, w.down_proj, sorted);
  scatter_add_weighted(ctx, sorted, position_span, {weights, static_cast<size_t>(slots)}, out);
}

}  // namespace fathom
