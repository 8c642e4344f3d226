// q, k, v = W x + b; rotate q and k; query head i reads kv head i / (num_attention_heads /
// num_key_value_heads); y = W_o concat(o_i).
#include "model/gqa.h"

#include "kernels/attention.h"
#include "kernels/attention_backward.h"
#include "kernels/cached_rows.h"
#include "kernels/elementwise.h"
#include "kernels/gemm_backward.h"
#include "kernels/rope.h"
#include "model/cache_rows.h"
#include "model/rope_table.h"

namespace fathom {
namespace {

// Keys and values in rows of `width` values [k of all kv heads | v of all kv heads].
AttentionKeys keys_in(const ModelConfig& c, DType dtype, const std::byte* rows, int64_t width) {
  const int64_t dim = c.head_dim;
  return {cached_part(dtype, rows, width, 0, dim, dim),
          {},
          cached_part(dtype, rows, width, c.num_key_value_heads * dim, dim, dim),
          {}};
}

AttentionKeys packed_keys(const ModelConfig& c, const GqaActivations& a) {
  return keys_in(c, DType::kF32, reinterpret_cast<const std::byte*>(a.kv.data), a.kv.stride);
}

}  // namespace

void gqa_forward(Context& ctx, const ModelConfig& c, const GqaWeights& w, const KeySource& keys,
                 ConstRows cos_sin, ConstRows x, const GqaActivations& a, Rows out) {
  const int64_t heads = c.num_attention_heads, kv_heads = c.num_key_value_heads, dim = c.head_dim;
  const Rows k = a.kv.columns(0, kv_heads * dim), v = a.kv.columns(kv_heads * dim, kv_heads * dim);
  linears_forward(ctx, x,
                  {{w.q_proj, w.q_bias.data(), a.q},
                   {w.k_proj, w.k_bias.data(), k},
                   {w.v_proj, w.v_bias.data(), v}});
  rope(ctx, cos_sin, c.rope.layout, heads, dim, 0, a.q);
  rope(ctx, cos_sin, c.rope.layout, kv_heads, dim, 0, k);

  const auto scale = static_cast<float>(softmax_scale(c));
  if (keys.infer == nullptr) {
    attention_documents(ctx, a.q, keys.document_lengths, heads, kv_heads, scale, packed_keys(c, a),
                        a.o);
  } else {
    const InferBatch& batch = *keys.infer;
    const KvCacheView& cache = *batch.cache;
    store_cache_rows(ctx, batch, keys.layer, a.kv);
    attention(
        ctx, a.q, batch.sequences, heads, kv_heads, scale,
        keys_in(c, cache.dtype, cache.layers[static_cast<size_t>(keys.layer)], cache.row_width),
        a.o);
  }
  linear_forward(ctx, a.o, w.o_proj, nullptr, out);
}

void gqa_keys(Context& ctx, const ModelConfig& c, const GqaWeights& w, const KeySource& keys,
              ConstRows cos_sin, ConstRows x) {
  const int64_t kv_heads = c.num_key_value_heads, dim = c.head_dim;
  ArenaScope scope(ctx.scratch());
  const Rows kv = scope.rows(x.rows, 2 * kv_heads * dim);
  const Rows k = kv.columns(0, kv_heads * dim), v = kv.columns(kv_heads * dim, kv_heads * dim);
  linears_forward(ctx, x, {{w.k_proj, w.k_bias.data(), k}, {w.v_proj, w.v_bias.data(), v}});
  rope(ctx, cos_sin, c.rope.layout, kv_heads, dim, 0, k);
  store_cache_rows(ctx, *keys.infer, keys.layer, kv);
}

void gqa_backward(Context& ctx, const ModelConfig& c, const GqaWeights& w, const KeySource& keys,
                  ConstRows cos_sin, ConstRows x, const GqaActivations& a, ConstRows dout,
                  const GqaGradients& g, Rows dx) {
  const int64_t tokens = x.rows, heads = c.num_attention_heads, kv_heads = c.num_key_value_heads;
  const int64_t dim = c.head_dim;
  ArenaScope scope(ctx.scratch());

  const Rows d_o = scope.rows(tokens, a.o.cols);  // out = W_o o
  linear_backward(ctx, a.o, w.o_proj, dout, g.o_proj, d_o);

  const Rows dq = scope.rows(tokens, a.q.cols), dkv = scope.rows(tokens, a.kv.cols);
  const Rows dk = dkv.columns(0, kv_heads * dim), dv = dkv.columns(kv_heads * dim, kv_heads * dim);
  attention_documents_backward(ctx, a.q, keys.document_lengths, heads, kv_heads,
                               static_cast<float>(softmax_scale(c)), packed_keys(c, a), d_o, dq,
                               {{dk.data, dk.stride, dim}, {}, {dv.data, dv.stride, dim}});

  // q, k = turn of W x + b; v = W x + b
  rope_backward(ctx, cos_sin, c.rope.layout, heads, dim, 0, dq);
  rope_backward(ctx, cos_sin, c.rope.layout, kv_heads, dim, 0, dk);
  if (!g.q_bias.empty()) {
    bias_backward(ctx, dq, g.q_bias.data());
    bias_backward(ctx, dk, g.k_bias.data());
    bias_backward(ctx, dv, g.v_bias.data());
  }
  const Rows part = scope.rows(tokens, x.cols);
  linear_backward(ctx, x, w.q_proj, dq, g.q_proj, dx);
  linear_backward(ctx, x, w.k_proj, dk, g.k_proj, part);
  add(ctx, part, dx);
  linear_backward(ctx, x, w.v_proj, dv, g.v_proj, part);
  add(ctx, part, dx);
}

}  // namespace fathom
