// Borrowed views. They own nothing and travel by value; whoever hands one out keeps the memory
// alive.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tensor/dtype.h"

namespace fathom {

// A matrix of f32 activations, one row per token: [rows, cols], consecutive rows `stride` elements
// apart.
struct ConstRows {
  const float* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
  const float* row(int64_t i) const { return data + i * stride; }
};

struct Rows {
  float* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
  float* row(int64_t i) const { return data + i * stride; }
  operator ConstRows() const {
    return {data, rows, cols, stride};
  }  // NOLINT: widening to const is safe
  // Columns [begin, begin + count) of every row; rows [begin, begin + count).
  Rows columns(int64_t begin, int64_t count) const { return {data + begin, rows, count, stride}; }
  Rows slice(int64_t begin, int64_t count) const {
    return {data + begin * stride, count, cols, stride};
  }
};

// The weight of a linear layer, [rows = out, cols = in], in its file's own type; rows are
// contiguous and follow each other. Block types need cols to be a multiple of the block. Data is
// aligned to its element (F32: 4, BF16/F16: 2, others: 1). F8_E4M3: W[r, c] = f8(r, c) *
// block_scales[r / 128][c / 128], scales f32, `scale_cols` per row. Blocks may lie in memory a
// second time as tiles (kernels/gemm.h), which products then read instead.
struct WeightView {
  DType dtype = DType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* data = nullptr;
  const float* block_scales = nullptr;
  int64_t scale_cols = 0;
  const std::byte* tiles = nullptr;
  bool empty() const { return data == nullptr; }
  const std::byte* row(int64_t i) const { return data + i * row_bytes(dtype, cols); }
  // Rows [begin, begin + count); with tiles only where one begins. REQUIRES for F8_E4M3: begin is a
  // multiple of 128.
  WeightView slice(int64_t begin, int64_t count) const {
    WeightView v = *this;
    v.rows = count;
    v.data = row(begin);
    v.tiles =
        tiles != nullptr && begin % 16 == 0 ? tiles + begin * row_bytes(dtype, cols) : nullptr;
    if (block_scales != nullptr) v.block_scales = block_scales + begin / 128 * scale_cols;
    return v;
  }
};

}  // namespace fathom
