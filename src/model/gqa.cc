// q, k, v = W x + b; rotate q and k; query head i reads kv head i / (num_attention_heads /
// num_key_value_heads); y = W_o concat(o_i).
#include "model/gqa.h"

#include "kernels/attention.h"
#include "kernels/gemm.h"
#include "kernels/rope.h"
#include "model/cache_rows.h"
#include "model/rope_table.h"

namespace fathom {

void gqa_forward_infer(Context& ctx, const ModelConfig& c, const GqaWeights& w,
                       const InferBatch& batch, int64_t layer, ConstRows cos_sin, ConstRows x,
                       Rows out) {
  const int64_t tokens = x.rows, heads = c.num_attention_heads, kv_heads = c.num_key_value_heads,
                dim = c.head_dim;
  const auto bias = [](const std::vector<float>& b) { return b.empty() ? nullptr : b.data(); };
  ArenaScope scope(ctx.scratch());
  const Rows q = scope.rows(tokens, heads * dim);
  const Rows kv = scope.rows(tokens, 2 * kv_heads * dim);
  linear(ctx, x, w.q_proj, bias(w.q_bias), q);
  linear(ctx, x, w.k_proj, bias(w.k_bias), kv.columns(0, kv_heads * dim));
  linear(ctx, x, w.v_proj, bias(w.v_bias), kv.columns(kv_heads * dim, kv_heads * dim));
  rope(ctx, cos_sin, c.rope.layout, heads, dim, 0, q);
  rope(ctx, cos_sin, c.rope.layout, kv_heads, dim, 0, kv.columns(0, kv_heads * dim));
  store_cache_rows(ctx, batch, layer, 0, kv);

  const KvCacheView& cache = *batch.cache;
  const std::byte* k = cache.layers[static_cast<size_t>(layer)];
  const std::byte* v = k + kv_heads * dim * dtype_info(cache.dtype).block_bytes;
  const Rows o = scope.rows(tokens, heads * dim);
  int64_t first = 0;
  for (const SequenceRows& sequence : batch.sequences) {
    const AttentionKeys parts{{cache.dtype, k, cache.row_width, dim, dim},
                              {},
                              {cache.dtype, v, cache.row_width, dim, dim},
                              sequence.block_rows};
    attention(ctx, q.slice(first, sequence.rows), sequence.position, heads, kv_heads,
              static_cast<float>(softmax_scale(c)), parts, o.slice(first, sequence.rows));
    first += sequence.rows;
  }
  linear(ctx, o, w.o_proj, nullptr, out);
}

}  // namespace fathom
