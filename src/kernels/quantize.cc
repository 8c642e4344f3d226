#include "kernels/quantize.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/dispatch.h"

namespace fathom {

// All of quantize.simd.cc: one function per dtype, and the scaling of one FP8 block row.
using DequantizeRow = void(const uint8_t* row, int64_t cols, float* out);
FATHOM_SIMD_DECLARE(DequantizeRow dequantize_f16, dequantize_bf16, dequantize_f8e4m3,
                    dequantize_q8_0, dequantize_q4_0, dequantize_q4_1, dequantize_q5_0,
                    dequantize_q5_1, dequantize_q2_k, dequantize_q3_k, dequantize_q4_k,
                    dequantize_q5_k, dequantize_q6_k, dequantize_iq4_nl, dequantize_iq4_xs,
                    dequantize_mxfp4;
                    void multiply(float* inout, int64_t n, float factor))
FATHOM_SIMD_DECLARE(void add_row(const float* x, int64_t n, float* inout))

namespace {
constexpr int64_t kScaleBlock = 128;  // F8_E4M3: one scale per 128 x 128 weights
}

void dequantize_row(Isa isa, DType dtype, const std::byte* row, int64_t cols, float* out) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(row);
  FATHOM_DCHECK(cols % dtype_info(dtype).block_elements == 0, dtype_name(dtype), cols);
  switch (dtype) {
#define FATHOM_ROW(type, function) \
  case DType::type:                \
    return FATHOM_SIMD_CALL(isa, function)(bytes, cols, out)
    FATHOM_ROW(kF16, dequantize_f16);
    FATHOM_ROW(kBF16, dequantize_bf16);
    FATHOM_ROW(kF8E4M3, dequantize_f8e4m3);
    FATHOM_ROW(kQ8_0, dequantize_q8_0);
    FATHOM_ROW(kQ4_0, dequantize_q4_0);
    FATHOM_ROW(kQ4_1, dequantize_q4_1);
    FATHOM_ROW(kQ5_0, dequantize_q5_0);
    FATHOM_ROW(kQ5_1, dequantize_q5_1);
    FATHOM_ROW(kQ2_K, dequantize_q2_k);
    FATHOM_ROW(kQ3_K, dequantize_q3_k);
    FATHOM_ROW(kQ4_K, dequantize_q4_k);
    FATHOM_ROW(kQ5_K, dequantize_q5_k);
    FATHOM_ROW(kQ6_K, dequantize_q6_k);
    FATHOM_ROW(kIQ4_NL, dequantize_iq4_nl);
    FATHOM_ROW(kIQ4_XS, dequantize_iq4_xs);
    FATHOM_ROW(kMXFP4, dequantize_mxfp4);
#undef FATHOM_ROW
    case DType::kF32:
      if (cols > 0) std::memcpy(out, row, static_cast<size_t>(cols) * sizeof(float));
      return;
    default:
      FATHOM_CHECK(false, dtype_name(dtype));
  }
}

void dequantize_weight(Isa isa, const WeightView& w, int64_t r, int64_t begin, int64_t count,
                       float* out) {
  dequantize_row(isa, w.dtype, w.row(r) + row_bytes(w.dtype, begin), count, out);
  if (w.dtype != DType::kF8E4M3) return;
  FATHOM_CHECK(w.block_scales != nullptr && begin % kScaleBlock == 0, begin);
  const float* scales = w.block_scales + r / kScaleBlock * w.scale_cols + begin / kScaleBlock;
  for (int64_t c = 0; c < count; c += kScaleBlock) {
    FATHOM_SIMD_CALL(isa, multiply)
    (out + c, std::min(kScaleBlock, count - c), scales[c / kScaleBlock]);
  }
}

void embedding(Context& ctx, const WeightView& table, const int32_t* ids, Rows out) {
  FATHOM_CHECK(out.cols == table.cols, out.cols, table.cols);
  ctx.pool().run(out.rows, [&](int64_t t, int) {
    FATHOM_CHECK(ids[t] >= 0 && ids[t] < table.rows, t, ids[t], table.rows);
    dequantize_weight(ctx.isa(), table, ids[t], 0, table.cols, out.row(t));
  });
}

void embedding_backward(Context& ctx, const int32_t* ids, ConstRows dy, Rows dtable) {
  FATHOM_CHECK(dy.cols == dtable.cols, dy.cols, dtable.cols);
  for (int64_t t = 0; t < dy.rows; ++t)
    FATHOM_CHECK(ids[t] >= 0 && ids[t] < dtable.rows, t, ids[t], dtable.rows);
  constexpr int64_t kColumns = 128;
  ctx.pool().run((dy.cols + kColumns - 1) / kColumns, [&](int64_t item, int) {
    const int64_t begin = item * kColumns, count = std::min(kColumns, dy.cols - begin);
    for (int64_t t = 0; t < dy.rows; ++t) {
      FATHOM_SIMD_CALL(ctx.isa(), add_row)(dy.row(t) + begin, count, dtable.row(ids[t]) + begin);
    }
  });
}

}  // namespace fathom
