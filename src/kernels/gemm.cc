// Linear layers: operands, blocks and threads. GGUF blocks go to gemm_int8.cc, unless x must stay
// exact. Few rows of x meet w row by row: F32, BF16, F16 (not in the portable target) and, the
// fewest of them, FP8 where they lie, others widened eight rows at a time. More rows pay for
// packing: x once, w panel by panel, each panel for up to kBlockRows rows.
#include "kernels/gemm.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "kernels/dispatch.h"
#include "kernels/gemm-inl.h"
#include "kernels/gemm_int8.h"
#include "kernels/quantize.h"
#include "kernels/row_blocks.h"

namespace fathom {

FATHOM_SIMD_DECLARE(void gemm_f32(const GemmBlock& b))
FATHOM_SIMD_DECLARE(void gemm_split_bf16(const GemmBlock& b))
FATHOM_SIMD_DECLARE(void gemm_split_f8(const GemmBlock& b))
FATHOM_SIMD_DECLARE(void packed_f32(const PackedBlock& b))
FATHOM_SIMD_DECLARE(void packed_split_bf16(const PackedBlock& b))
FATHOM_SIMD_DECLARE(void pack_lanes(const float* in, int64_t in_stride, int64_t rows, int64_t steps,
                                    int64_t width, float* out, int64_t lane, int64_t row_length))
FATHOM_SIMD_DECLARE(void pack_columns_f32(const ColumnPanel& p, const float* in);
                    void pack_columns_split_bf16(const ColumnPanel& p, const uint16_t* in);
                    void pack_columns_native_bf16(const ColumnPanel& p, const uint16_t* in))
FATHOM_SIMD_DECLARE(void split_bf16(const uint16_t* in, int64_t n, float* out))
FATHOM_SIMD_DECLARE(void f8_to_bf16(const uint8_t* in, int64_t n, uint16_t* out))
FATHOM_SIMD_DECLARE(void round_to_bf16(const float* in, int64_t n, uint16_t* out))
#if defined(__x86_64__)
namespace avx2 {
void gemm_f16(const GemmBlock& b);
}  // namespace avx2
namespace avx512 {
void gemm_f16(const GemmBlock& b);
void gemm_native_bf16(const GemmBlock& b);
void gemm_native_f8(const GemmBlock& b);
void gemm_split_f8_by_lookup(const GemmBlock& b);
void f8_to_bf16_by_lookup(const uint8_t* in, int64_t n, uint16_t* out);
void packed_native_bf16(const PackedBlock& b);
void pack_rounded(const float* in, int64_t in_stride, int64_t rows, int64_t steps, int64_t width,
                  float* out, int64_t lane, int64_t row_length);
}  // namespace avx512
#endif

bool rounds_x_to_bf16(DType dtype) { return dtype == DType::kBF16 || dtype == DType::kF8E4M3; }

bool is_intel() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

bool looks_up_f8(Isa isa) {
#if defined(__x86_64__)
  return isa == Isa::kAvx512 && __builtin_cpu_supports("avx512vbmi");
#else
  static_cast<void>(isa);
  return false;
#endif
}

bool native_bf16(Isa isa) {
#if defined(__x86_64__)
  // Intel's cores take four times as long for vdpbf16ps as for an FMA on two halves of its work.
  return looks_up_f8(isa) && has_bf16_dot() && __builtin_cpu_is("amd");
#else
  static_cast<void>(isa);
  return false;
#endif
}

namespace {

static_assert(avx512::kPackedTile.rows <= kMostPackedRows);

// Rows of x for which codes of FP8 are widened anew, kTileRows at a time, where that is two lookups
// for 64 codes (measured); elsewhere kTileRows.
constexpr int64_t kFewCodes = 24;
// Bytes ahead in each row of w at which Intel's cores take it on into the first cache: one row of x
// and BF16 74 -> 91 % of what Emerald Rapids reads. Zen 4 follows streams by itself.
constexpr int64_t kNear = 512;
// Items of each thread where weights pass by once (few rows of x): long ones, in which the next
// weights are fetched ahead, but enough to balance.
constexpr int64_t kLongItems = 4;
// rows of x that share one packing of a panel: it costs as much as about nine rows, and threads
// without an item cost more than nine of 96
constexpr int64_t kBlockRows = 512, kLeastBlockRows = 96;
// of w, or of a part of its steps: stays in L2 while x passes by
constexpr int64_t kPanelBytes = 256 << 10;
// of one item: x, from further away, is read once for all
constexpr int64_t kPanels = 2;
// columns brought into elements at a time; a multiple of every block of a format
constexpr int64_t kChunk = 256;
// What the operands are brought into, and by which tiles they are multiplied.
enum class Form { kF32, kSplitBf16, kNativeBf16 };

Form choose_form(Isa isa, DType dtype, Precision precision) {
  if (!rounds_x_to_bf16(dtype) || precision == Precision::kF32) return Form::kF32;
  return native_bf16(isa) ? Form::kNativeBf16 : Form::kSplitBf16;
}

// Steps of 16 elements that k columns take.
int64_t steps_of(Form form, int64_t k) {
  return form == Form::kF32         ? ceil_div(k, 16)
         : form == Form::kSplitBf16 ? 2 * ceil_div(k, 32)
                                    : ceil_div(k, 32);
}

// Up to how many rows of x meet w [N, K] row by row. The columns of a turned w are packed in any
// case. Intel's cores have more use for packed tiles, which read half as much for each FMA
// (measured on Emerald Rapids, in each type's own precision), if panels are enough for all threads.
int64_t choose_few_rows(Context& ctx, DType dtype, bool turned, int64_t n, int64_t experts) {
  if (turned) return 0;
  const bool packs_sooner = ctx.isa() == Isa::kAvx512 && is_intel();
  const int64_t panels = ceil_div(n, kPanels * FATHOM_SIMD_CALL(ctx.isa(), kPackedTile).columns);
  if (!packs_sooner || panels * experts < ctx.pool().threads() * kLongItems)
    return FATHOM_SIMD_CALL(ctx.isa(), kFewRows);
  return dtype == DType::kF32 ? 16 : dtype == DType::kBF16 ? 48 : 32;
}

struct Problem {
  Context& ctx;
  Form form;
  bool turned;   // w is [K, N]
  int64_t cols;  // K
  PackedTile tile;
  ConstRows x;
  // One for the rows of each tile: packed. An expert's few rows lie one behind the other in theirs,
  // in BF16's forms; in F32 they stay where they are.
  float* units;
  int64_t unit_size;
  // elements of one lane of a tile: an odd number of steps, so that lanes fall into different sets
  // of a cache
  int64_t lane;
  const float* bias;
  Rows y;

  int64_t few_rows;  // of an expert
  bool few(int64_t rows) const { return rows <= few_rows; }
};

// Columns [k0, k0 + k) of a row of x or w as elements, zeros to the end of the last step.
void to_elements(const Problem& p, const float* x, int64_t k, float* out) {
  const Isa isa = p.ctx.isa();
  bf16 rounded[kChunk];
  switch (p.form) {
    case Form::kF32:
      std::memcpy(out, x, static_cast<size_t>(k) * 4);
      return std::fill(out + k, out + steps_of(p.form, k) * 16, 0.0f);
    case Form::kSplitBf16:
      FATHOM_SIMD_CALL(isa, round_to_bf16)(x, k, rounded);
      return FATHOM_SIMD_CALL(isa, split_bf16)(rounded, k, out);
    case Form::kNativeBf16:
      auto* const pairs = reinterpret_cast<bf16*>(out);
      FATHOM_SIMD_CALL(isa, round_to_bf16)(x, k, pairs);
      return std::fill(pairs + k, pairs + steps_of(p.form, k) * 32, bf16{});
  }
}

// Codes of FP8 without their scales, filled up with zeros to a multiple of 32.
void f8_to_bf16(Isa isa, const std::byte* codes, int64_t k, bf16* out) {
  const auto* const in = reinterpret_cast<const uint8_t*>(codes);
#if defined(__x86_64__)
  if (looks_up_f8(isa)) return avx512::f8_to_bf16_by_lookup(in, k, out);
#endif
  FATHOM_SIMD_CALL(isa, f8_to_bf16)(in, k, out);
}

// FP8 in the forms of BF16 without its scales.
void to_elements(const Problem& p, const WeightView& w, int64_t r, int64_t k0, int64_t k,
                 float* out) {
  const Isa isa = p.ctx.isa();
  if (p.form == Form::kF32) {
    dequantize_weight(isa, w, r, k0, k, out);
    return std::fill(out + k, out + steps_of(p.form, k) * 16, 0.0f);
  }
  const bool codes = w.dtype == DType::kF8E4M3;
  const std::byte* const stored = w.row(r) + row_bytes(w.dtype, k0);
  if (p.form == Form::kNativeBf16) {
    auto* const pairs = reinterpret_cast<bf16*>(out);
    if (codes) return f8_to_bf16(isa, stored, k, pairs);
    std::memcpy(pairs, stored, static_cast<size_t>(k) * 2);
    return std::fill(pairs + k, pairs + steps_of(p.form, k) * 32, bf16{});
  }
  bf16 widened[kChunk];
  if (codes) f8_to_bf16(isa, stored, k, widened);
  FATHOM_SIMD_CALL(isa, split_bf16)
  (codes ? widened : reinterpret_cast<const bf16*>(stored), k, out);
}

// Rows that are packed from where they lie, whole steps of them: elements, or values that become
// pairs on the way. `stride` elements or values apart, none if at is null.
struct Stored {
  const float* at = nullptr;
  int64_t stride = 0;
  bool round = false;
};

using PackRows = void (*)(const float*, int64_t, int64_t, int64_t, int64_t, float*, int64_t,
                          int64_t);

// Only AVX-512 has pairs.
PackRows pack_rounded_rows() {
#if defined(__x86_64__)
  return avx512::pack_rounded;
#else
  return nullptr;
#endif
}

// Columns [k0, k0 + k) of `rows` <= width rows, packed (gemm-inl.h); elements(row, column, count,
// out) yields them, but for whole steps of `stored` rows, which are read where they lie.
template <class Elements>
void pack(const Problem& p, Stored stored, int64_t rows, int64_t k0, int64_t k, int64_t width,
          float* out, int64_t lane, int worker, Elements elements) {
  ArenaScope scope(p.ctx.worker_scratch(worker));
  float* const chunk = scope.array<float>(16 * kChunk);
  const int64_t values = p.form == Form::kNativeBf16 ? 2 : 1;  // in an element
  for (int64_t c = 0; c < k; c += kChunk) {
    const int64_t count = std::min(kChunk, k - c);
    for (int64_t r0 = 0; r0 < width; r0 += 16) {
      const int64_t some = std::clamp<int64_t>(rows - r0, 0, 16);
      const bool in_place = stored.at != nullptr && count % (16 * values) == 0;
      for (int64_t r = 0; !in_place && r < some; ++r)
        elements(r0 + r, k0 + c, count, chunk + r * kChunk);
      const float* const from =
          in_place ? stored.at + r0 * stored.stride + (k0 + c) / (stored.round ? 1 : values)
                   : chunk;
      const auto pack_rows = in_place && stored.round ? pack_rounded_rows()
                                                      : FATHOM_SIMD_CALL(p.ctx.isa(), pack_lanes);
      pack_rows(from, in_place ? stored.stride : kChunk, some, steps_of(p.form, count),
                std::min<int64_t>(16, width - r0), out + steps_of(p.form, c) * width + r0, lane,
                width);
    }
  }
}

void pack_unit(const Problem& p, int64_t row, int64_t rows, float* out, int worker) {
  Stored stored;
  if (p.form != Form::kSplitBf16) stored = {p.x.row(row), p.x.stride, p.form == Form::kNativeBf16};
  pack(p, stored, rows, 0, p.cols, p.tile.rows, out, p.lane, worker,
       [&](int64_t r, int64_t k0, int64_t k, float* to) {
         to_elements(p, p.x.row(row + r) + k0, k, to);
       });
}

// Few rows in a form that x does not have: row by row, from out on.
void convert_rows(const Problem& p, int64_t row, int64_t rows, float* out) {
  for (int64_t r = 0; r < rows; ++r, out += steps_of(p.form, p.cols) * 16) {
    for (int64_t k = 0; k < p.cols; k += kChunk) {
      to_elements(p, p.x.row(row + r) + k, std::min(kChunk, p.cols - k),
                  out + steps_of(p.form, k) * 16);
    }
  }
}

// Columns [n, n + columns) of rows [k0, k0 + k) of a turned w.
void pack_columns(const Problem& p, const WeightView& w, int64_t k0, int64_t k, int64_t n,
                  int64_t columns, float* out, int64_t lane) {
  const ColumnPanel panel{w.cols, k, columns, out, lane};
  const Isa isa = p.ctx.isa();
  if (p.form == Form::kF32) {
    FATHOM_SIMD_CALL(isa, pack_columns_f32)(panel, reinterpret_cast<const float*>(w.row(k0)) + n);
    return;
  }
  const auto* const in = reinterpret_cast<const bf16*>(w.row(k0)) + n;
  if (p.form == Form::kSplitBf16) {
    FATHOM_SIMD_CALL(isa, pack_columns_split_bf16)(panel, in);
  } else {
    FATHOM_SIMD_CALL(isa, pack_columns_native_bf16)(panel, in);
  }
}

// w of the block is stored as dtype; F32 means widened, too.
void run_block(Isa isa, Form form, DType dtype, const GemmBlock& b) {
  const bool codes = dtype == DType::kF8E4M3;
#if defined(__x86_64__)
  if (dtype == DType::kF16) return isa == Isa::kAvx512 ? avx512::gemm_f16(b) : avx2::gemm_f16(b);
#endif
  if (form == Form::kF32) return FATHOM_SIMD_CALL(isa, gemm_f32)(b);
  if (form == Form::kSplitBf16 && !codes) return FATHOM_SIMD_CALL(isa, gemm_split_bf16)(b);
#if defined(__x86_64__)
  if (form == Form::kSplitBf16 && looks_up_f8(isa)) return avx512::gemm_split_f8_by_lookup(b);
#endif
  if (form == Form::kSplitBf16) return FATHOM_SIMD_CALL(isa, gemm_split_f8)(b);
#if defined(__x86_64__)
  codes ? avx512::gemm_native_f8(b) : avx512::gemm_native_bf16(b);
#endif
}

// Whether m rows read w where it lies.
bool reads_in_place(Isa isa, Form form, DType dtype, int64_t m) {
  if (form == Form::kF32)
    return dtype == DType::kF32 || (dtype == DType::kF16 && isa != Isa::kPortable);
  return dtype == DType::kBF16 || m <= (looks_up_f8(isa) ? kFewCodes : kTileRows);
}

// Of row r and those that share them.
const float* scales_of(const WeightView& w, int64_t r) {
  return w.block_scales + r / kScaleColumns * w.scale_cols;
}

void run_block(Isa isa, Form form, const PackedBlock& b) {
  if (form == Form::kF32) return FATHOM_SIMD_CALL(isa, packed_f32)(b);
  if (form == Form::kSplitBf16) return FATHOM_SIMD_CALL(isa, packed_split_bf16)(b);
#if defined(__x86_64__)
  avx512::packed_native_bf16(b);
#endif
}

// Rows [m0, m0 + m), few of them, times rows [n0, n0 + n) of w.
void multiply_few(const Problem& p, const WeightView& w, const float* unit, int64_t m0, int64_t m,
                  int64_t n0, int64_t n, int worker) {
  const Isa isa = p.ctx.isa();
  const bool in_place = reads_in_place(isa, p.form, w.dtype, m);
  const bool codes = w.dtype == DType::kF8E4M3 && p.form != Form::kF32;
  ArenaScope scope(p.ctx.worker_scratch(worker));
  GemmBlock b;
  b.m = m;
  b.k = p.cols;
  b.x = p.form == Form::kF32 ? p.x.row(m0) : unit;
  b.x_stride = p.form == Form::kF32
                   ? p.x.stride
                   : steps_of(p.form, p.cols) * (p.form == Form::kNativeBf16 ? 32 : 16);
  b.y_stride = p.y.stride;
  // f32, or bf16 of codes; rows fall into different sets of L1
  const int64_t panel_stride = ceil_div(w.cols, 32) * 32 + 32;
  float* const panel = scope.array<float>(in_place ? 0 : kPanelRows * panel_stride);
  const int64_t ahead = in_place ? kPanelRows * row_bytes(w.dtype, w.cols) : 0;
  if (in_place && is_intel()) b.fetch.near = kNear;
  const std::byte* const first = w.row(n0);
  const int64_t first_bytes = std::min(ahead, n * row_bytes(w.dtype, w.cols));
  for (int64_t i = 0; i < first_bytes; i += 64) __builtin_prefetch(first + i, 0, 2);
  for (int64_t r0 = n0; r0 < n0 + n; r0 += kPanelRows) {
    b.n = std::min(kPanelRows, n0 + n - r0);
    b.fetch.ahead = r0 + 2 * kPanelRows <= n0 + n ? ahead : 0;
    b.w = in_place ? static_cast<const void*>(w.row(r0)) : panel;
    b.w_stride = in_place ? w.cols : panel_stride;
    b.scales = codes ? scales_of(w, r0) : nullptr;
    for (int64_t r = 0; !in_place && r < b.n; ++r) {
      if (codes) {
        f8_to_bf16(isa, w.row(r0 + r), w.cols, reinterpret_cast<bf16*>(panel) + r * panel_stride);
      } else {
        dequantize_weight(isa, w, r0 + r, 0, w.cols, panel + r * panel_stride);
      }
    }
    b.bias = p.bias != nullptr ? p.bias + r0 : nullptr;
    b.y = p.y.row(m0) + r0;
    run_block(isa, p.form, in_place ? w.dtype : codes ? DType::kBF16 : DType::kF32, b);
  }
}

// The m rows from m0 on, whose tiles begin at `units`, times the panels of rows [n0, n0 + n) of w.
void multiply_packed(const Problem& p, const WeightView& w, const float* units, int64_t m0,
                     int64_t m, int64_t n0, int64_t n, int worker) {
  // steps; a power of two, so that parts of k are whole chunks
  const int64_t most = kPanelBytes / (p.tile.columns * 64);
  FATHOM_CHECK(most * 16 % kChunk == 0, most);
  const bool whole = steps_of(p.form, p.cols) <= most + most / 4;
  const int64_t block_k = whole ? p.cols : most * (p.form == Form::kNativeBf16 ? 32 : 16);
  ArenaScope scope(p.ctx.worker_scratch(worker));
  PackedBlock b;
  b.x_tile = p.unit_size;
  b.x_lane = p.lane;
  b.w_lane = (steps_of(p.form, block_k) | 1) * p.tile.columns;
  b.w_panel = 16 * b.w_lane;
  const int64_t panels = ceil_div(n, p.tile.columns);
  b.m = m;
  b.n = n;
  b.partial = whole ? nullptr
                    : scope.array<float>(ceil_div(m, p.tile.rows) * panels * 16 * p.tile.rows *
                                         p.tile.columns);
  b.bias = p.bias != nullptr ? p.bias + n0 : nullptr;
  b.y = p.y.row(m0) + n0;
  b.y_stride = p.y.stride;
  // one row of scales for all panels, and whole runs in a part of k
  static_assert(kScaleColumns % (kPanels * avx512::kPackedTile.columns) == 0 &&
                kChunk % kScaleColumns == 0);
  const bool scaled = w.dtype == DType::kF8E4M3 && p.form != Form::kF32;
  b.run_steps = steps_of(p.form, kScaleColumns);
  float* const packed = scope.array<float>(panels * b.w_panel);
  b.w = packed;
  for (int64_t k0 = 0; k0 < p.cols; k0 += block_k) {
    const int64_t k = std::min(block_k, p.cols - k0);
    for (int64_t i = 0; i < panels; ++i) {
      const int64_t row = n0 + i * p.tile.columns;
      float* const panel = packed + i * b.w_panel;
      if (p.turned) {
        pack_columns(p, w, k0, k, row, std::min(p.tile.columns, n0 + n - row), panel, b.w_lane);
        continue;
      }
      Stored stored;
      if (w.dtype == DType::kF32) stored = {reinterpret_cast<const float*>(w.row(row)), w.cols};
      // pairs; the targets that have this form load from any address
      if (w.dtype == DType::kBF16 && p.form == Form::kNativeBf16 && w.cols % 2 == 0)
        stored = {reinterpret_cast<const float*>(w.row(row)), w.cols / 2};
      pack(p, stored, std::min(p.tile.columns, n0 + n - row), k0, k, p.tile.columns, panel,
           b.w_lane, worker, [&](int64_t r, int64_t c, int64_t count, float* to) {
             to_elements(p, w, row + r, c, count, to);
           });
    }
    if (scaled) b.scales = scales_of(w, n0) + k0 / kScaleColumns;
    b.x = units + steps_of(p.form, k0) * p.tile.rows;
    b.steps = steps_of(p.form, k);
    b.first = k0 == 0;
    b.last = k0 + k == p.cols;
    run_block(p.ctx.isa(), p.form, b);
  }
}

// How the rows of one expert are cut.
struct Plan {
  int64_t units, blocks, block_rows, panels, panel_rows;
  int64_t items() const { return blocks * panels; }
};

// groups: experts that have rows.
Plan plan_rows(const Problem& p, int64_t rows, int64_t groups) {
  if (rows == 0) return {0, 0, 0, 0, 0};
  if (p.few(rows)) {
    const int64_t items = p.ctx.pool().threads() * kLongItems;
    const int64_t panel_rows = ceil_div(ceil_div(p.y.cols, items), kPanelRows) * kPanelRows;
    return {ceil_div(rows, p.tile.rows), 1, rows, ceil_div(p.y.cols, panel_rows), panel_rows};
  }
  // A narrow y (a router's) has few panels: every thread gets rows of its own, if they are enough
  // to pay for packing w once more.
  const int64_t panels = ceil_div(p.y.cols, kPanels * p.tile.columns),
                shares = std::min(ceil_div(2 * p.ctx.pool().threads(), panels * groups),
                                  rows / kLeastBlockRows),
                blocks = std::max(ceil_div(rows, kBlockRows), shares),
                block_rows = ceil_div(ceil_div(rows, blocks), p.tile.rows) * p.tile.rows;
  return {ceil_div(rows, p.tile.rows), ceil_div(rows, block_rows), block_rows, panels,
          kPanels * p.tile.columns};
}

void multiply_groups(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                     const LinearPart& part, bool turned) {
  const std::span<const WeightView> experts = part.experts;
  const Rows y = part.y;
  const WeightView& shape = experts[0];
  ArenaScope scope(ctx.scratch());
  const Form form = choose_form(ctx.isa(), shape.dtype, ctx.precision());
  const PackedTile tile = FATHOM_SIMD_CALL(ctx.isa(), kPackedTile);
  const int64_t lane = (steps_of(form, x.cols) | 1) * tile.rows;
  const int64_t few_rows = choose_few_rows(ctx, shape.dtype, turned, y.cols, std::ssize(experts));
  Problem p{ctx, form, turned, x.cols, tile, x, nullptr, 16 * lane, lane, part.bias, y, few_rows};

  // Units and items of expert e are those from first_unit[e] and first_item[e] on.
  const auto count = static_cast<int64_t>(experts.size());
  const auto rows_of = [&](int64_t e) {
    return offsets[static_cast<size_t>(e) + 1] - offsets[static_cast<size_t>(e)];
  };
  int64_t groups = 0;
  for (int64_t e = 0; e < count; ++e) groups += rows_of(e) > 0 ? 1 : 0;
  int64_t* const first_unit = scope.array<int64_t>(count + 1);
  int64_t* const first_item = scope.array<int64_t>(count + 1);
  first_unit[0] = first_item[0] = 0;
  for (int64_t e = 0; e < count; ++e) {
    const Plan plan = plan_rows(p, rows_of(e), groups);
    first_unit[e + 1] = first_unit[e] + (p.few(rows_of(e)) && form == Form::kF32 ? 0 : plan.units);
    first_item[e + 1] = first_item[e] + plan.items();
  }
  p.units = scope.array<float>(first_unit[count] * p.unit_size);
  const auto expert_of = [&](const int64_t* first, int64_t i) {
    return std::upper_bound(first, first + count, i) - first - 1;
  };
  const auto prepare = [&](int64_t unit, int worker) {
    const int64_t e = expert_of(first_unit, unit), begin = offsets[static_cast<size_t>(e)];
    const int64_t row = (unit - first_unit[e]) * tile.rows,
                  rows = std::min(tile.rows, rows_of(e) - row);
    if (p.few(rows_of(e))) {
      float* const first = p.units + first_unit[e] * p.unit_size;
      return convert_rows(p, begin + row, rows, first + row * steps_of(form, x.cols) * 16);
    }
    pack_unit(p, begin + row, rows, p.units + unit * p.unit_size, worker);
  };
  const auto run_item = [&](int64_t item, int worker) {
    const int64_t e = expert_of(first_item, item), begin = offsets[static_cast<size_t>(e)];
    const Plan plan = plan_rows(p, rows_of(e), groups);
    const int64_t row = (item - first_item[e]) / plan.panels * plan.block_rows;
    const int64_t n0 = (item - first_item[e]) % plan.panels * plan.panel_rows,
                  n = std::min(plan.panel_rows, y.cols - n0);
    const float* const units = p.units + first_unit[e] * p.unit_size;
    const WeightView& w = experts[static_cast<size_t>(e)];
    if (p.few(rows_of(e))) return multiply_few(p, w, units, begin, rows_of(e), n0, n, worker);
    multiply_packed(p, w, units + row / tile.rows * p.unit_size, begin + row,
                    std::min(plan.block_rows, rows_of(e) - row), n0, n, worker);
  };
  const int64_t work = x.rows * y.cols * x.cols;
  run_items(ctx, work, first_unit[count], prepare);
  run_items(ctx, work, first_item[count], run_item);
}

void check(ConstRows x, std::span<const int64_t> offsets, const LinearPart& part) {
  FATHOM_CHECK(offsets.size() == part.experts.size() + 1, offsets.size(), part.experts.size());
  if (part.experts.empty()) return;
  const WeightView& shape = part.experts[0];
  const Rows& y = part.y;
  FATHOM_CHECK(x.cols == shape.cols && y.rows == x.rows && y.cols == shape.rows, x.cols, shape.cols,
               y.cols, shape.rows);
  FATHOM_CHECK(dtype_info(shape.dtype).computable, dtype_name(shape.dtype));
}

void check_alike(std::span<const WeightView> experts) {
  for ([[maybe_unused]] const WeightView& w : experts) {
    FATHOM_DCHECK(
        w.dtype == experts[0].dtype && w.rows == experts[0].rows && w.cols == experts[0].cols,
        dtype_name(w.dtype), w.rows, w.cols);
  }
}

bool in_integers(const Context& ctx, const WeightView& w) {
  return has_int8_product(w.dtype) && ctx.precision() == Precision::kNative;
}

void fill_with_bias(const LinearPart& part) {
  for (int64_t r = 0; r < part.y.rows; ++r) {
    for (int64_t c = 0; c < part.y.cols; ++c)
      part.y.row(r)[c] = part.bias != nullptr ? part.bias[c] : 0.0f;
  }
}

}  // namespace

void linear(Context& ctx, ConstRows x, const WeightView& w, const float* bias, Rows y) {
  const int64_t offsets[] = {0, x.rows};
  const LinearPart part{{&w, 1}, bias, y};
  grouped_linears(ctx, x, offsets, {&part, 1});
}

void grouped_linear(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                    std::span<const WeightView> experts, Rows y) {
  const LinearPart part{experts, nullptr, y};
  grouped_linears(ctx, x, offsets, {&part, 1});
}

void grouped_linear_turned(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                           std::span<const WeightView> experts, Rows y) {
  FATHOM_CHECK(
      offsets.size() == experts.size() + 1 && offsets.front() == 0 && offsets.back() == x.rows,
      offsets.size(), experts.size(), x.rows);
  if (experts.empty()) return;
  const WeightView& shape = experts[0];
  FATHOM_CHECK(x.cols == shape.rows && y.rows == x.rows && y.cols == shape.cols, x.cols, shape.rows,
               y.cols, shape.cols);
  const LinearPart part{experts, nullptr, y};
  FATHOM_CHECK(shape.dtype == DType::kF32 ||
                   (shape.dtype == DType::kBF16 && ctx.precision() != Precision::kF32),
               dtype_name(shape.dtype));
  if (x.cols == 0) return fill_with_bias(part);
  if (x.rows > 0 && y.cols > 0) multiply_groups(ctx, x, offsets, part, true);
}

void grouped_linears(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                     std::span<const LinearPart> parts) {
  FATHOM_CHECK(!offsets.empty() && offsets.front() == 0 && offsets.back() == x.rows, x.rows);
  for (const LinearPart& part : parts) check(x, offsets, part);
  if (offsets.size() == 1) return;  // no experts
  if (x.rows == 0) return;
  for (size_t i = 0, end = 0; i < parts.size(); i = end) {
    end = i + 1;
    if (x.cols > 0 && in_integers(ctx, parts[i].experts[0])) {
      while (end < parts.size() && parts[end].experts[0].dtype == parts[i].experts[0].dtype) ++end;
      int8_linears(ctx, x, offsets, parts.subspan(i, end - i));
    } else if (x.cols == 0) {
      fill_with_bias(parts[i]);
    } else if (parts[i].y.cols > 0) {
      multiply_groups(ctx, x, offsets, parts[i], false);
    }
  }
}

void head_linears(Context& ctx, ConstRows x, int64_t x_head, std::span<const WeightView> heads,
                  Rows y, int64_t y_head) {
  const auto count = std::ssize(heads);
  if (count == 0 || x.rows == 0) return;
  const int64_t offsets[] = {0, x.rows};
  check(x, offsets, {heads.first(1), nullptr, y});
  check_alike(heads);
  if (x.cols > 0 && y.cols > 0 && in_integers(ctx, heads[0]))
    return int8_head_linears(ctx, x, x_head, heads, y, y_head);

  ArenaScope scope(ctx.scratch());
  int64_t* const groups = scope.array<int64_t>(count + 1);
  for (int64_t i = 0; i <= count; ++i) groups[i] = i * x.rows;
  const Rows in = scope.rows(count * x.rows, x.cols), out = scope.rows(count * x.rows, y.cols);
  const auto for_rows_of_heads = [&](auto copy) {
    run_items(ctx, count * x.rows * (x.cols + y.cols), count, [&](int64_t head, int) {
      for (int64_t t = 0; t < x.rows; ++t) copy(head, t, head * x.rows + t);
    });
  };
  for_rows_of_heads([&](int64_t head, int64_t t, int64_t row) {
    std::copy_n(x.row(t) + head * x_head, x.cols, in.row(row));
  });
  grouped_linear(ctx, in, {groups, static_cast<size_t>(count + 1)}, heads, out);
  for_rows_of_heads([&](int64_t head, int64_t t, int64_t row) {
    std::copy_n(out.row(row), y.cols, y.row(t) + head * y_head);
  });
}

bool has_swiglu_mlp(const Context& ctx, const SwigluExperts& w) {
  return !w.gate.empty() && w.gate[0].dtype == w.up[0].dtype && w.gate[0].cols > 0 &&
         w.gate[0].rows > 0 && in_integers(ctx, w.gate[0]) && in_integers(ctx, w.down[0]);
}

void swiglu_mlp(Context& ctx, ConstRows x, std::span<const int64_t> position,
                std::span<const int64_t> offsets, const SwigluExperts& w, Rows y) {
  FATHOM_CHECK(offsets.size() == w.gate.size() + 1 && w.up.size() == w.gate.size() &&
                   w.down.size() == w.gate.size(),
               offsets.size(), w.gate.size(), w.up.size(), w.down.size());
  for (const auto& experts : {w.gate, w.up, w.down}) check_alike(experts);
  const WeightView &gate = w.gate[0], &up = w.up[0], &down = w.down[0];
  FATHOM_CHECK(gate.cols == x.cols && up.cols == x.cols && up.rows == gate.rows &&
                   down.cols == gate.rows && down.rows == y.cols,
               x.cols, gate.cols, up.cols, gate.rows, up.rows, down.cols, down.rows, y.cols);
  const int64_t slots = position.empty() ? x.rows : std::ssize(position);
  FATHOM_CHECK(offsets.front() == 0 && offsets.back() == slots && y.rows == slots, slots, y.rows);
  if (slots == 0) return;
  FATHOM_CHECK(slots % x.rows == 0, slots, x.rows);
  int8_swiglu_mlp(ctx, x, position, offsets, w, y);
}

}  // namespace fathom
