// What gemm_int8.cc hands to the per-target code in gemm_int8.simd.cc. Plain types only.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace fathom {

inline constexpr int64_t kRoundedBlock = 32;  // values of x that share a scale
inline constexpr int64_t kInt8Columns = 512;  // of w, unpacked at a time, at most
inline constexpr int64_t kInt8Panels = 2;     // unpacked together
inline constexpr int64_t kInt8MostBundle = 8;

// 16 rows of w, kInt8Columns: bytes [column / 4][row][4], as block_formats-inl.h has them (but
// signed if they take 8 bits and the target cannot multiply those unsigned), then scale and minimum
// of each run of 16 or 32 columns, [run][row].
struct alignas(64) Int8Panel {
  uint8_t codes[kInt8Columns * 16];
  float scale[kInt8Columns];
  float minimum[kInt8Columns];
};

// Rows of x in bytes: for 32 values codes = x / scale to nearest even, scale = max |x| / 127; for
// each run of w's format start = -zero times the sum of the codes (Int8Kernels), and sum = scale
// times that sum. Rows lie in bundles, whose values alternate, so that what multiplies some of them
// at once reads one stream: codes [K / 4][width][4], scale [K / 32][width], start and sum
// [K / run][width]. Of rows that belong together (an expert's), each Int8Kernels::bundle are one;
// what is left over goes into one of bundle_width(), filled up with zeros.
struct Int8Rows {
  int8_t* codes;
  float* scale;
  int32_t* start;
  float* sum;
  int64_t cols, run;  // run: 16 or 32

  // bundles fall into different sets of a cache
  static int64_t codes_of_row(int64_t cols) { return cols + 64; }

  // At column k of the bundle of `width` rows that begins m rows further.
  Int8Rows at(int64_t m, int64_t width, int64_t k) const {
    const int64_t blocks = (m * cols + k * width) / kRoundedBlock,
                  runs = run == kRoundedBlock ? blocks : 2 * blocks;  // no division
    return {codes + m * codes_of_row(cols) + k * width,
            scale + blocks,
            start + runs,
            sum + runs,
            cols,
            run};
  }
  // Its row i.
  Int8Rows row(int64_t i) const {
    return {codes + 4 * i, scale + i, start + i, sum + i, cols, run};
  }
};

// For `rows` of them, or as many as there may be.
inline int64_t bundle_width(int64_t rows, int64_t most) {
  int64_t width = 1;
  while (width < rows && width < most) width *= 2;
  return width;
}

// m rows of x times kInt8Panels panels: total[m, bundles filled up][32] = ..., over `blocks` blocks
// of 32 columns from `column` on, up to a whole panel; added to what is there unless that is 0.
// Meanwhile next_bytes of w are fetched, for later.
struct Int8Tile {
  const Int8Panel* w;
  Int8Rows x;
  int64_t column = 0, m = 0, blocks = 0;
  float* total = nullptr;
  const uint8_t* next = nullptr;
  int64_t next_bytes = 0;
};

// 1 to kInt8MostFew rows of x times 16 rows of w, `stride` bytes apart or a tile: total[m][16] =
// ..., over `cols` columns, whole blocks, from `column` of x on; added to what is there unless that
// is 0. Meanwhile the 16 rows from `next` on are fetched, one behind the other, and those from
// `near` on into the first cache; neither if it is null.
inline constexpr int64_t kInt8MostFew = 64;
struct Int8Few {
  const uint8_t *w, *next;
  int64_t stride = 0, cols = 0;
  Int8Rows x;
  int64_t column = 0, m = 0;
  float* total = nullptr;
  const uint8_t* near = nullptr;
};

// How a target reads one format, from rows as a file has them or from a tile.
struct Int8Reader {
  void (*unpack)(const uint8_t* w, int64_t stride, int64_t cols, Int8Panel* out) = nullptr;
  void (*few)(const Int8Few& f) = nullptr;
  int64_t few_rows = 0;  // up to so many rows of x few() is the faster way; <= kInt8MostFew
};

// A tile: `cols` columns of up to 16 rows, one block of each after the other; of a block the 16
// rows' integers of 4 bytes side by side, likewise the one integer of 1 or 2 bytes that a block may
// begin or end with (Format::tile_place: where a row's byte is, by 16). Rows that w lacks are 0.

// How a target computes with one format.
struct Int8Kernels {
  Int8Reader rows, tiles;
  void (*multiply)(const Int8Tile& t) = nullptr;
  void (*make_tile)(const uint8_t* w, int64_t stride, int64_t rows, int64_t cols,
                    uint8_t* out) = nullptr;
  int64_t run = 0;     // columns that share a scale
  int32_t zero = 0;    // what the codes of a panel are above the integers of the format
  int64_t bundle = 0;  // rows of x that alternate: a power of two
};

}  // namespace fathom
