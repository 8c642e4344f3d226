// The register tile of the linear layers for many rows of x. A few lanes of the order of sums after
// the other: all their products are summed for a tile of outputs, whose registers lie along w's
// rows, and the tiles of sums are joined as soon as the tree of reduce_add allows. So an output has
// the bits of gemm.simd.cc, and nothing is ever added across a register.
#include "kernels/gemm-inl.h"
#include "kernels/simd-inl.h"
#include "kernels/transpose-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

constexpr int64_t kRows = kPackedTile.rows, kColumns = kPackedTile.columns,
                  kParts = kColumns / kPartLanes;
static_assert(kParts == 2);
#if defined(FATHOM_SIMD_IS_avx512)
constexpr int64_t kTileSums = 24;  // registers
#else
constexpr int64_t kTileSums = 12;
#endif

// Sums of R rows of a tile are in registers, and of as many lanes as there is room for. Few rows
// and many lanes: most sums are joined before they are stored. But these lanes of w are read once
// for every R rows and must stay in L1: with more steps all rows are summed together, lane by lane.
constexpr int64_t kFewSums = 3, kFewSteps = 32;
static_assert(kRows % kFewSums == 0 && kTileSums == kRows * kParts);

// Prefetch distances, in steps: x of a tile comes from L3 (of several lanes, the next ones while
// these are read), w from L2, what is packed from memory.
constexpr int64_t kAheadX = 64, kAheadW = 8, kAheadPacked = 16;

typedef uint32_t Bits __attribute__((vector_size(sizeof(Part))));

inline void keep_distance(int64_t& x, int64_t& w) {
#if defined(__x86_64__)
  asm("" : "+r"(x), "+r"(w));
#endif
}

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

// kScaled: half of the registers hold the sums of one run, which enter the others with their scale.
template <class Op, int64_t R, bool kScaled = false>
struct Tile {
  static constexpr int64_t kTogether = kTileSums / (kScaled ? 2 : 1) / (R * kParts),
                           kGroups = 16 / kTogether;
  static_assert(kTogether == 1 || kTogether == 2 || kTogether == 4);
  using Sums = Part[kTogether][R][kParts];

  // body(register of sums, lane, row, column) for those of every kStep-th lane. Unrolled, or the
  // sums would not be in registers.
  template <int64_t kStep, class Body>
  static inline __attribute__((always_inline)) void each(Sums& sum, Body body) {
#pragma GCC unroll 4
    for (int64_t l = 0; l < kTogether; l += kStep) {
#pragma GCC unroll 12
      for (int64_t i = 0; i < R; ++i) {
#pragma GCC unroll 2
        for (int64_t j = 0; j < kParts; ++j) body(sum[l][i][j], l, i, j * kPartLanes);
      }
    }
  }

  // Lane l += lane l + kWidth, for every second l of those left.
  template <int64_t kWidth>
  static inline __attribute__((always_inline)) void join(Sums& sum) {
    if constexpr (kWidth < kTogether) {
      each<2 * kWidth>(sum, [&](Part& s, int64_t l, int64_t i, int64_t j) {
        s = s + sum[l + kWidth][i][j / kPartLanes];
      });
    }
  }

  // The first rows of a tile meet their operands first.
  template <bool kPrefetch>
  static inline __attribute__((always_inline)) void add_products(const PackedBlock& b,
                                                                 const float* xs, const float* ws,
                                                                 int64_t steps, Sums& sum) {
    // Only the distance of each lane is kept, or every element would have an address.
    int64_t to_x[kTogether], to_w[kTogether];
    for (int64_t l = 0; l < kTogether; ++l) {
      to_x[l] = l * b.x_lane;
      to_w[l] = l * b.w_lane;
    }
    for (int64_t step = 0; step < steps; ++step, xs += kRows, ws += kColumns) {
#pragma GCC unroll 4
      for (int64_t l = 0; l < kTogether; ++l) {
        if (kTogether > 1) keep_distance(to_x[l], to_w[l]);
        const float* const x = xs + to_x[l];
        const float* const w = ws + to_w[l];
        Part w0 = load_part(w), w1 = load_part(w + kPartLanes);
        keep(w0);
        keep(w1);
        if (kPrefetch) {
          __builtin_prefetch(x + (kTogether == 1 ? kAheadX * kRows : kTogether * b.x_lane));
          __builtin_prefetch(w + kAheadW * kColumns);
          __builtin_prefetch(w + kAheadW * kColumns + kPartLanes);
        }
#pragma GCC unroll 12
        for (int64_t i = 0; i < R; ++i) {
          const Part v = set_part(x[i]);
          sum[l][i][0] = Op::dot(v, w0, sum[l][i][0]);
          sum[l][i][1] = Op::dot(v, w1, sum[l][i][1]);
        }
      }
    }
  }

  template <bool kPrefetch>
  static inline __attribute__((always_inline)) void add_runs(const PackedBlock& b, const float* xs,
                                                             const float* ws, Sums& sum) {
    if constexpr (!kScaled) return add_products<kPrefetch>(b, xs, ws, b.steps, sum);
    const float* scale = b.scales;
    for (int64_t step = 0; step < b.steps; step += b.run_steps, ++scale) {
      const int64_t left = b.steps - step;
      Sums run;
      each<1>(run, [](Part& s, int64_t, int64_t, int64_t) { s = Part{}; });
      add_products<kPrefetch>(b, xs + step * kRows, ws + step * kColumns,
                              left < b.run_steps ? left : b.run_steps, run);
      const Part v = set_part(*scale);
      each<1>(sum, [&](Part& s, int64_t l, int64_t i, int64_t j) {
        s = fma_part(run[l][i][j / kPartLanes], v, s);
      });
    }
  }

  // The first `rows` rows of a tile, a multiple of R.
  static __attribute__((noinline)) void run(const PackedBlock& b, const float* x, const float* w,
                                            int64_t rows, float* partial, float* y,
                                            int64_t y_stride) {
    // sums of 1, 2, 4 and 8 groups of lanes that wait for their partner
    alignas(64) float joined[4][kRows * kColumns];
    if (b.last) {  // the stores at the end would wait for these lines
      for (int64_t i = 0; i < rows; ++i) {
        __builtin_prefetch(y + i * y_stride, 1);
        __builtin_prefetch(y + i * y_stride + kColumns - 1, 1);
      }
    }
    for (int64_t group = 0; group < kGroups; ++group) {
      const float* const xs = x + group * kTogether * b.x_lane;
      const float* const ws = w + group * kTogether * b.w_lane;
      for (int64_t row = 0; row < rows; row += R) {
        float* const kept = partial + (group * kTogether * kRows + row) * kColumns;
        const auto of_lane = [](int64_t l, int64_t i, int64_t j) {
          return (l * kRows + i) * kColumns + j;
        };
        Sums sum;
        if (b.first) {
          each<1>(sum, [](Part& s, int64_t, int64_t, int64_t) { s = Part{}; });
        } else {
          each<1>(sum, [&](Part& s, int64_t l, int64_t i, int64_t j) {
            s = load_part(kept + of_lane(l, i, j));
          });
        }
        if (R == kRows || row == 0) {
          add_runs<true>(b, xs, ws, sum);
        } else {
          add_runs<false>(b, xs + row, ws, sum);
        }
        if (!b.last) {
          each<1>(sum, [&](Part& s, int64_t l, int64_t i, int64_t j) {
            store_part(s, kept + of_lane(l, i, j));
          });
          continue;
        }
        join<1>(sum);
        join<2>(sum);
        int level = 0;
        for (; group >> level & 1; ++level) {
          const float* const before = joined[level] + row * kColumns;
          each<kTogether>(sum, [&](Part& s, int64_t, int64_t i, int64_t j) {
            s = load_part(before + i * kColumns + j) + s;
          });
        }
        const bool all = group == kGroups - 1;
        float* const to = all ? y + row * y_stride : joined[level] + row * kColumns;
        const int64_t stride = all ? y_stride : kColumns;
        each<kTogether>(sum, [&](Part& s, int64_t, int64_t i, int64_t j) {
          store_part(s, to + i * stride + j);
        });
      }
    }
  }
};

template <class Op, bool kScaled = false>
void gemm(const PackedBlock& b) {
  constexpr int64_t kLeastRows = kScaled ? kRows / 2 : kFewSums;
  constexpr int64_t kPartial = 16 * kRows * kColumns;
  float* partial = b.partial;
  for (int64_t m = 0; m < b.m; m += kRows) {
    const float* const x = b.x + m / kRows * b.x_tile;
    const int64_t rows = b.m - m < kRows ? b.m - m : kRows;
    const int64_t summed = (rows + kLeastRows - 1) / kLeastRows * kLeastRows;
    auto tile = Tile<Op, kLeastRows, kScaled>::run;
    if constexpr (!kScaled) {
      if (b.steps > kFewSteps && summed == kRows) tile = Tile<Op, kRows>::run;
    }
    for (int64_t c = 0; c < b.n; c += kColumns) {
      const float* const w = b.w + c / kColumns * b.w_panel;
      const int64_t n = b.n - c < kColumns ? b.n - c : kColumns;
      float* const y = b.y + m * b.y_stride + c;
      if (rows == summed && n == kColumns && b.bias == nullptr) {
        tile(b, x, w, rows, partial, y, b.y_stride);
      } else {
        // What is computed of the zeros behind the last row and column goes nowhere.
        alignas(64) float totals[kRows * kColumns];
        tile(b, x, w, summed, partial, totals, kColumns);
        for (int64_t i = 0; b.last && i < rows; ++i) {
          const float* const from = totals + i * kColumns;
          float* const to = y + i * b.y_stride;
          if (b.bias != nullptr) {
            for (int64_t j = 0; j < n; ++j) to[j] = from[j] + b.bias[c + j];
          } else {
            __builtin_memcpy(to, from, static_cast<size_t>(n) * 4);
          }
        }
      }
      if (partial != nullptr) partial += kPartial;
    }
  }
}

// of a lane; its own inverse
constexpr int64_t kPlace[16] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15};

// Whole registers of a panel's columns, or what there is of them.
inline Part row_part(const float* row, int64_t c, int64_t columns) {
  if (row == nullptr || c >= columns) return Part{};
  if (c + kPartLanes <= columns) return load_part(row + c);
  float lanes[kPartLanes] = {};
  for (int64_t i = c; i < columns; ++i) lanes[i - c] = row[i];
  return load_part(lanes);
}
// bf16 in the upper or the lower half of each element.
inline Part row_part(const uint16_t* row, int64_t c, int64_t columns, int shift) {
  uint32_t lanes[kPartLanes] = {};
  if (row != nullptr && c + kPartLanes <= columns) {
    for (int64_t i = 0; i < kPartLanes; ++i) lanes[i] = static_cast<uint32_t>(row[c + i]) << shift;
  } else if (row != nullptr) {
    for (int64_t i = c; i < columns; ++i) lanes[i - c] = static_cast<uint32_t>(row[i]) << shift;
  }
  return load_part(lanes);
}

// The rows of each step of 16 * kRowsOfElement; body(row or null.., where the step's columns of a
// lane go).
constexpr int64_t kAheadRows = 16;
template <int64_t kRowsOfElement, class T, class Body>
void each_element_row(const ColumnPanel& p, const T* in, Body body) {
  const auto row = [&](int64_t r) { return r < p.rows ? in + r * p.stride : nullptr; };
  for (int64_t r = 0; r < p.rows; r += 16 * kRowsOfElement) {
    for (int64_t l = 0; l < 16; ++l) {
      const int64_t first = r + l * kRowsOfElement;
      for (int64_t i = 0; i < kRowsOfElement; ++i)
        __builtin_prefetch(in + (first + kAheadRows + i) * p.stride);
      body(row(first), row(first + kRowsOfElement - 1), r / (16 * kRowsOfElement),
           p.out + kPlace[l] * p.lane);
    }
  }
}

}  // namespace

void pack_columns_f32(const ColumnPanel& p, const float* in) {
  each_element_row<1>(p, in, [&](const float* row, const float*, int64_t step, float* out) {
    for (int64_t c = 0; c < kColumns; c += kPartLanes)
      store_part(row_part(row, c, p.columns), out + step * kColumns + c);
  });
}

void pack_columns_split_bf16(const ColumnPanel& p, const uint16_t* in) {
  each_element_row<2>(p, in,
                      [&](const uint16_t* even, const uint16_t* odd, int64_t step, float* out) {
                        for (int64_t c = 0; c < kColumns; c += kPartLanes) {
                          float* const to = out + 2 * step * kColumns + c;
                          store_part(row_part(odd, c, p.columns, 16), to);
                          store_part(row_part(even, c, p.columns, 16), to + kColumns);
                        }
                      });
}

void pack_columns_native_bf16(const ColumnPanel& p, const uint16_t* in) {
  each_element_row<2>(
      p, in, [&](const uint16_t* even, const uint16_t* odd, int64_t step, float* out) {
        for (int64_t c = 0; c < kColumns; c += kPartLanes) {
          const Part low = row_part(even, c, p.columns, 0), high = row_part(odd, c, p.columns, 16);
          store_part(
              reinterpret_cast<Part>(reinterpret_cast<Bits>(low) | reinterpret_cast<Bits>(high)),
              out + step * kColumns + c);
        }
      });
}

void packed_f32(const PackedBlock& b) { gemm<F32>(b); }

void packed_split_bf16(const PackedBlock& b) {
  FlushSubnormals flush;
  b.scales != nullptr ? gemm<F32, true>(b) : gemm<F32>(b);
}

#if defined(FATHOM_SIMD_IS_avx512)
void packed_native_bf16(const PackedBlock& b) {
  FlushSubnormals flush;
  b.scales != nullptr ? gemm<NativeBf16, true>(b) : gemm<NativeBf16>(b);
}
#endif

namespace {

// Up to 16 rows of 16 * steps elements, lane by lane: element 16 s + l of row r to out[place(l) *
// lane + s * row_length + r]; `width` <= 16 elements are written for each, zeros for the rows that
// are missing. read(row, step) yields 16 elements.
template <class Read>
inline void pack_elements(int64_t rows, int64_t steps, int64_t width, float* out, int64_t lane,
                          int64_t row_length, Read read) {
  for (int64_t s = 0; s < steps; ++s) {
    F32x16 a[16];
    for (int64_t r = 0; r < 16; ++r) a[r] = r < rows ? read(r, s) : zero();
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

}  // namespace

void pack_lanes(const float* in, int64_t in_stride, int64_t rows, int64_t steps, int64_t width,
                float* out, int64_t lane, int64_t row_length) {
  pack_elements(rows, steps, width, out, lane, row_length, [&](int64_t r, int64_t s) {
    const float* const from = in + r * in_stride + 16 * s;
    __builtin_prefetch(from + 16 * kAheadPacked);
    return load(from);
  });
}

#if defined(FATHOM_SIMD_IS_avx512)
// The same for elements that are pairs of values, rounded on the way (round_to_bf16).
void pack_rounded(const float* in, int64_t in_stride, int64_t rows, int64_t steps, int64_t width,
                  float* out, int64_t lane, int64_t row_length) {
  pack_elements(rows, steps, width, out, lane, row_length, [&](int64_t r, int64_t s) {
    const float* const from = in + r * in_stride + 32 * s;
    __builtin_prefetch(from + 32 * kAheadPacked);
    __builtin_prefetch(from + 32 * kAheadPacked + 16);
    return F32x16{reinterpret_cast<__m512>(
        _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + 16), _mm512_loadu_ps(from)))};
  });
}
#endif

}  // namespace fathom::FATHOM_SIMD_TARGET
