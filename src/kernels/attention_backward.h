// The gradient of causal attention (attention.h) over one document: T tokens at positions 0 .. T-1
// that see each other only.
//
//   forward   k = key | key_rope, s[t, j] = scale * q[t] · k[j], P[t] = softmax(s[t, 0 .. t]),
//             out[t] = sum_j P[t, j] v[j]
//   dP[t, j] = dout[t] · v[j]
//   dS[t, j] = scale * P[t, j] * (dP[t, j] - sum_i P[t, i] dP[t, i])
//   dq[t] = sum_j dS[t, j] k[j]
//   dk[j] = sum_h sum_t dS[t, j] q[t]
//   dv[j] = sum_h sum_t P[t, j] dout[t]
//
// The sum over i is dout · out, taken here over the very P and dP it is subtracted from, so out is
// not needed and dS adds up to 0. P is computed again from the scores: the forward keeps nothing.
//
// dkey and dvalue sum over the query heads of their kv head, dkey_rope, one key for all heads, over
// all of them. Every element of dq is one chain of FMAs over the keys, of dk and dv over (head,
// token), each in increasing order: the bits depend on no tile and no thread.
//
// Error bounds, u = 2^-24, first order; for a row t of a head with n = t + 1 keys, S = its largest
// sum |q k|, B = its largest sum |dout v|:
//   r = 2 scale (d1 + d2 + 6) u S + (n / 4 + 16) u                             relative, of P
//   e = (3 r + (2 value.dim + n / 4 + 10) u) B scale P[t, j]                   of dS[t, j]
//   dq: sum_j e |k| + n u sum_j |dS k|
//   dk: sum e |q| + N u sum |dS q|
//   dv: sum r P |dout| + N u sum P |dout|
// with N = heads summed over * T, and 2^-100 for a smaller P in e and r P (e^x below 2^-126 is 0).
#pragma once

#include "kernels/attention.h"

namespace fathom {

// Blocks of kKeyBlock x kKeyBlock values of P and of dS, 32 KiB together, kept in scratch between
// the two halves of a round: a tile's at least.
inline constexpr int64_t kBackwardBlocks = 512;

// Where the gradient of one part of the keys goes: element (row j, kv_head, i) to data[j *
// row_stride + kv_head * head_stride + i], rows 0 .. T-1, i below the dim of that part.
struct GradientPart {
  float* data = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};

struct AttentionGradients {
  GradientPart dkey;
  GradientPart dkey_rope;  // head_stride is not used; nothing is written if keys.key_rope.dim is 0
  GradientPart dvalue;
};

// q, heads, scale and keys are those of the forward at position 0; dout [T, num_attention_heads *
// value.dim]; dq as q. All results are assigned. REQUIRES: no part is in I8; block_rows covers T
// keys; the results overlap nothing, the kv heads of a part not each other. NaN or infinity in an
// input may reach every result. Keys past T-1 are not read. Uses ctx.scratch() and worker scratch;
// call from one thread.
void attention_backward(Context& ctx, ConstRows q, int64_t num_attention_heads,
                        int64_t num_key_value_heads, float scale, const AttentionKeys& keys,
                        ConstRows dout, Rows dq, const AttentionGradients& gradients);

// The same for packed documents, as attention_documents() has them: rows of a document in q, dout,
// dq and all parts are its own, and the bits are those of attention_backward() for each document
// alone.
void attention_documents_backward(Context& ctx, ConstRows q,
                                  std::span<const int64_t> document_lengths,
                                  int64_t num_attention_heads, int64_t num_key_value_heads,
                                  float scale, const AttentionKeys& keys, ConstRows dout, Rows dq,
                                  const AttentionGradients& gradients);

}  // namespace fathom
