// Rotary position embedding, in place, on part of each head.
//
// For pair p of `dim`/2 with angle a = position * inv_freq[p]:  (x, y) -> (x cos a - y sin a, x sin
// a + y cos a). Interleaved: the pair is elements (2p, 2p+1), MLA's layout in every checkpoint.
// Half-split:  the pair is elements (p, p + dim/2), Qwen2 and Llama in Hugging Face layout.
#pragma once

#include <span>

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

enum class RopeLayout { kInterleaved, kHalfSplit };

// cos_sin[t, 2p] = cos, cos_sin[t, 2p + 1] = sin of position t's angle p, times `magnitude`
// (YaRN's, 1 for every released model). Angles are formed in double, so positions to 2^31 keep
// their phase. inv_freq: [cos_sin.cols / 2].
void rope_angles(Context& ctx, std::span<const int32_t> positions, std::span<const double> inv_freq,
                 double magnitude, Rows cos_sin);

// x [tokens, heads * head_stride]: rotates elements [offset, offset + cos_sin.cols) of each head.
void rope(Context& ctx, ConstRows cos_sin, RopeLayout layout, int64_t heads, int64_t head_stride,
          int64_t offset, Rows x);

// Backward of rope, in place on dx: the transpose, which rotates by the negative angles (and
// multiplies by the same magnitude).
void rope_backward(Context& ctx, ConstRows cos_sin, RopeLayout layout, int64_t heads,
                   int64_t head_stride, int64_t offset, Rows dx);

}  // namespace fathom
