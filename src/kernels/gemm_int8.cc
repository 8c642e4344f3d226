// Threads and blocks of gemm_int8.h: every row of x is rounded once, into bundles
// (gemm_int8-inl.h), weights are read where they lie, in rows or in tiles. Few rows of x are
// multiplied with each block of w as it is unpacked into registers. For more, 32 rows of w are
// unpacked, some columns at a time, into the first cache and meet up to 512 rows of x there, which
// share the cost of unpacking. Both sum in the same order.
#include "kernels/gemm_int8.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/gemm_int8-inl.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_VNNI_DECLARE(Int8Kernels int8_q8_0(), int8_q4_0(), int8_q4_1(), int8_q5_0(), int8_q5_1(),
                    int8_q2_k(), int8_q3_k(), int8_q4_k(), int8_q5_k(), int8_q6_k(), int8_iq4_nl(),
                    int8_iq4_xs(), int8_mxfp4();
                    void int8_round(const float* x, int64_t stride, int64_t rows, int64_t cols,
                                    int32_t zero_of_w, int64_t width, const Int8Rows& out);
                    void int8_round_swiglu(const float* gate, const float* up, int64_t stride,
                                           int64_t rows, int64_t cols, int32_t zero_of_w,
                                           int64_t width, const Int8Rows& out))

namespace {

constexpr int64_t kBlockRows = 512;  // of x, that share one unpacking
static_assert(kBlockRows % kInt8MostBundle == 0);
constexpr int64_t kItemRows = 16 * kInt8Panels;  // of w
// Bytes of w, measured: how far ahead a tile is fetched (fetches_tiles(), fetches_near()), and how
// much where a stretch of w begins.
constexpr int64_t kTileAhead = 8192, kTileNear = 1536, kFetchFirst = 4096;
// Outputs of gate and of up that wait for each other, in so many items' width at most.
constexpr int64_t kNearOutputs = 4096, kMostItems = 8;

// Empty for types that are no GGUF blocks.
Int8Kernels kernels_of(Isa isa, DType dtype) {
  switch (dtype) {
#define FATHOM_FORMAT(type, name) \
  case DType::type:               \
    return FATHOM_VNNI_CALL(isa, int8_##name)()
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

Int8Rows allocate_rows(ArenaScope& scope, int64_t rows, int64_t cols, int64_t run) {
  return {scope.array<int8_t>(rows * Int8Rows::codes_of_row(cols)),
          scope.array<float>(rows * (cols / kRoundedBlock)),
          scope.array<int32_t>(rows * (cols / run)),
          scope.array<float>(rows * (cols / run)),
          cols,
          run};
}

// Rows of x in bytes, those of each expert together, and how the w that they meet is read.
struct Problem {
  Context& ctx;
  Int8Kernels kernels;
  std::span<const int64_t> offsets;
  int64_t* places;  // where the rows of an expert begin in x, bundles filled up
  Int8Rows x;

  Problem(Context& c, ArenaScope& scope, DType dtype, int64_t cols, std::span<const int64_t> groups)
      : ctx(c),
        kernels(kernels_of(c.isa(), dtype)),
        offsets(groups),
        places(scope.array<int64_t>(std::ssize(groups))) {
    places[0] = 0;
    for (int64_t e = 0; e < experts(); ++e) places[e + 1] = places[e] + filled_up(rows(e));
    // as many as there may be (3 rows fill up to 4, 5 to 8), so that no step takes more than others
    const int64_t most = ceil_div(groups.back() * 8, 5);
    FATHOM_DCHECK(places[experts()] <= most, places[experts()], most);
    x = allocate_rows(scope, most, cols, kernels.run);
    for (int64_t e = 0; e < experts(); ++e) {
      const int64_t last = rows(e) / kernels.bundle * kernels.bundle;
      if (filled_up(rows(e)) > rows(e)) clear(x.at(places[e] + last, 1, 0), width(e, last));
    }
  }

  int64_t experts() const { return std::ssize(offsets) - 1; }
  int64_t begin(int64_t e) const { return offsets[static_cast<size_t>(e)]; }
  int64_t rows(int64_t e) const { return begin(e + 1) - begin(e); }
  int64_t filled_up(int64_t count) const {
    const int64_t left = count % kernels.bundle;
    return count - left + (left > 0 ? bundle_width(left, kernels.bundle) : 0);
  }
  // Of the bundle that begins with row m of expert e.
  int64_t width(int64_t e, int64_t m) const { return bundle_width(rows(e) - m, kernels.bundle); }
  Int8Rows bundle(int64_t e, int64_t m) const { return x.at(places[e] + m, 1, 0); }
  // Row m of expert e at column k: its place in its bundle.
  struct Place {
    int64_t width;
    Int8Rows row;
  };
  Place place(int64_t e, int64_t m, int64_t k) const {
    const int64_t first = m / kernels.bundle * kernels.bundle, w = width(e, first);
    return {w, x.at(places[e] + first, w, k).row(m - first)};
  }

 private:
  static void clear(const Int8Rows& rows, int64_t width) {
    std::fill_n(rows.codes, width * rows.cols, int8_t{0});
    std::fill_n(rows.scale, width * (rows.cols / kRoundedBlock), 0.0f);
    std::fill_n(rows.start, width * (rows.cols / rows.run), 0);
    std::fill_n(rows.sum, width * (rows.cols / rows.run), 0.0f);
  }
};

// Where outputs go, from [m0, n0] on.
struct Output {
  float* data;
  int64_t stride, m0, n0;
  const float* bias = nullptr;

  float* at(int64_t m, int64_t n) const { return data + (m - m0) * stride + (n - n0); }
  void put(int64_t m, int64_t n, const float* total, int64_t count) const {
    float* const y = at(m, n);
    int64_t i = 0;
    if (bias == nullptr) {
      for (; i + 16 <= count; i += 16) std::memcpy(y + i, total + i, 16 * sizeof *y);
    }
    for (; i < count; ++i) y[i] = bias != nullptr ? total[i] + bias[n + i] : total[i];
  }
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

// Columns of w that are unpacked at a time. The more, the less often totals are loaded and stored;
// but the panels, 24 KiB for 512 columns at most, must leave room in the first cache. Measured on
// Zen 4 (32 KiB) and Emerald Rapids (48 KiB).
int64_t panel_columns() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const bool large = sysconf(_SC_LEVEL1_DCACHE_SIZE) >= 48 << 10;
#else
  static const bool large = false;
#endif
  return large ? kInt8Columns : kInt8Columns / 2;
}

// Whether what follows in a tile should be asked for. With several rows of x a tile goes so slowly
// that a processor by itself looks only a few lines ahead. With one or two AMD's follow a stream
// well, and hints disturb them (Zen 4: 34 -> 17 GB/s); Intel's stop where a page ends (Emerald
// Rapids: 56 -> 80 % of what it can read).
bool fetches_tiles(int64_t rows_of_x) { return rows_of_x > 2 || is_intel(); }
// Whether, as it passes by so fast, it should be taken on from the second cache to the first.
bool fetches_near(int64_t rows_of_x) { return rows_of_x <= 2 && is_intel(); }

// m <= kInt8MostFew rows of x, expert e's from m0 on, times n rows of w from n0 on, or what there
// is.
void multiply_few(const Problem& p, const WeightView& w, int64_t e, int64_t m0, int64_t m,
                  int64_t n0, int64_t n, const Output& y) {
  const int64_t stride = row_bytes(w.dtype, w.cols);
  const Int8Rows x = p.bundle(e, m0);
  for (int64_t row = n0; row < std::min(n0 + n, w.rows); row += 16) {
    float total[kInt8MostFew * 16];
    const int64_t rows = std::min<int64_t>(16, w.rows - row);
    const uint8_t* const from = rows_from(w, row);
    const bool more = row + 16 < w.rows;
    if (w.tiles != nullptr) {
      p.kernels.tiles.few({from, fetches_tiles(m) ? from + kTileAhead : nullptr, stride, w.cols, x,
                           0, m, total, fetches_near(m) ? from + kTileNear : nullptr});
    } else if (rows == 16) {
      p.kernels.rows.few({from, more ? from + 16 * stride : from, stride, w.cols, x, 0, m, total});
    } else {
      for (int64_t k0 = 0; k0 < w.cols; k0 += kInt8Columns) {
        const int64_t k = std::min(kInt8Columns, w.cols - k0);
        uint8_t copy[16 * kMostBytes] = {};
        copy_rows(from + row_bytes(w.dtype, k0), stride, rows, row_bytes(w.dtype, k), copy);
        p.kernels.rows.few({copy, copy, kMostBytes, k, x, k0, m, total});
      }
    }
    for (int64_t r = 0; r < m; ++r) y.put(m0 + r, row, total + r * 16, rows);
  }
}

// total [m, filled up; kItemRows] = m rows of x, expert e's from m0 on, times kItemRows rows of w
// from n0 on. Those behind them are fetched meanwhile.
void multiply(const Problem& p, const WeightView& w, int64_t e, int64_t m0, int64_t m, int64_t n0,
              Int8Panel* panels, float* total) {
  const uint8_t* next = rows_from(w, n0) + kItemRows * row_bytes(w.dtype, w.cols);
  const int64_t columns = panel_columns();
  for (int64_t k0 = 0; k0 < w.cols; k0 += columns) {
    const int64_t k = std::min(columns, w.cols - k0);
    for (int64_t i = 0; i < kInt8Panels; ++i)
      unpack_panel(p.kernels, w, n0 + 16 * i, k0, k, panels + i);
    // of the rows that follow, the share that these columns are of all
    const int64_t next_bytes =
        std::clamp<int64_t>(w.rows - n0 - kItemRows, 0, kItemRows) * row_bytes(w.dtype, k);
    p.kernels.multiply(
        {panels, p.bundle(e, m0), k0, m, k / kRoundedBlock, total, next, next_bytes});
    next += next_bytes;
  }
}

void multiply_and_put(const Problem& p, const WeightView& w, int64_t e, int64_t m0, int64_t m,
                      int64_t n0, int worker, const Output& y) {
  ArenaScope scope(p.ctx.worker_scratch(worker));
  auto* const panels = scope.array<Int8Panel>(kInt8Panels);
  float* const total = scope.array<float>(p.filled_up(m) * kItemRows);
  multiply(p, w, e, m0, m, n0, panels, total);
  const int64_t count = std::min(kItemRows, w.rows - n0);
  constexpr int64_t kAhead = 16;
  for (int64_t r = 0; r < m; ++r) {
    if (r + kAhead < m) {
      const float* const ahead = y.at(m0 + r + kAhead, n0);
      __builtin_prefetch(ahead, 1);
      __builtin_prefetch(ahead + count - 1, 1);
    }
    y.put(m0 + r, n0, total + r * kItemRows, count);
  }
}

bool is_few(const Problem& p, const WeightView& w, int64_t rows) {
  // On Intel's AVX-512 unpacking anew for each bundle did not pay; others there have no more.
  const int64_t most = is_intel() ? kInt8MostBundle : kInt8MostFew;
  return rows <= std::min(most, reader_of(p.kernels, w).few_rows);
}

// The first bytes of w from row n on, before they are read. The processor finds out by itself what
// follows, but only after a while.
void fetch_first(const WeightView& w, int64_t n) {
  const uint8_t* const from = rows_from(w, n);
  const int64_t stride = row_bytes(w.dtype, w.cols),
                most = w.tiles != nullptr ? kFetchFirst : 16 * stride,
                bytes = std::min((w.rows - n) * stride, most);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

// body(part, e, m0, m, n0, worker, follows) over all outputs: rows [m0, m0 + m) of expert e and the
// width(e) rows of part.experts[e] from n0 on, as many as it has.
template <class Width, class Body>
void for_items(const Problem& p, std::span<const LinearPart> parts, const Width& width,
               const Body& body) {
  const int64_t experts = p.experts(), count = experts * std::ssize(parts);
  ArenaScope scope(p.ctx.scratch());
  // Items of expert e of part i are those from first[i experts + e] on.
  int64_t* const first = scope.array<int64_t>(count + 1);
  first[0] = 0;
  int64_t work = 0;
  for (int64_t group = 0; group < count; ++group) {
    const WeightView& shape = parts[static_cast<size_t>(group / experts)].experts[0];
    const int64_t e = group % experts, rows = p.rows(e);
    work += rows * shape.rows * shape.cols;
    first[group + 1] = first[group] + ceil_div(rows, kBlockRows) * ceil_div(shape.rows, width(e));
  }
  const auto run_item = [&](int64_t item, int worker, bool follows) {
    const int64_t group = std::upper_bound(first, first + count, item) - first - 1;
    const LinearPart& part = parts[static_cast<size_t>(group / experts)];
    const int64_t e = group % experts, widths = ceil_div(part.experts[0].rows, width(e));
    const int64_t row = (item - first[group]) / widths * kBlockRows,
                  n0 = (item - first[group]) % widths * width(e);
    body(part, e, row, std::min(kBlockRows, p.rows(e) - row), n0, worker,
         follows && item != first[group]);
  };
  if (work > kWorthWaking) {
    p.ctx.pool().run_in_stretches(first[count], run_item);
  } else {
    for (int64_t item = 0; item < first[count]; ++item) run_item(item, 0, item > 0);
  }
}

// body(e, m, rows) for the bundles of all experts: rows [m, m + rows) of expert e.
template <class Body>
void for_bundles(const Problem& p, const Body& body) {
  ArenaScope scope(p.ctx.scratch());
  int64_t* const first = scope.array<int64_t>(p.experts() + 1);
  first[0] = 0;
  for (int64_t e = 0; e < p.experts(); ++e)
    first[e + 1] = first[e] + ceil_div(p.rows(e), p.kernels.bundle);
  const auto run = [&](int64_t item, int) {
    const int64_t e = std::upper_bound(first, first + p.experts(), item) - first - 1,
                  m = (item - first[e]) * p.kernels.bundle;
    body(e, m, std::min(p.kernels.bundle, p.rows(e) - m));
  };
  if (p.offsets.back() * p.x.cols <= kItemElements) {  // sooner done than handed out
    for (int64_t i = 0; i < first[p.experts()]; ++i) run(i, 0);
  } else {
    p.ctx.pool().run(first[p.experts()], run);
  }
}

// x of rows from m of expert e on is at from(e, m), `stride` apart.
template <class From>
void round_rows(const Problem& p, int64_t stride, const From& from) {
  const auto round = FATHOM_VNNI_CALL(p.ctx.isa(), int8_round);
  for_bundles(p, [&](int64_t e, int64_t m, int64_t rows) {
    round(from(e, m), stride, rows, p.x.cols, p.kernels.zero, p.width(e, m), p.bundle(e, m));
  });
}

void round_grouped(const Problem& p, ConstRows x) {
  round_rows(p, x.stride, [&](int64_t e, int64_t m) { return x.row(p.begin(e) + m); });
}

// One of rows that alternate.
struct Lane {
  const std::byte* data;
  int64_t width;
};
// Values of 4 bytes, `bytes` of each lane, to one bundle.
void bundle_lanes(const Lane* lanes, int64_t rows, int64_t bytes, int64_t width, std::byte* to) {
  if (width == 1 && lanes[0].width == 1) {
    std::memcpy(to, lanes[0].data, static_cast<size_t>(bytes));
    return;
  }
  for (int64_t i = 0; i < bytes; i += 4) {
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(to + i * width + 4 * r, lanes[r].data + i * lanes[r].width, 4);
  }
}

// Each token's x once, then copied to where its experts want it.
void round_and_scatter(const Problem& p, DType dtype, ConstRows x,
                       std::span<const int64_t> position) {
  ArenaScope scope(p.ctx.scratch());
  const int64_t all[] = {0, x.rows};
  const Problem tokens(p.ctx, scope, dtype, x.cols, all);
  round_grouped(tokens, x);
  const auto slots = std::ssize(position);
  int64_t* const token_of = scope.array<int64_t>(slots);
  for (int64_t i = 0; i < slots; ++i)
    token_of[position[static_cast<size_t>(i)]] = i / (slots / x.rows);
  for_bundles(p, [&](int64_t e, int64_t m, int64_t rows) {
    const Int8Rows to = p.bundle(e, m);
    Problem::Place from[kInt8MostBundle];
    for (int64_t r = 0; r < rows; ++r) from[r] = tokens.place(0, token_of[p.begin(e) + m + r], 0);
    const auto copy = [&](auto array, int64_t bytes) {
      Lane lanes[kInt8MostBundle];
      for (int64_t r = 0; r < rows; ++r)
        lanes[r] = {reinterpret_cast<const std::byte*>(from[r].row.*array), from[r].width};
      bundle_lanes(lanes, rows, bytes, p.width(e, m), reinterpret_cast<std::byte*>(to.*array));
    };
    copy(&Int8Rows::codes, x.cols);
    copy(&Int8Rows::scale, x.cols / kRoundedBlock * 4);
    copy(&Int8Rows::start, x.cols / p.kernels.run * 4);
    copy(&Int8Rows::sum, x.cols / p.kernels.run * 4);
  });
}

// Outputs of heads begin at the same rows of y, y_head elements apart; else (0) groups follow each
// other.
void multiply_parts(const Problem& p, std::span<const LinearPart> parts, int64_t y_head) {
  for_items(
      p, parts, [](int64_t) { return kItemRows; },
      [&](const LinearPart& part, int64_t e, int64_t m0, int64_t m, int64_t n0, int worker,
          bool follows) {
        const WeightView& w = part.experts[static_cast<size_t>(e)];
        const Output y{y_head != 0 ? part.y.data + e * y_head : part.y.row(p.begin(e)),
                       part.y.stride, 0, 0, part.bias};
        if (!follows) fetch_first(w, n0);
        if (is_few(p, w, p.rows(e))) {
          multiply_few(p, w, e, m0, m, n0, kItemRows, y);
        } else {
          multiply_and_put(p, w, e, m0, m, n0, worker, y);
        }
      });
}

}  // namespace

bool has_int8_product(DType dtype) {
  return kernels_of(Isa::kPortable, dtype).make_tile != nullptr;
}

int64_t bytes_of_tiles(const WeightView& w) {
  if (!has_int8_product(w.dtype)) return 0;
  return ceil_div(ceil_div(w.rows, 16) * 16 * row_bytes(w.dtype, w.cols), 64) * 64;
}

void make_tiles(Context& ctx, std::span<const WeightView> weights, std::byte* out) {
  if (weights.empty()) return;
  const WeightView& shape = weights[0];
  for (const WeightView& w : weights) {
    FATHOM_CHECK(w.dtype == shape.dtype && w.rows == shape.rows && w.cols == shape.cols, w.rows,
                 w.cols);
  }
  const Int8Kernels kernels = kernels_of(ctx.isa(), shape.dtype);
  const int64_t stride = row_bytes(shape.dtype, shape.cols), tiles = ceil_div(shape.rows, 16),
                bytes = bytes_of_tiles(shape);
  ctx.pool().run_in_stretches(std::ssize(weights) * tiles, [&](int64_t item, int, bool) {
    const WeightView& w = weights[static_cast<size_t>(item / tiles)];
    const int64_t row = 16 * (item % tiles);
    kernels.make_tile(reinterpret_cast<const uint8_t*>(w.row(row)), stride,
                      std::min<int64_t>(16, w.rows - row), w.cols,
                      reinterpret_cast<uint8_t*>(out + item / tiles * bytes + row * stride));
  });
}

void int8_linears(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                  std::span<const LinearPart> parts) {
  ArenaScope scope(ctx.scratch());
  const Problem p(ctx, scope, parts[0].experts[0].dtype, x.cols, offsets);
  round_grouped(p, x);
  multiply_parts(p, parts, 0);
}

void int8_head_linears(Context& ctx, ConstRows x, int64_t x_head, std::span<const WeightView> heads,
                       Rows y, int64_t y_head) {
  ArenaScope scope(ctx.scratch());
  const auto count = std::ssize(heads);
  int64_t* const offsets = scope.array<int64_t>(count + 1);
  for (int64_t i = 0; i <= count; ++i) offsets[i] = i * x.rows;
  const Problem p(ctx, scope, heads[0].dtype, heads[0].cols,
                  {offsets, static_cast<size_t>(count + 1)});
  round_rows(p, x.stride, [&](int64_t head, int64_t m) { return x.row(m) + head * x_head; });
  const LinearPart part{heads, nullptr, y};
  multiply_parts(p, {&part, 1}, y_head);
}

void int8_swiglu_mlp(Context& ctx, ConstRows x, std::span<const int64_t> position,
                     std::span<const int64_t> offsets, const SwigluExperts& w, Rows y) {
  ArenaScope scope(ctx.scratch());
  const Problem p(ctx, scope, w.gate[0].dtype, x.cols, offsets);
  const Problem act(ctx, scope, w.down[0].dtype, w.down[0].cols, offsets);
  if (position.empty()) {
    round_grouped(p, x);
  } else {
    round_and_scatter(p, w.gate[0].dtype, x, position);
  }

  // 32 columns of act are a block of it: they are rounded as soon as they are there, and never
  // exist otherwise. An item's rows begin with a bundle.
  const auto round_act = FATHOM_VNNI_CALL(ctx.isa(), int8_round_swiglu);
  const LinearPart gates{w.gate, nullptr, {}};
  const auto few = [&](int64_t e) {
    const auto i = static_cast<size_t>(e);
    return is_few(p, w.gate[i], p.rows(e)) && is_few(p, w.up[i], p.rows(e));
  };
  // Few rows of x follow one stream of w for a while before the other's turn comes.
  const auto width = [&](int64_t e) {
    const int64_t rows = std::max<int64_t>(1, p.rows(e));
    return few(e) ? std::clamp(kNearOutputs / rows / kItemRows, int64_t{1}, kMostItems) * kItemRows
                  : kItemRows;
  };
  for_items(p, {&gates, 1}, width,
            [&](const LinearPart&, int64_t e, int64_t m0, int64_t m, int64_t n0, int worker,
                bool follows) {
              const WeightView &gate = w.gate[static_cast<size_t>(e)],
                               &up = w.up[static_cast<size_t>(e)];
              const int64_t stride = width(e), n = std::min(stride, gate.rows - n0);
              ArenaScope item_scope(ctx.worker_scratch(worker));
              auto* const panels = item_scope.array<Int8Panel>(few(e) ? 0 : kInt8Panels);
              float* const gate_y = item_scope.array<float>(p.filled_up(m) * stride);
              float* const up_y = item_scope.array<float>(p.filled_up(m) * stride);
              if (!follows) fetch_first(gate, n0);
              if (few(e)) {
                fetch_first(up, n0);
                multiply_few(p, gate, e, m0, m, n0, n, {gate_y, stride, m0, n0});
                if (n0 + n < gate.rows) fetch_first(gate, n0 + n);
                multiply_few(p, up, e, m0, m, n0, n, {up_y, stride, m0, n0});
              } else {
                multiply(p, gate, e, m0, m, n0, panels, gate_y);
                multiply(p, up, e, m0, m, n0, panels, up_y);
              }
              for (int64_t r = 0; r < m; r += act.kernels.bundle) {
                const auto [lanes, to] = act.place(e, m0 + r, n0);
                round_act(gate_y + r * stride, up_y + r * stride, stride,
                          std::min(act.kernels.bundle, m - r), n, act.kernels.zero, lanes, to);
              }
            });

  const LinearPart down{w.down, nullptr, y};
  multiply_parts(act, {&down, 1}, 0);
}

}  // namespace fathom
