// Causal attention of new rows over cached keys, for all three forms this family needs.
//
//   s[j] = scale * ( q[0 : d1] · key[j][0 : d1]  +  q[d1 : d1 + d2] · key_rope[j][0 : d2] )     j = 0 .. position
//   out  = sum_j softmax(s)[j] * value[j]
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
// computed at the same time. f32 arithmetic: a score is one chain of FMAs over the dims, an output
// one chain over the keys of a segment, sum e^(s - max) four chains (key mod 4).
//
// Error bound, u = 2^-24, S = sum |q k| of the worst key, P = the softmax:  |out - exact| <= e sum_j P[j] |value[j]| with
// e = 2 scale (d1 + d2 + 6) u S + (2 kKeySegment + 8 segments) u.
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
// * head_stride + i, in elements of
// dtype (F32 or BF16). head_stride 0 = shared by all heads.
struct CachedPart {
  DType dtype = DType::kF32;
  const std::byte* data = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  int64_t dim = 0;
};

struct AttentionKeys {
  CachedPart key;
  CachedPart key_rope;  // dim 0 = none
  CachedPart value;
  // Key j of the sequence is row block_rows[j / kKeyBlock] + j % kKeyBlock of each part.
  std::span<const int64_t> block_rows;
};

// q [T, num_attention_heads * (key.dim + key_rope.dim)]: T consecutive new tokens of one sequence,
// the first at `position`; their own keys are already stored. out [T, num_attention_heads *
// value.dim]. Query head h reads kv head h / (num_attention_heads / num_key_value_heads).
// REQUIRES: block_rows covers position + T keys. out overlaps nothing. Keys and values past a
// query's position are never used: garbage or NaN in them changes nothing. NaN in q or in a visible
// key gives NaN in that row of that head. Uses ctx.scratch() and worker scratch; call from one
// thread.
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
