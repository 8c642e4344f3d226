// Rows sorted by expert, so that each expert's rows are one small GEMM; and summed back in a fixed
// order.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

// experts: [T * k], entry t * k + j = expert of slot j of token t. Fills offsets [n_experts + 1]
// (prefix sums of the counts) and position [T * k]: where slot (t, j) lands among the sorted rows.
// Stable: tokens stay in order inside an expert.
void sort_by_expert(std::span<const int32_t> experts, std::span<int64_t> offsets,
                    std::span<int64_t> position);

// out[position[t * k + j]] = x[t]. out has T * k rows.
void gather_by_expert(Context& ctx, ConstRows x, std::span<const int64_t> position, Rows out);

// inout[t] += sum over j, in order of j (router rows are sorted by expert id), of weights[t * k +
// j] * y[position[t * k + j]];
// the sum is formed first, from 0, in f32 with one FMA a slot, then added.
void scatter_add_weighted(Context& ctx, ConstRows y, std::span<const int64_t> position,
                          std::span<const float> weights, Rows inout);

// Backward of gather_by_expert: dx[t] = sum over j, in order of j and from 0, of dout[position[t *
// k + j]]. Error: k u sum|dout|.
void gather_by_expert_backward(Context& ctx, ConstRows dout, std::span<const int64_t> position,
                               Rows dx);

// Backward of scatter_add_weighted, dout [T, n] (inout's own gradient is dout itself):
//   dy[position[t * k + j]] = weights[t * k + j] * dout[t],   dweights[t * k + j] = dout[t] · y[position[t * k + j]]
// dy may be y. The dot product is 16 partial sums, then the tree of reduce_add: error (n / 16 + 5)
// u sum|dout y|.
void scatter_add_weighted_backward(Context& ctx, ConstRows dout, ConstRows y,
                                   std::span<const int64_t> position,
                                   std::span<const float> weights, Rows dy,
                                   std::span<float> dweights);

}  // namespace fathom
