#include "model/block.h"

#include "kernels/elementwise.h"
#include "kernels/rms_norm.h"
#include "model/gqa.h"
#include "model/mla.h"

namespace fathom {

void block_forward(Context& ctx, const ModelConfig& c, const BlockWeights& w, const KeySource& keys,
                   ConstRows cos_sin, ConstRows x, const BlockActivations& a, Rows y) {
  const auto eps = static_cast<float>(c.rms_norm_eps);
  rms_norm(ctx, x, w.input_layernorm.data(), eps, a.attention_input);
  if (w.mla) {
    mla_forward(ctx, c, *w.mla, keys, cos_sin, a.attention_input, a.mla, a.middle);
  } else {
    gqa_forward(ctx, c, *w.gqa, keys, cos_sin, a.attention_input, a.gqa, a.middle);
  }
  add(ctx, x, a.middle);

  rms_norm(ctx, a.middle, w.post_attention_layernorm.data(), eps, a.mlp_input);
  if (w.moe) {
    moe_forward(ctx, c, *w.moe, a.mlp_input, a.moe, y);
  } else {
    mlp_forward(ctx, *w.mlp, a.mlp_input, a.mlp, y);
  }
  add(ctx, a.middle, y);
}

void block_keys(Context& ctx, const ModelConfig& c, const BlockWeights& w, const KeySource& keys,
                ConstRows cos_sin, ConstRows x) {
  ArenaScope scope(ctx.scratch());
  const Rows input = scope.rows(x.rows, x.cols);
  rms_norm(ctx, x, w.input_layernorm.data(), static_cast<float>(c.rms_norm_eps), input);
  if (w.mla) {
    mla_keys(ctx, c, *w.mla, keys, cos_sin, input);
  } else {
    gqa_keys(ctx, c, *w.gqa, keys, cos_sin, input);
  }
}

double block_backward(Context& ctx, const ModelConfig& c, const BlockWeights& w,
                      const KeySource& keys, ConstRows cos_sin, ConstRows x,
                      const BlockActivations& a, const BalanceObjective& balance,
                      const BlockGradients& g, Rows inout) {
  const auto eps = static_cast<float>(c.rms_norm_eps);
  ArenaScope scope(ctx.scratch());
  const Rows dnormed = scope.rows(x.rows, x.cols);
  double balance_loss = 0;

  // y = middle + mlp(norm(middle))
  if (w.moe) {
    balance_loss =
        moe_backward(ctx, c, *w.moe, a.mlp_input, a.moe, balance, inout, *g.moe, dnormed);
  } else {
    mlp_backward(ctx, *w.mlp, a.mlp_input, a.mlp, inout, *g.mlp, dnormed);
  }
  rms_norm_backward(ctx, a.middle, w.post_attention_layernorm.data(), eps, dnormed, dnormed,
                    g.post_attention_layernorm.data());
  add(ctx, dnormed, inout);

  // middle = x + attention(norm(x))
  if (w.mla) {
    mla_backward(ctx, c, *w.mla, keys, cos_sin, a.attention_input, a.mla, inout, *g.mla, dnormed);
  } else {
    gqa_backward(ctx, c, *w.gqa, keys, cos_sin, a.attention_input, a.gqa, inout, *g.gqa, dnormed);
  }
  rms_norm_backward(ctx, x, w.input_layernorm.data(), eps, dnormed, dnormed,
                    g.input_layernorm.data());
  add(ctx, dnormed, inout);
  return balance_loss;
}

}  // namespace fathom
