// Threads and blocks of gemm_int8.h: every row of x is rounded once, weights are read where they
// lie, in rows or in tiles. Few rows of x are multiplied with each block of w as it is unpacked into registers. For more, 32
// rows of w are unpacked, 256 columns at a time, into the first cache and meet up to 512 rows of x
// there, which share the cost of unpacking. Both sum in the same order.
#include "kernels/gemm_int8.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/gemm_int8-inl.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(Int8Kernels int8_q8_0(), int8_q4_0(), int8_q4_1(), int8_q5_0(), int8_q5_1(),
                    int8_q2_k(), int8_q3_k(), int8_q4_k(), int8_q5_k(), int8_q6_k(), int8_iq4_nl(),
                    int8_iq4_xs(), int8_mxfp4();
                    void int8_round_row(const float* x, int64_t blocks, int64_t run,
                                        int32_t zero_of_w, const Int8Row& out))

namespace {

constexpr int64_t kBlockRows = 512;              // of x, that share one unpacking
constexpr int64_t kItemRows = 16 * kInt8Panels;  // of w
constexpr int64_t kSomeRows = 256;               // of x: fewer have longer items
// Of tiles, measured: bytes fetched ahead, and as an item begins; items for each thread. The fewer,
// the rarer the processor must find out anew what to fetch.
constexpr int64_t kTileAhead = 8192, kTileFirst = 4096, kTileItems = 2;

// Empty for types that are no GGUF blocks.
Int8Kernels kernels_of(Isa isa, DType dtype) {
  switch (dtype) {
#define FATHOM_FORMAT(type, name) \
  case DType::type:               \
    return FATHOM_SIMD_CALL(isa, int8_##name)()
    FATHOM_FORMAT(kQ8_0, q8_0);
    FATHOM_FORMAT(kQ4_0, q4_0);
    FATHOM_FORMAT(kQ4_1, q4_1);
    FATHOM_FORMAT(kQ5_0, q5_0);
    FATHOM_FORMAT(kQ5_1, q5_1);
    FATHOM_FORMAT(kQ2_K, q2_k);
    FATHOM_FORMAT(kQ3_K, q3_k);
    FATHOM_FORMAT(kQ4_K, q4_k);
    FATHOM_FORMAT(kQ5_K, q5_k);
    FATHOM_FORMAT(kQ6_K, q6_k);
    FATHOM_FORMAT(kIQ4_NL, iq4_nl);
    FATHOM_FORMAT(kIQ4_XS, iq4_xs);
    FATHOM_FORMAT(kMXFP4, mxfp4);
#undef FATHOM_FORMAT
    default:
      return {};
  }
}

// Where the arrays of an Int8Row lie.
struct RowLayout {
  int64_t run, scale, start, sum, stride;

  RowLayout(int64_t cols, int64_t run_columns) : run(run_columns) {
    const auto aligned = [](int64_t bytes) { return ceil_div(bytes, 64) * 64; };
    scale = aligned(cols);
    start = scale + aligned(cols / kRoundedBlock * 4);
    sum = start + aligned(cols / run * 4);
    stride = sum + aligned(cols / run * 4) + 64;  // rows fall into different sets of a cache
  }
  // From column k on.
  Int8Row at(std::byte* row, int64_t k) const {
    return {reinterpret_cast<int8_t*>(row) + k,
            reinterpret_cast<float*>(row + scale) + k / kRoundedBlock,
            reinterpret_cast<int32_t*>(row + start) + k / run,
            reinterpret_cast<float*>(row + sum) + k / run};
  }
};

struct Problem {
  Context& ctx;
  Int8Kernels kernels;
  RowLayout layout;
  std::byte* x;  // all rows of x, rounded
};

constexpr int64_t kMostBytes = kInt8Columns / 32 * 34;  // of kInt8Columns columns: Q8_0

// kMostBytes apart.
void copy_rows(const uint8_t* from, int64_t stride, int64_t rows, int64_t bytes, uint8_t* to) {
  FATHOM_DCHECK(bytes <= kMostBytes, bytes);
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(to + r * kMostBytes, from + r * stride, static_cast<size_t>(bytes));
}

const Int8Reader& reader_of(const Int8Kernels& kernels, const WeightView& w) {
  return w.tiles != nullptr ? kernels.tiles : kernels.rows;
}

// Where the rows from `row` on begin, a multiple of 16: 16 rows take as much as a tile.
const uint8_t* rows_from(const WeightView& w, int64_t row) {
  const std::byte* const begin = w.tiles != nullptr ? w.tiles : w.data;
  return reinterpret_cast<const uint8_t*>(begin + row * row_bytes(w.dtype, w.cols));
}

// 16 rows of w from `row` on, columns [k0, k0 + k); rows that w does not have are zero.
void unpack_panel(const Int8Kernels& kernels, const WeightView& w, int64_t row, int64_t k0,
                  int64_t k, Int8Panel* out) {
  const int64_t stride = row_bytes(w.dtype, w.cols), bytes = row_bytes(w.dtype, k);
  const int64_t rows = std::min<int64_t>(16, w.rows - row);
  if (rows <= 0) {
    *out = {};
    return;
  }
  const uint8_t* const from = rows_from(w, row);
  const int64_t before = row_bytes(w.dtype, k0);
  if (w.tiles != nullptr) return kernels.tiles.unpack(from + 16 * before, stride, k, out);
  if (rows == 16) return kernels.rows.unpack(from + before, stride, k, out);
  uint8_t copy[16 * kMostBytes] = {};
  copy_rows(from + before, stride, rows, bytes, copy);
  kernels.rows.unpack(copy, kMostBytes, k, out);
}

// m <= kInt8MostFew rows of x from m0 on times rows [n0, n0 + n) of w.
void multiply_few(const Problem& p, const LinearPart& part, const WeightView& w, int64_t m0,
                  int64_t m, int64_t n0, int64_t n) {
  const int64_t stride = row_bytes(w.dtype, w.cols);
  const Int8Row x = p.layout.at(p.x + m0 * p.layout.stride, 0);
  const uint8_t* from = rows_from(w, n0);
  for (int64_t row = n0; row < n0 + n; row += 16, from += 16 * stride) {
    float total[kInt8MostFew * 16];
    std::fill_n(total, m * 16, 0.0f);  // m is mostly 1
    const int64_t rows = std::min<int64_t>(16, n0 + n - row);
    const bool more = row + 16 < n0 + n;
    if (w.tiles != nullptr) {
      p.kernels.tiles.few({from, from + kTileAhead, stride, w.cols, x, p.layout.stride, m, total});
    } else if (rows == 16) {
      p.kernels.rows.few(
          {from, more ? from + 16 * stride : from, stride, w.cols, x, p.layout.stride, m, total});
    } else {
      for (int64_t k0 = 0; k0 < w.cols; k0 += kInt8Columns) {
        const int64_t k = std::min(kInt8Columns, w.cols - k0);
        uint8_t copy[16 * kMostBytes] = {};
        copy_rows(from + row_bytes(w.dtype, k0), stride, rows, row_bytes(w.dtype, k), copy);
        p.kernels.rows.few({copy, copy, kMostBytes, k, p.layout.at(p.x + m0 * p.layout.stride, k0),
                            p.layout.stride, m, total});
      }
    }
    for (int64_t r = 0; r < m; ++r) {
      float* const y = part.y.row(m0 + r) + row;
      for (int64_t i = 0; i < rows; ++i)
        y[i] = part.bias != nullptr ? total[r * 16 + i] + part.bias[row + i] : total[r * 16 + i];
    }
  }
}

// Rows [m0, m0 + m) of x times kItemRows rows of w from n0 on; those up to row `end` will follow.
void multiply(const Problem& p, const LinearPart& part, const WeightView& w, int64_t m0, int64_t m,
              int64_t n0, int64_t end, int worker) {
  ArenaScope scope(p.ctx.worker_scratch(worker));
  auto* const panels = scope.array<Int8Panel>(kInt8Panels);
  float* const total = scope.array<float>(m * kItemRows);
  std::fill(total, total + m * kItemRows, 0.0f);
  const uint8_t* next = rows_from(w, n0) + kItemRows * row_bytes(w.dtype, w.cols);
  for (int64_t k0 = 0; k0 < w.cols; k0 += kInt8Columns) {
    const int64_t k = std::min(kInt8Columns, w.cols - k0);
    for (int64_t i = 0; i < kInt8Panels; ++i)
      unpack_panel(p.kernels, w, n0 + 16 * i, k0, k, panels + i);
    // of the rows that follow, the share that these columns are of all
    const int64_t next_bytes =
        std::clamp<int64_t>(end - n0 - kItemRows, 0, kItemRows) * row_bytes(w.dtype, k);
    p.kernels.multiply({panels, p.layout.at(p.x + m0 * p.layout.stride, k0), p.layout.stride, m,
                        k / kRoundedBlock, total, next, next_bytes});
    next += next_bytes;
  }
  const int64_t n = std::min(kItemRows, w.rows - n0);
  constexpr int64_t kAhead = 16;
  for (int64_t r = 0; r < m; ++r) {
    float* const y = part.y.row(m0 + r) + n0;
    if (r + kAhead < m) {
      __builtin_prefetch(y + kAhead * part.y.stride, 1);
      __builtin_prefetch(y + kAhead * part.y.stride + n - 1, 1);
    }
    for (int64_t i = 0; i < n; ++i)
      y[i] = part.bias != nullptr ? total[r * kItemRows + i] + part.bias[n0 + i]
                                  : total[r * kItemRows + i];
  }
}

}  // namespace

bool has_int8_product(DType dtype) {
  return kernels_of(Isa::kPortable, dtype).make_tile != nullptr;
}

int64_t bytes_of_tiles(const WeightView& w) {
  if (!has_int8_product(w.dtype)) return 0;
  return ceil_div(w.rows, 16) * 16 * row_bytes(w.dtype, w.cols);
}

void make_tiles(Context& ctx, const WeightView& w, std::byte* out) {
  const Int8Kernels kernels = kernels_of(ctx.isa(), w.dtype);
  const int64_t stride = row_bytes(w.dtype, w.cols);
  ctx.pool().run(ceil_div(w.rows, 16), [&](int64_t tile, int) {
    const int64_t row = 16 * tile;
    kernels.make_tile(reinterpret_cast<const uint8_t*>(w.row(row)), stride,
                      std::min<int64_t>(16, w.rows - row), w.cols,
                      reinterpret_cast<uint8_t*>(out + row * stride));
  });
}

void int8_linears(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                  std::span<const LinearPart> parts) {
  ArenaScope scope(ctx.scratch());
  const Int8Kernels kernels = kernels_of(ctx.isa(), parts[0].experts[0].dtype);
  const RowLayout layout(x.cols, kernels.run);
  const Problem p{ctx, kernels, layout, scope.array<std::byte>(x.rows * layout.stride)};

  // Items of expert e of part i are those from first[i experts + e] on: blocks of its rows, and of
  // each all rows of w.
  const auto experts = static_cast<int64_t>(offsets.size()) - 1,
             count = experts * static_cast<int64_t>(parts.size());
  const auto begin_of = [&](int64_t e) { return offsets[static_cast<size_t>(e)]; };
  const auto rows_of = [&](int64_t e) { return begin_of(e + 1) - begin_of(e); };
  // Unless there is much to do with it, w is what takes time: long items, in which the next rows
  // are fetched while others are multiplied, but some for each thread.
  const auto width_of = [&](int64_t e, const LinearPart& part) {
    if (rows_of(e) > kSomeRows) return kItemRows;
    const bool few_of_tiles = part.experts[static_cast<size_t>(e)].tiles != nullptr &&
                              rows_of(e) <= kernels.tiles.few_rows;
    const int64_t items = ctx.pool().threads() * (few_of_tiles ? kTileItems : kLongItems);
    return ceil_div(ceil_div(part.y.cols, items), kItemRows) * kItemRows;
  };
  int64_t* const first = scope.array<int64_t>(count + 1);
  first[0] = 0;
  int64_t outputs = 0;
  for (const LinearPart& part : parts) {
    const int64_t cols = part.y.cols, group = (&part - parts.data()) * experts;
    outputs += cols;
    for (int64_t e = 0; e < experts; ++e) {
      const int64_t items =
          cols == 0 ? 0 : ceil_div(rows_of(e), kBlockRows) * ceil_div(cols, width_of(e, part));
      first[group + e + 1] = first[group + e] + items;
    }
  }

  const auto round = [&](int64_t row, int) {
    FATHOM_SIMD_CALL(ctx.isa(), int8_round_row)
    (x.row(row), x.cols / kRoundedBlock, layout.run, kernels.zero,
     layout.at(p.x + row * layout.stride, 0));
  };
  const auto run_item = [&](int64_t item, int worker) {
    const int64_t group = std::upper_bound(first, first + count, item) - first - 1;
    const LinearPart& part = parts[static_cast<size_t>(group / experts)];
    const int64_t e = group % experts, width = width_of(e, part),
                  widths = ceil_div(part.y.cols, width);
    const int64_t row = (item - first[group]) / widths * kBlockRows;
    const int64_t n0 = (item - first[group]) % widths * width,
                  end = std::min(n0 + width, part.y.cols);
    const WeightView& w = part.experts[static_cast<size_t>(e)];
    const bool few = rows_of(e) <= reader_of(kernels, w).few_rows;
    const int64_t together = few ? 16 : kItemRows;
    const int64_t bytes = std::min(std::min(together, end - n0) * row_bytes(w.dtype, w.cols),
                                   w.tiles != nullptr ? kTileFirst : INT64_MAX);
    const uint8_t* const from = rows_from(w, n0);
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
    if (few) return multiply_few(p, part, w, begin_of(e), rows_of(e), n0, end - n0);
    for (int64_t n = n0; n < end; n += kItemRows)
      multiply(p, part, w, begin_of(e) + row, std::min(kBlockRows, rows_of(e) - row), n, end,
               worker);
  };
  const int64_t work = x.rows * outputs * x.cols;
  run_items(ctx, work, x.rows, round);
  run_items(ctx, work, first[count], run_item);
}

}  // namespace fathom
