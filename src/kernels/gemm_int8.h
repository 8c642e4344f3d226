// Linear layers whose weights are GGUF blocks, x rounded to 8 bits: the part of gemm.h that is
// computed in integers. Internal to src/kernels: gemm.cc decides who comes here.
#pragma once

#include <span>

#include "kernels/gemm.h"
#include "tensor/context.h"

namespace fathom {

bool has_int8_product(DType dtype);

// As in gemm.h, all parts of one dtype, gate and up of one dtype. REQUIRES: what gemm.cc has
// checked; x.rows and x.cols above 0.
void int8_linears(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                  std::span<const LinearPart> parts);
void int8_head_linears(Context& ctx, ConstRows x, int64_t x_head, std::span<const WeightView> heads,
                       Rows y, int64_t y_head);
void int8_swiglu_mlp(Context& ctx, ConstRows x, std::span<const int64_t> position,
                     std::span<const int64_t> offsets, const SwigluExperts& w, Rows y);

}  // namespace fathom
