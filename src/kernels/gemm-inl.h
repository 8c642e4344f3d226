// What gemm.cc hands to the per-target code in gemm.simd.cc and gemm_packed.simd.cc. Plain types
// only.
//
// Elements are 32 bits wide: an f32; in split form a bf16 widened (each 32 stored as 16 odd, then
// 16 even ones); in native form a pair of bf16. Element i of a row belongs to lane i mod 16 and
// step i / 16 of the order of sums (gemm.h).
#pragma once

#include <stdint.h>

namespace fathom {

// Few rows of x: both operands are read row by row. Up to so many that is sooner than packing
// (measured; on Intel's AVX-512 fewer: choose_few_rows() in gemm.cc).
namespace portable {
inline constexpr int64_t kFewRows = 64;
}
namespace avx2 {
inline constexpr int64_t kFewRows = 16;
}
namespace avx512 {
inline constexpr int64_t kFewRows = 64;
}
inline constexpr int64_t kPanelRows = 8;       // rows of w that are multiplied together
inline constexpr int64_t kTileRows = 3;        // rows of x in one register tile
inline constexpr int64_t kScaleColumns = 128;  // of FP8, that share a scale

// What of w is fetched meanwhile, so many bytes behind what is read: into the second cache, and
// into the first (0: what is read, which changes nothing).
struct Fetch {
  int64_t ahead = 0, near = 0;
};

// y[m, n] = sum_k x[m, k] * w[n, k] + bias[n]. Strides in elements of the operand as stored.
struct GemmBlock {
  const void* x = nullptr;
  const void* w = nullptr;
  int64_t x_stride = 0, w_stride = 0;
  Fetch fetch = {};
  int64_t m = 0, n = 0, k = 0;
  const float* scales = nullptr;  // of w in FP8, one for each kScaleColumns of k
  const float* bias = nullptr;    // [n] or null
  float* y = nullptr;
  int64_t y_stride = 0;
};

// Many rows of x: both operands are packed lane by lane, x as [tile][16][steps][rows], w as
// [16][steps][columns], zeros past the ends.
// The lanes lie in the order in which the tree of reduce_add joins them: 0, 8, 4, 12, 2, ..
struct PackedTile {
  int64_t rows, columns;  // of x and of w
};
namespace portable {
inline constexpr PackedTile kPackedTile{6, 8};
}
namespace avx2 {
inline constexpr PackedTile kPackedTile{6, 16};
}
namespace avx512 {
inline constexpr PackedTile kPackedTile{12, 32};
}

// Panels of w, or a part of their steps, against m rows of x.
struct PackedBlock {
  const float* x = nullptr;
  const float* w = nullptr;
  // elements from one tile, panel or lane to the next
  int64_t x_tile = 0, x_lane = 0, w_panel = 0, w_lane = 0;
  int64_t m = 0, n = 0, steps = 0;
  // FP8: those of w, one for each run_steps steps.
  const float* scales = nullptr;
  int64_t run_steps = 0;
  // The lanes' sums between two parts, [tile][panel][16][rows][columns]; unused when first && last.
  float* partial = nullptr;
  bool first = true, last = true;
  const float* bias = nullptr;
  float* y = nullptr;
  int64_t y_stride = 0;
};

// Rows of w [K, N] to a panel of `columns` of its columns: [16][steps][width] with the lanes in
// their places.
struct ColumnPanel {
  int64_t stride = 0;   // elements of w from one row to the next
  int64_t rows = 0;     // zeros to the end of the last step
  int64_t columns = 0;  // zeros up to the width of a panel
  float* out = nullptr;
  int64_t lane = 0;
};

}  // namespace fathom
