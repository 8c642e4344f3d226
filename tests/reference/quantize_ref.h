// The plain twin of kernels/quantize.h: one element at a time, read off the tables of the formats.
#pragma once

#include "tensor/view.h"

namespace fathom::reference {

// Element i of one row. F8_E4M3 unscaled.
float dequantize_element(DType dtype, const std::byte* row, int64_t i);

// W[r, c], block scales of F8_E4M3 applied.
float weight_element(const WeightView& w, int64_t r, int64_t c);

}  // namespace fathom::reference
