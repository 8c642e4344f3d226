// The register tile of the linear layers for many rows of x. Lane after lane of the order of sums:
// all products of one lane are summed for a tile of outputs, whose registers lie along w's rows,
// and the 16 tiles of sums are joined as soon as the tree of reduce_add allows. So an output has
// the bits of gemm.simd.cc, and nothing is ever added across a register.
#include "kernels/gemm-inl.h"
#include "kernels/simd-inl.h"
#include "kernels/transpose-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

constexpr int64_t kRows = kPackedTile.rows, kColumns = kPackedTile.columns,
                  kParts = kColumns / kPartLanes;
static_assert(kParts == 2);

// Prefetch distances, in steps: x of a tile comes from L3, w from L2, what is packed from memory.
constexpr int64_t kAheadX = 64, kAheadW = 8, kAheadPacked = 16;

struct F32 {
  static Part dot(Part x, Part w, Part sum) { return fma_part(x, w, sum); }
};
#if defined(FATHOM_SIMD_IS_avx512)
struct NativeBf16 {
  static Part dot(Part x, Part w, Part sum) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(x), reinterpret_cast<__m512bh>(w));
  }
};
#endif

// The first R rows of a tile.
template <class Op, int64_t R>
__attribute__((noinline)) void tile(const PackedBlock& b, const float* x, const float* w, int64_t n,
                                    float* partial, const float* bias, float* y, int64_t y_stride) {
  // sums of 1, 2, 4 and 8 lanes that wait for their partner
  alignas(64) float joined[4][R * kColumns];
  Part sum[R][kParts];
  const auto each = [&](float* p, auto body) __attribute__((always_inline)) {
#pragma GCC unroll 12
    for (int64_t i = 0; i < R; ++i) {
#pragma GCC unroll 2
      for (int64_t j = 0; j < kParts; ++j) body(sum[i][j], p + i * kColumns + j * kPartLanes);
    }
  };
  if (b.last) {  // the stores at the end would wait for these lines
    for (int64_t i = 0; i < R; ++i) {
      __builtin_prefetch(y + i * y_stride, 1);
      __builtin_prefetch(y + i * y_stride + n - 1, 1);
    }
  }
  for (int lane = 0; lane < 16; ++lane) {
    float* const kept = partial == nullptr ? nullptr : partial + lane * kRows * kColumns;
    if (b.first) {
      each(joined[0], [](Part& s, float*) { s = Part{}; });
    } else {
      each(kept, [](Part& s, float* p) { s = load_part(p); });
    }
    const float* xs = x + lane * b.x_lane;
    const float* ws = w + lane * b.w_lane;
    for (int64_t step = 0; step < b.steps; ++step, xs += kRows, ws += kColumns) {
      const Part w0 = load_part(ws), w1 = load_part(ws + kPartLanes);
      __builtin_prefetch(xs + kAheadX * kRows);
      __builtin_prefetch(ws + kAheadW * kColumns);
      __builtin_prefetch(ws + kAheadW * kColumns + kPartLanes);
#pragma GCC unroll 12
      for (int64_t i = 0; i < R; ++i) {
        const Part v = set_part(xs[i]);
        sum[i][0] = Op::dot(v, w0, sum[i][0]);
        sum[i][1] = Op::dot(v, w1, sum[i][1]);
      }
    }
    if (!b.last) {
      each(kept, [](Part& s, float* p) { store_part(s, p); });
      continue;
    }
    int level = 0;
    for (; lane >> level & 1; ++level)
      each(joined[level], [](Part& s, float* p) { s = load_part(p) + s; });
    if (level < 4) each(joined[level], [](Part& s, float* p) { store_part(s, p); });
  }
  if (!b.last) return;
  each(joined[0], [](Part& s, float* p) { store_part(s, p); });
  for (int64_t i = 0; i < R; ++i) {
    const float* const totals = joined[0] + i * kColumns;
    float* const to = y + i * y_stride;
    if (bias != nullptr) {
      for (int64_t j = 0; j < n; ++j) to[j] = totals[j] + bias[j];
    } else if (n == kColumns) {
      __builtin_memcpy(to, totals, kColumns * 4);
    } else {
      __builtin_memcpy(to, totals, static_cast<size_t>(n) * 4);
    }
  }
}

template <class Op>
void gemm(const PackedBlock& b) {
  constexpr int64_t kThird = kRows / 3, kPartial = 16 * kRows * kColumns;
  float* partial = b.partial;
  for (int64_t m = 0; m < b.m; m += kRows) {
    const float* const x = b.x + m / kRows * b.x_tile;
    const int64_t rows = b.m - m < kRows ? b.m - m : kRows;
    for (int64_t c = 0; c < b.n; c += kColumns) {
      const float* const w = b.w + c / kColumns * b.w_panel;
      const float* const bias = b.bias != nullptr ? b.bias + c : nullptr;
      const int64_t n = b.n - c < kColumns ? b.n - c : kColumns;
      float* const y = b.y + m * b.y_stride + c;
      if (rows == kRows) {
        tile<Op, kRows>(b, x, w, n, partial, bias, y, b.y_stride);
      } else {
        // A third, two or all of a tile; what it computes of the zeros behind the last row goes
        // nowhere.
        alignas(64) float rest[kRows * kColumns];
        const auto part = rows > 2 * kThird ? tile<Op, kRows>
                          : rows > kThird   ? tile<Op, 2 * kThird>
                                            : tile<Op, kThird>;
        part(b, x, w, n, partial, bias, rest, kColumns);
        for (int64_t i = 0; b.last && i < rows; ++i)
          __builtin_memcpy(y + i * b.y_stride, rest + i * kColumns, static_cast<size_t>(n) * 4);
      }
      if (partial != nullptr) partial += kPartial;
    }
  }
}

}  // namespace

void packed_f32(const PackedBlock& b) { gemm<F32>(b); }

void packed_split_bf16(const PackedBlock& b) {
  FlushSubnormals flush;
  gemm<F32>(b);
}

#if defined(FATHOM_SIMD_IS_avx512)
void packed_native_bf16(const PackedBlock& b) {
  FlushSubnormals flush;
  gemm<NativeBf16>(b);
}
#endif

// Up to 16 rows of 16 * steps elements, lane by lane: element 16 s + l of row r to out[place(l) *
// lane + s * row_length + r]; `width` <= 16 elements are written for each, zeros for the rows that
// are missing.
void pack_lanes(const float* in, int64_t in_stride, int64_t rows, int64_t steps, int64_t width,
                float* out, int64_t lane, int64_t row_length) {
  // its own inverse
  constexpr int64_t kPlace[16] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};
  for (int64_t s = 0; s < steps; ++s) {
    F32x16 a[16];
    for (int64_t r = 0; r < 16; ++r) {
      const float* const from = in + r * in_stride + 16 * s;
      a[r] = r < rows ? load(from) : zero();
      if (r < rows) __builtin_prefetch(from + 16 * kAheadPacked);
    }
    transpose_16(a);
    float* const to = out + s * row_length;
    for (int64_t l = 0; l < 16; ++l) {
      if (width == kLanes) {
        store(a[l], to + kPlace[l] * lane);
      } else {
        store_n(a[l], to + kPlace[l] * lane, width);
      }
    }
  }
}

}  // namespace fathom::FATHOM_SIMD_TARGET
