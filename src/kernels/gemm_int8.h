// Linear layers whose weights are GGUF blocks, x rounded to 8 bits: the part of gemm.h that is
// computed in integers. Internal to src/kernels: gemm.cc decides who comes here.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

bool has_int8_product(DType dtype);

// As grouped_linear() of gemm.h; bias [N] or null. REQUIRES: what gemm.cc has checked; x.rows,
// x.cols and y.cols above 0.
void int8_linear(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                 std::span<const WeightView> experts, const float* bias, Rows y);

}  // namespace fathom
