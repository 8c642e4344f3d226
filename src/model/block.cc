#include "model/block.h"

#include "kernels/elementwise.h"
#include "kernels/rms_norm.h"
#include "model/gqa.h"
#include "model/mla.h"
#include "model/mlp.h"

namespace fathom {

void block_forward_infer(Context& ctx, const ModelConfig& c, const BlockWeights& w,
                         const InferBatch& batch, int64_t layer, ConstRows cos_sin, Rows x,
                         int32_t* experts) {
  ArenaScope scope(ctx.scratch());
  const auto eps = static_cast<float>(c.rms_norm_eps);
  const Rows normed = scope.rows(x.rows, x.cols);
  const Rows update = scope.rows(x.rows, x.cols);

  rms_norm(ctx, x, w.input_layernorm.data(), eps, normed);
  if (w.mla) {
    mla_forward_infer(ctx, c, *w.mla, batch, layer, cos_sin, normed, update);
  } else {
    gqa_forward_infer(ctx, c, *w.gqa, batch, layer, cos_sin, normed, update);
  }
  add(ctx, update, x);

  rms_norm(ctx, x, w.post_attention_layernorm.data(), eps, normed);
  if (w.moe) {
    moe_forward(ctx, c, *w.moe, normed, update, experts);
  } else {
    mlp_forward(ctx, *w.mlp, normed, update);
  }
  add(ctx, update, x);
}

}  // namespace fathom
