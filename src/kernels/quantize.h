// Stored weight formats to f32, bit for bit as their definitions (GGUF block formats, OCP MX and
// E4M3; each value is rounded at most once, in its last operation, so no target can differ).
#pragma once

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

// out[i] = value of element i of one row; `row` holds row_bytes(dtype, cols) bytes, any alignment
// for block types.
// F8_E4M3 yields unscaled values here: the caller multiplies by its block scales
// (dequantize_weight_row does).
// REQUIRES: dtype is computable, cols a multiple of its block. Thread-safe, allocates nothing.
void dequantize_row(Isa isa, DType dtype, const std::byte* row, int64_t cols, float* out);

// Columns [begin, begin + count) of row r of w, block scales applied. REQUIRES: begin and count
// multiples of the block, except that count may end at w.cols; for F8_E4M3 begin is a multiple of
// 128.
void dequantize_weight(Isa isa, const WeightView& w, int64_t r, int64_t begin, int64_t count,
                       float* out);

// Embedding lookup: out[t] = row ids[t] of table [vocab_size, hidden_size], as f32. REQUIRES: 0 <=
// ids[t] < table.rows.
void embedding(Context& ctx, const WeightView& table, const int32_t* ids, Rows out);

// dtable[ids[t]] += dy[t], in order of t: a token that occurs c times costs c rounded additions.
// REQUIRES: as embedding(); dtable does not overlap dy. One order of sums whatever the threads
// (work is cut by columns).
void embedding_backward(Context& ctx, const int32_t* ids, ConstRows dy, Rows dtable);

}  // namespace fathom
