// The linear layer of the model and its experts: W with LoRA's side path where one is attached
// (arXiv 2106.09685):
//
//   y = x Wᵀ + b + lora_scale (x Aᵀ) Bᵀ
//
// Without LoRA these are kernels/gemm.h and kernels/gemm_backward.h, to the bit. With LoRA, W is
// frozen as a rule and may be of any computable type.
#pragma once

#include <initializer_list>
#include <span>
#include <vector>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

struct Linear {
  WeightView weight;     // [out, in]
  WeightView lora_a;     // [rank, in]; empty without LoRA
  WeightView lora_b;     // [out, rank]
  float lora_scale = 0;  // alpha / rank

  // Outputs [begin, begin + count).
  Linear slice(int64_t begin, int64_t count) const {
    return {weight.slice(begin, count), lora_a,
            lora_b.empty() ? lora_b : lora_b.slice(begin, count), lora_scale};
  }
};

// One weight per expert, all of one shape and type.
struct Experts {
  std::vector<WeightView> weight;          // [out, in] each
  std::vector<WeightView> lora_a, lora_b;  // as in Linear; no elements without LoRA
  float lora_scale = 0;
};

// Where gradients are added. Rows without data belong to weights that are not trained.
struct LinearGradient {
  Rows weight, lora_a, lora_b;
};
struct ExpertsGradient {
  std::vector<Rows> weight, lora_a, lora_b;  // no elements = not trained
};

// All tell the context's input observer, if there is one, of each weight and its rows.
// x [T, in], y [T, out]; bias [out] or null. Aliasing and threads as linear() and grouped_linear().
void linear_forward(Context& ctx, ConstRows x, const Linear& w, const float* bias, Rows y);
void experts_forward(Context& ctx, ConstRows x, std::span<const int64_t> offsets, const Experts& w,
                     Rows y);
// Several of one x, each as above to the bit, together where that is faster.
struct LinearOutput {
  const Linear& w;
  const float* bias;
  Rows y;
};
void linears_forward(Context& ctx, ConstRows x, std::initializer_list<LinearOutput> outputs);
struct ExpertsOutput {
  const Experts& w;
  Rows y;
};
void experts_forward(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                     std::initializer_list<ExpertsOutput> outputs);
// head_linears(): one weight per head, without LoRA.
void heads_forward(Context& ctx, ConstRows x, int64_t x_head, std::span<const WeightView> heads,
                   Rows y, int64_t y_head);

//   dx = dy W + lora_scale (dy B) A,   dW += dyᵀ x,   dB += lora_scale dyᵀ (x Aᵀ),
//   dA += lora_scale (dy B)ᵀ x
// dx [T, in] is assigned and overlaps neither x nor dy.
void linear_backward(Context& ctx, ConstRows x, const Linear& w, ConstRows dy,
                     const LinearGradient& g, Rows dx);
void experts_backward(Context& ctx, ConstRows x, std::span<const int64_t> offsets, const Experts& w,
                      ConstRows dy, const ExpertsGradient& g, Rows dx);

}  // namespace fathom
