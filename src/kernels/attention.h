// Causal attention of new rows over cached keys, for all three forms this family needs.
//
//   s[j] = scale * ( q[0 : d1] · key[j][0 : d1]  +  q[d1 : d1 + d2] · key_rope[j][0 : d2] )
//   out  = sum_j softmax(s)[j] * value[j],     j = 0 .. position
//
// GQA:          key = cached k of the head's group, d2 = 0, value = cached v.
// MLA expanded: key = expanded k_nope of the head, key_rope = the one rotated key of all heads,
// value = expanded v.
// MLA absorbed: key = latent | rotated key in one row shared by all heads (d2 = 0), value = the
// latent (V2 §2.1.2).
//
// Keys are cut into segments of kKeySegment, counted from key 0 of the sequence. Each segment has
// its own softmax (max, sum, output), and these are merged in the order of the segments, so a
// query's result does not depend on the chunk, the batch or the threads; and segments may be
// computed at the same time. A score is one chain over the dims, an output one chain over the keys
// of a segment, sum e^(s - max) four chains (key mod 4), all in f32.
//   Keys and values in BF16: q and e^(s - max) are rounded to bf16 (nearest even), the sum is that
//   of the rounded; chains go in pairs of dims (each part filled up with 0) and of keys (from key 0
//   of the segment) as fma(even, fma(odd, sum)), subnormals being 0 on AVX2 and AVX-512. That is
//   `vdpbf16ps`, or f32 FMAs where these are faster (gemm.h), with the same bits.
//   Keys and values in I8: q is rounded to 8 bits like a cached row (cached_rows.h), block by block
//   of kInt8Block dims; a block of q · k is an integer, times q's scale, and enters the score in an
//   FMA with the key's scale. For each row, block of dims and kKeyBlock keys, e^(s - max) and the
//   value's scale are taken as shares of the largest (2^-100, 2^-108 at least) among the keys that
//   the row sees; the product of both is rounded to multiples of 1 / 255, and the integer sum over
//   the keys enters the output in an FMA.
//   Else, and in BF16 under Precision::kF32: keys and values are widened, chains of FMAs.
//
// Error bound, u = 2^-24, S = sum |q k| of the worst key, P = the softmax:
//   |out - exact| <= e sum_j P[j] |value[j]|
// with e = 2 scale (d1 + d2 + 6) u S + (2 kKeySegment + 8 segments) u. BF16: plus
// b + e^(b scale S) - 1, b = 2^-8: an error of scale S b / 2 in a score, of b / 2 in a weight, once
// in the sum over values and once in that of weights. I8: plus e^x - 1 for x = (1 + 2^-12) scale
// sum over blocks of s_q sum |k| (s_q: q's scale of the block, k: the worst key), and, beside
// e sum P |value|, 1 / 510 of the sum over keys j of w c[j] (1 + 2^-12), c = |code - 128| and w =
// the largest P times the largest scale of its kKeyBlock keys.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

inline constexpr int64_t kKeyBlock = 64;
inline constexpr int64_t kKeySegment = 256;
// floats of partial results kept in scratch between two merges
inline constexpr int64_t kAttentionSlotFloats = 4 << 20;

// One part of the cached rows: element (row, kv_head, i) lies at data + row * row_stride + kv_head
// * head_stride + i, in elements of dtype (F32, BF16 or I8). head_stride 0 = shared by all heads.
// I8 (cached_rows.h): scale i / kInt8Block of (row, kv_head) lies at scales + row * row_stride
// bytes + kv_head * head_stride / kInt8Block floats.
struct CachedPart {
  DType dtype = DType::kF32;
  const std::byte* data = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  int64_t dim = 0;
  const std::byte* scales = nullptr;
};

// Consecutive new tokens of one sequence.
struct SequenceRows {
  int64_t rows = 0;
  int64_t position = 0;  // of the first row; all earlier positions are already in the cache
  // Position p lives in row block_rows[p / kKeyBlock] + p % kKeyBlock of each part.
  std::span<const int64_t> block_rows;
};

struct AttentionKeys {
  CachedPart key;
  CachedPart key_rope;  // dim 0 = none
  CachedPart value;
  std::span<const int64_t> block_rows;  // of the sequence, where there is only one
};

// q [T, num_attention_heads * (key.dim + key_rope.dim)]: the new tokens of all sequences, one after
// the other; their own keys are already stored. out [T, num_attention_heads * value.dim]. Query
// head h reads kv head h / (num_attention_heads / num_key_value_heads).
// REQUIRES: rows add up to T; block_rows cover position + rows keys; all parts are in I8, or none.
// out overlaps nothing. Keys and values past a query's position are never used: garbage or NaN in
// them changes nothing. NaN in q or in a visible key gives NaN in that row of that head. Uses
// ctx.scratch() and worker scratch; call from one thread.
void attention(Context& ctx, ConstRows q, std::span<const SequenceRows> sequences,
               int64_t num_attention_heads, int64_t num_key_value_heads, float scale,
               const AttentionKeys& keys, Rows out);

// The same for one sequence, whose first new token is at `position`.
void attention(Context& ctx, ConstRows q, int64_t position, int64_t num_attention_heads,
               int64_t num_key_value_heads, float scale, const AttentionKeys& keys, Rows out);

// The same for packed documents, each attending to itself from position 0: document d is the next
// document_lengths[d] rows of q and out, and its keys are the same rows of each part (block_rows is
// not used). The very bits of attention() for each document alone.
// REQUIRES: lengths >= 1 add up to q.rows.
void attention_documents(Context& ctx, ConstRows q, std::span<const int64_t> document_lengths,
                         int64_t num_attention_heads, int64_t num_key_value_heads, float scale,
                         const AttentionKeys& keys, Rows out);

}  // namespace fathom
