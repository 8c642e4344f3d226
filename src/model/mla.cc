// One token's query, latent and rotated key (V2 §2.1; q_a and kv_a norms use 1e-6 whatever
// rms_norm_eps says, as DeepSeek's own code):
//   q = W_q x, or W_qb norm(W_qa x);  [c | k_rope] = W_kva x;  c = norm(c);  the rope parts of q
//   and k_rope are turned
// The cache keeps [c | k_rope], all that V2 §2.1.2 asks for; both forms read it from there, so a
// fresh token and a cached one are one case.
#include "model/mla.h"

#include <algorithm>

#include "kernels/attention.h"
#include "kernels/attention_backward.h"
#include "kernels/cached_rows.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/rms_norm.h"
#include "kernels/rope.h"
#include "model/cache_rows.h"
#include "model/rope_table.h"

namespace fathom {
namespace {

constexpr float kLatentNormEps = 1e-6f;

// Expanded keys and values of this many bytes at most, or of one head, exist at a time: heads are
// taken in groups.
constexpr int64_t kExpandedBytes = 64 << 20;
// Those in bf16 are made from f32, of so many cached rows at a time.
constexpr int64_t kExpandedSlice = 256;
constexpr int64_t kRoundedRows = 8;  // of these, in one item

// Block starts of rows that lie one after the other.
std::span<const int64_t> contiguous_blocks(ArenaScope& scope, int64_t rows) {
  const int64_t blocks = (rows + kKeyBlock - 1) / kKeyBlock;
  auto* starts = scope.array<int64_t>(blocks);
  for (int64_t b = 0; b < blocks; ++b) starts[b] = b * kKeyBlock;
  return {starts, static_cast<size_t>(blocks)};
}

CachedPart f32_part(const float* data, int64_t row_stride, int64_t head_stride, int64_t dim) {
  return {DType::kF32, reinterpret_cast<const std::byte*>(data), row_stride, head_stride, dim};
}

// Expanded form: k_nope and v of every cached token are rebuilt from its latent, k = [k_nope |
// k_rope]. Here in f32.
void attend_expanded_f32(Context& ctx, const ModelConfig& c, const MlaWeights& w,
                         const InferBatch& batch, int64_t layer, const SequenceRows& sequence,
                         ConstRows q, Rows out) {
  const int64_t keys = sequence.position + sequence.rows;
  const int64_t nope = c.qk_nope_head_dim, v = c.v_head_dim, heads = c.num_attention_heads;
  ArenaScope scope(ctx.scratch());
  const Rows latent = scope.rows(keys, c.kv_lora_rank);
  const Rows key_rope = scope.rows(keys, c.qk_rope_head_dim);
  load_cache_rows(ctx, *batch.cache, layer, sequence, 0, 0, latent);
  load_cache_rows(ctx, *batch.cache, layer, sequence, 0, c.kv_lora_rank, key_rope);
  const auto blocks = contiguous_blocks(scope, keys);
  const int64_t group = std::clamp<int64_t>(kExpandedBytes / (keys * (nope + v) * 4), 1, heads);
  const Rows kv_buffer = scope.rows(keys, group * (nope + v));
  for (int64_t head = 0; head < heads; head += group) {
    const int64_t count = std::min(group, heads - head);
    const Rows kv{kv_buffer.data, keys, count * (nope + v), count * (nope + v)};
    linear_forward(ctx, latent, w.kv_b_proj.slice(head * (nope + v), count * (nope + v)), nullptr,
                   kv);
    const AttentionKeys parts{f32_part(kv.data, kv.stride, nope + v, nope),
                              f32_part(key_rope.data, key_rope.stride, 0, key_rope.cols),
                              f32_part(kv.data + nope, kv.stride, nope + v, v), blocks};
    const ConstRows q_heads{q.data + head * c.qk_head_dim(), q.rows, count * c.qk_head_dim(),
                            q.stride};
    attention(ctx, q_heads, sequence.position, count, count, static_cast<float>(softmax_scale(c)),
              parts, out.columns(head * v, count * v));
  }
}

// kv_b in F32 (as it is rebuilt from quantised halves, or from FP8) becomes BF16 in `to`: products
// with it are twice as fast, and round no more than k and v are rounded behind them.
void round_weight(Context& ctx, bf16* to, WeightView& w) {
  const WeightView from = w;
  ctx.pool().run((from.rows + kRoundedRows - 1) / kRoundedRows, [&](int64_t item, int) {
    const int64_t row = item * kRoundedRows, rows = std::min(kRoundedRows, from.rows - row);
    to_bf16(ctx.isa(), reinterpret_cast<const float*>(from.row(row)), rows * from.cols,
            to + row * from.cols);
  });
  w = {DType::kBF16, from.rows, from.cols, reinterpret_cast<const std::byte*>(to)};
}

// The same with k and v rounded to bf16: of each head rows [k_nope | k_rope | v], one after the
// other.
void attend_expanded_bf16(Context& ctx, const ModelConfig& c, const MlaWeights& w,
                          const InferBatch& batch, int64_t layer, const SequenceRows& sequence,
                          ConstRows q, Rows out) {
  const int64_t keys = sequence.position + sequence.rows, heads = c.num_attention_heads;
  const int64_t nope = c.qk_nope_head_dim, turned = c.qk_rope_head_dim, v = c.v_head_dim;
  const int64_t width = nope + turned + v, slice = std::min(keys, kExpandedSlice);
  const int64_t group = std::clamp<int64_t>(kExpandedBytes / (keys * width * 2), 1, heads);
  ArenaScope scope(ctx.scratch());
  auto* const expanded = scope.array<bf16>(group * keys * width);
  const Rows cached = scope.rows(slice, c.kv_lora_rank + turned);
  const Rows kv_buffer = scope.rows(slice, group * (nope + v));
  const auto blocks = contiguous_blocks(scope, keys);
  const bool rounds = w.kv_b_proj.weight.dtype == DType::kF32;
  auto* const weight = scope.array<bf16>(rounds ? group * (nope + v) * c.kv_lora_rank : 0);
  for (int64_t head = 0; head < heads; head += group) {
    const int64_t count = std::min(group, heads - head), kv_dim = count * (nope + v);
    Linear kv_b = w.kv_b_proj.slice(head * (nope + v), kv_dim);
    if (rounds) round_weight(ctx, weight, kv_b.weight);
    for (int64_t first = 0; first < keys; first += slice) {
      const int64_t rows = std::min(slice, keys - first);
      const Rows latent = cached.slice(0, rows), kv{kv_buffer.data, rows, kv_dim, kv_dim};
      load_cache_rows(ctx, *batch.cache, layer, sequence, first, 0, latent);
      linear_forward(ctx, latent.columns(0, c.kv_lora_rank), kv_b, nullptr, kv);
      ctx.pool().run((rows + kRoundedRows - 1) / kRoundedRows, [&](int64_t item, int) {
        const int64_t end = std::min(rows, (item + 1) * kRoundedRows);
        for (int64_t h = 0; h < count; ++h) {
          for (int64_t j = item * kRoundedRows; j < end; ++j) {
            bf16* const to = expanded + (h * keys + first + j) * width;
            const float* const from = kv.row(j) + h * (nope + v);
            to_bf16(ctx.isa(), from, nope, to);
            to_bf16(ctx.isa(), latent.row(j) + c.kv_lora_rank, turned, to + nope);
            to_bf16(ctx.isa(), from + nope, v, to + nope + turned);
          }
        }
      });
    }
    const auto part = [&](int64_t begin, int64_t dim) {
      return CachedPart{DType::kBF16, reinterpret_cast<const std::byte*>(expanded + begin), width,
                        keys * width, dim};
    };
    const ConstRows q_heads{q.data + head * c.qk_head_dim(), q.rows, count * c.qk_head_dim(),
                            q.stride};
    attention(ctx, q_heads, sequence.position, count, count, static_cast<float>(softmax_scale(c)),
              {part(0, nope + turned), {}, part(nope + turned, v), blocks},
              out.columns(head * v, count * v));
  }
}

// Absorbed form: W_uk moves to the query, W_uv behind the softmax, and all heads attend to one row
// [c | k_rope] (V2 §2.1.2):
//   q~ = W_uk^T q_nope;  s_j = scale ([q~ | q_rope] · [c_j | k_rope_j]);  u = sum_j p_j c_j;  o =
//   W_uv u
void attend_absorbed(Context& ctx, const ModelConfig& c, const MlaWeights& w,
                     const InferBatch& batch, int64_t layer,
                     std::span<const SequenceRows> sequences, ConstRows q, Rows out) {
  const int64_t tokens = q.rows, heads = c.num_attention_heads, rank = c.kv_lora_rank,
                turned = c.qk_rope_head_dim;
  const int64_t nope = c.qk_nope_head_dim, v = c.v_head_dim;
  ArenaScope scope(ctx.scratch());
  const Rows q_absorbed = scope.rows(tokens, heads * (rank + turned));
  heads_forward(ctx, {q.data, tokens, nope, q.stride}, nope + turned, w.absorbed.k_up_transposed,
                q_absorbed.columns(0, rank), rank + turned);
  const auto copy_rope = [&](int64_t t, int) {
    for (int64_t h = 0; h < heads; ++h) {
      std::copy_n(q.row(t) + h * (nope + turned) + nope, turned,
                  q_absorbed.row(t) + h * (rank + turned) + rank);
    }
  };
  if (tokens < kRoundedRows) {  // sooner done than handed out
    for (int64_t t = 0; t < tokens; ++t) copy_rope(t, 0);
  } else {
    ctx.pool().run(tokens, copy_rope);
  }

  const KvCacheView& cache = *batch.cache;
  const std::byte* base = cache.layers[static_cast<size_t>(layer)];
  const Rows u = scope.rows(tokens, heads * rank);
  const AttentionKeys parts{cached_part(cache.dtype, base, cache.row_width, 0, 0, rank + turned),
                            {},
                            cached_part(cache.dtype, base, cache.row_width, 0, 0, rank),
                            {}};
  attention(ctx, q_absorbed, sequences, heads, 1, static_cast<float>(softmax_scale(c)), parts, u);

  heads_forward(ctx, u.columns(0, rank), rank, w.absorbed.v_up, out.columns(0, v), v);
}

// W_kva x becomes [c | k_rope]. Only the latent is normed, not the rope part behind it.
void finish_latent(Context& ctx, const ModelConfig& c, const MlaWeights& w, ConstRows cos_sin,
                   Rows kv_a, Rows latent) {
  rms_norm(ctx, kv_a.columns(0, c.kv_lora_rank), w.kv_a_layernorm.data(), kLatentNormEps, latent);
  rope(ctx, cos_sin, c.rope.layout, 1, kv_a.cols, c.kv_lora_rank, kv_a);
}

// Runs of sequences of one form, as they follow each other in the batch. A cache of f32 is one for
// equality with training, which has its keys in f32.
void attend_cached(Context& ctx, const ModelConfig& c, const MlaWeights& w, const InferBatch& batch,
                   int64_t layer, Rows q, Rows out) {
  const bool f32 = batch.cache->dtype == DType::kF32 || ctx.precision() == Precision::kF32;
  const auto attend_expanded = f32 ? attend_expanded_f32 : attend_expanded_bf16;
  const size_t count = batch.sequences.size();
  int64_t row = 0;
  for (size_t i = 0, end = 0; i < count; i = end) {
    const MlaForm form = batch.form_of(i);
    int64_t rows = 0;
    do {
      rows += batch.sequences[end++].rows;
    } while (form == MlaForm::kAbsorbed && end < count && batch.form_of(end) == form);
    const Rows q_run = q.slice(row, rows), out_run = out.slice(row, rows);
    if (form == MlaForm::kAbsorbed) {
      attend_absorbed(ctx, c, w, batch, layer, batch.sequences.subspan(i, end - i), q_run, out_run);
    } else {
      attend_expanded(ctx, c, w, batch, layer, batch.sequences[i], q_run, out_run);
    }
    row += rows;
  }
}

AttentionKeys packed_keys(const ModelConfig& c, const MlaActivations& a) {
  const int64_t nope = c.qk_nope_head_dim, v = c.v_head_dim;
  const Rows key_rope = a.kv_a.columns(c.kv_lora_rank, c.qk_rope_head_dim);
  return {f32_part(a.kv.data, a.kv.stride, nope + v, nope),
          f32_part(key_rope.data, key_rope.stride, 0, key_rope.cols),
          f32_part(a.kv.data + nope, a.kv.stride, nope + v, v),
          {}};
}

}  // namespace

uint64_t expanded_bytes(const ModelConfig& c, int64_t keys) {
  if (!c.is_mla()) return 0;
  const auto bytes = [](int64_t rows, int64_t width) {  // each factor has its limit: below 2^62
    return 4 * static_cast<uint64_t>(rows) * static_cast<uint64_t>(width);
  };
  const int64_t head = c.qk_head_dim() + c.v_head_dim, cached = c.kv_lora_rank + c.qk_rope_head_dim;
  // in f32 the cached rows of all keys; in bf16 slices of k and v, and kv_b rounded
  const uint64_t kv_b = bytes(c.kv_lora_rank, c.num_attention_heads * head) / 2;
  const uint64_t expanded = std::min(bytes(keys, c.num_attention_heads * head),
                                     std::max(bytes(keys, head), uint64_t{kExpandedBytes}));
  return expanded + bytes(keys, cached) + bytes(kExpandedSlice, c.num_attention_heads * head) +
         kv_b;
}

void mla_keys(Context& ctx, const ModelConfig& c, const MlaWeights& w, const KeySource& keys,
              ConstRows cos_sin, ConstRows x) {
  ArenaScope scope(ctx.scratch());
  const Rows kv_a = scope.rows(x.rows, c.kv_lora_rank + c.qk_rope_head_dim);
  linear_forward(ctx, x, w.kv_a_proj_with_mqa, nullptr, kv_a);
  finish_latent(ctx, c, w, cos_sin, kv_a, kv_a.columns(0, c.kv_lora_rank));
  store_cache_rows(ctx, *keys.infer, keys.layer, kv_a);
}

void mla_forward(Context& ctx, const ModelConfig& c, const MlaWeights& w, const KeySource& keys,
                 ConstRows cos_sin, ConstRows x, const MlaActivations& a, Rows out) {
  const int64_t heads = c.num_attention_heads;
  const bool q_lora = c.q_lora_rank > 0;
  linears_forward(ctx, x,
                  {{q_lora ? w.q_a_proj : w.q_proj, nullptr, q_lora ? a.q_a : a.q},
                   {w.kv_a_proj_with_mqa, nullptr, a.kv_a}});
  if (q_lora) {
    rms_norm(ctx, a.q_a, w.q_a_layernorm.data(), kLatentNormEps, a.q_a_normed);
    linear_forward(ctx, a.q_a_normed, w.q_b_proj, nullptr, a.q);
  }
  rope(ctx, cos_sin, c.rope.layout, heads, c.qk_head_dim(), c.qk_nope_head_dim, a.q);
  finish_latent(ctx, c, w, cos_sin, a.kv_a, a.latent);

  if (keys.infer == nullptr) {
    linear_forward(ctx, a.latent, w.kv_b_proj, nullptr, a.kv);
    attention_documents(ctx, a.q, keys.document_lengths, heads, heads,
                        static_cast<float>(softmax_scale(c)), packed_keys(c, a), a.o);
  } else {
    const InferBatch& batch = *keys.infer;
    store_cache_rows(ctx, batch, keys.layer, a.kv_a);  // without `keep` it holds the latent
    attend_cached(ctx, c, w, batch, keys.layer, a.q, a.o);
  }
  linear_forward(ctx, a.o, w.o_proj, nullptr, out);
}

void mla_backward(Context& ctx, const ModelConfig& c, const MlaWeights& w, const KeySource& keys,
                  ConstRows cos_sin, ConstRows x, const MlaActivations& a, ConstRows dout,
                  const MlaGradients& g, Rows dx) {
  const int64_t tokens = x.rows, heads = c.num_attention_heads, rank = c.kv_lora_rank;
  const int64_t nope = c.qk_nope_head_dim, v = c.v_head_dim;
  ArenaScope scope(ctx.scratch());

  const Rows d_o = scope.rows(tokens, heads * v);  // out = W_o o
  linear_backward(ctx, a.o, w.o_proj, dout, g.o_proj, d_o);

  const Rows dq = scope.rows(tokens, a.q.cols);
  const Rows dkv = scope.rows(tokens, a.kv.cols);
  const Rows dkv_a = scope.rows(tokens, a.kv_a.cols);
  attention_documents_backward(ctx, a.q, keys.document_lengths, heads, heads,
                               static_cast<float>(softmax_scale(c)), packed_keys(c, a), d_o, dq,
                               {{dkv.data, dkv.stride, nope + v},
                                {dkv_a.data + rank, dkv_a.stride, 0},
                                {dkv.data + nope, dkv.stride, nope + v}});

  // kv = W_kvb latent; [latent | k_rope] = [norm | turn] of W_kva x
  const Rows dlatent = scope.rows(tokens, rank);
  linear_backward(ctx, a.latent, w.kv_b_proj, dkv, g.kv_b_proj, dlatent);
  rms_norm_backward(ctx, a.kv_a.columns(0, rank), w.kv_a_layernorm.data(), kLatentNormEps, dlatent,
                    dkv_a.columns(0, rank), g.kv_a_layernorm.data());
  rope_backward(ctx, cos_sin, c.rope.layout, 1, dkv_a.cols, rank, dkv_a);
  linear_backward(ctx, x, w.kv_a_proj_with_mqa, dkv_a, g.kv_a_proj_with_mqa, dx);

  // q = turn of W_q x, or of W_qb norm(W_qa x)
  rope_backward(ctx, cos_sin, c.rope.layout, heads, c.qk_head_dim(), nope, dq);
  const Rows dx_q = scope.rows(tokens, x.cols);
  if (c.q_lora_rank > 0) {
    const Rows dq_a = scope.rows(tokens, c.q_lora_rank);
    linear_backward(ctx, a.q_a_normed, w.q_b_proj, dq, g.q_b_proj, dq_a);
    rms_norm_backward(ctx, a.q_a, w.q_a_layernorm.data(), kLatentNormEps, dq_a, dq_a,
                      g.q_a_layernorm.data());
    linear_backward(ctx, x, w.q_a_proj, dq_a, g.q_a_proj, dx_q);
  } else {
    linear_backward(ctx, x, w.q_proj, dq, g.q_proj, dx_q);
  }
  add(ctx, dx_q, dx);
}

}  // namespace fathom
