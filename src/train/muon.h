// Muon (K. Jordan et al. 2024) for one matrix, with Moonlight's scale and decay (arXiv 2502.16982
// §2.2), so that AdamW's learning rate and weight decay fit both. W, gradient G, momentum M and X
// are [rows, cols], f32:
//
//   G' = gradient_scale G;  M = momentum M + G';  U = G' + momentum M               (Nesterov)
//   X = U / (|U|_F + 1e-7);  five times X = a X + (b A + c A²) X with A = X Xᵀ       (Newton-Schulz)
//   W = W (1 - lr weight_decay) - lr 0.2 sqrt(max(rows, cols)) X;  compute = bf16(W), nearest even;  gradient = 0
//
// a = 3.4445, b = -4.7750, c = 2.0315: X tends towards the nearest matrix with orthonormal rows;
// singular values above 1/300 of |U|_F end between 0.68 and 1.21. With more rows than columns the
// same polynomial is X (a + b A + c A²) with A = Xᵀ X: the small one of the two (a wide one is
// transposed for the last product). The scale makes the root mean square of an update what AdamW's
// is, about 0.2 lr.
//
// One order of sums whatever the threads. Uses ctx.scratch(): 2 rows cols + 2 min(rows, cols)²
// floats and what linear layers need.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

struct MuonStep {
  float lr = 0, momentum = 0.95f, weight_decay = 0;
  float gradient_scale = 1;
};

// gradient and momentum have w's elements; compute too, or is empty. REQUIRES: w.stride == w.cols.
// Arrays overlap nothing. Call from one thread.
void muon(Context& ctx, const MuonStep& step, Rows w, std::span<float> gradient,
          std::span<float> momentum, std::span<bf16> compute);

// The second line: inout is U and becomes X; 0 stays 0. REQUIRES: inout.stride == inout.cols. The
// polynomial's slope is 4 at most where singular values are, so an error of one iteration
// (Frobenius norm) grows by no more than that in each later one.
void orthogonalise(Context& ctx, Rows inout);

}  // namespace fathom
