// Finds scales and codes of a block: x and w hold its values and their weights, and what is made
// small is sum w (x - y)^2. Each format is a set of levels (a Grid) and one of four shapes:
//
//   y = d v              fit_block          y = d v + m            fit_block_offset
//   y = d s_run v        fit_runs           y = d s_run v - m o_run    fit_runs_offset
//
// For given codes the best scale (and offset) is that of least squares, for a given scale the best
// code is the nearest level. The search walks a few scales that lay the extremes of the values on
// levels or a little beside them, keeps the one whose codes fit best, and then takes turns between
// the two until nothing improves. Where runs have a scale of their own in a few bits, those codes
// and the common scale take turns in the same way.
//
// Only exact or once-rounded operations in one order, no FMA: every instruction set finds the same
// bits.
#include "kernels/quantizer_fit.h"

#include "kernels/block_formats-inl.h"
#include "kernels/simd-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

// Less than any format can hold (the smallest f16 is 2^-24); keeps 1 / scale finite.
constexpr float kNothing = 0x1p-60f;
constexpr int kTurns = 4;

float magnitude(float x) { return x < 0 ? -x : x; }
float smaller(float a, float b) { return a < b ? a : b; }
float larger(float a, float b) { return a > b ? a : b; }
int clamp(float x, int low, int high) {
  return static_cast<int>(
      smaller(static_cast<float>(high), larger(static_cast<float>(low), __builtin_rintf(x))));
}

// The nearest f16, ties to even, saturated.
float round_to_f16(float x) {
  const float a = smaller(magnitude(x), 65504.0f);
  const uint32_t bits = __builtin_bit_cast(uint32_t, a);
  // Adding 0.75 leaves the 24 bits of a subnormal f16; the mask leaves the 11 of a normal one.
  const float rounded =
      a < 0x1p-14f ? (a + 0.75f) - 0.75f
                   : __builtin_bit_cast(float, (bits + 0xfff + (bits >> 13 & 1)) & ~0x1fffu);
  return x < 0 ? -rounded : rounded;
}

// The same for a scale that integers multiply: what is not 0 does not become 0.
float round_to_scale(float x) {
  const float rounded = round_to_f16(x);
  return rounded != 0 || x == 0 ? rounded : x < 0 ? -0x1p-24f : 0x1p-24f;
}

// a where x > bound, else 0.
#if defined(FATHOM_SIMD_IS_avx512)
F32x16 where_above(F32x16 x, float bound, float a) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_set1_ps(bound), _CMP_GT_OQ),
                              _mm512_set1_ps(a))};
}
#elif defined(FATHOM_SIMD_IS_avx2)
F32x16 where_above(F32x16 x, float bound, float a) {
  const __m256 b = _mm256_set1_ps(bound), v = _mm256_set1_ps(a);
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, b, _CMP_GT_OQ), v),
          _mm256_and_ps(_mm256_cmp_ps(x.hi, b, _CMP_GT_OQ), v)};
}
#else
F32x16 where_above(F32x16 x, float bound, float a) {
  for (float& lane : x.v) lane = lane > bound ? a : 0.0f;
  return x;
}
#endif

// ---- levels ----

template <int kLow, int kHigh>
struct Uniform {
  static constexpr float kFar = -kLow > kHigh ? -kLow : kHigh;  // the level farthest from zero
  static F32x16 nearest(F32x16 t) { return min(set(kHigh), max(set(kLow), round_nearest(t))); }
  static F32x16 code(F32x16 t) { return nearest(t) - set(kLow); }
};

template <class Levels>
struct Table {
  static constexpr float kFar = -Levels::level(0);
  static F32x16 nearest(F32x16 t) {
    F32x16 v = set(Levels::level(0));
    for (int i = 1; i < Levels::kCount; ++i) {
      const float below = Levels::level(i - 1), above = Levels::level(i);
      v = v + where_above(t, (below + above) / 2, above - below);
    }
    return v;
  }
  static F32x16 code(F32x16 t) {
    F32x16 c = zero();
    for (int i = 1; i < Levels::kCount; ++i) {
      const float below = Levels::level(i - 1), above = Levels::level(i);
      c = c + where_above(t, (below + above) / 2, 1);
    }
    return c;
  }
};

struct Iq4Levels {
  static constexpr int kCount = 16;
  static constexpr float level(int i) { return static_cast<float>(kIq4[i] - Iq4Nl::kZero); }
};
struct Fp4Levels {  // doubled E2M1
  static constexpr int kCount = 15;
  static constexpr float level(int i) {
    constexpr float kLevels[kCount] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
    return kLevels[i];
  }
};
using Iq4 = Table<Iq4Levels>;
using Fp4 = Table<Fp4Levels>;

// ---- a run of values that share a scale: 16 V of them ----

template <int V>
struct Run {
  F32x16 x[V], w[V];
  Run(const float* values, const float* weights) {
    for (int i = 0; i < V; ++i) x[i] = load(values + 16 * i), w[i] = load(weights + 16 * i);
  }
};

template <int V>
float largest_magnitude(const Run<V>& r) {
  F32x16 m = zero();
  for (int i = 0; i < V; ++i) m = max(m, max(r.x[i], zero() - r.x[i]));
  return reduce_max(m);
}

// The codes of levels scale * v + offset, and what they leave.
template <class Grid, int V>
float error_of(const Run<V>& r, float scale, float offset) {
  const F32x16 inverse = set(magnitude(scale) < kNothing ? 0.0f : 1.0f / scale);
  const F32x16 s = set(scale), o = set(offset);
  F32x16 sum = zero();
  for (int i = 0; i < V; ++i) {
    const F32x16 left = r.x[i] - (s * Grid::nearest((r.x[i] - o) * inverse) + o);
    sum = sum + r.w[i] * left * left;
  }
  return reduce_add(sum);
}

template <class Grid, int V>
void put_codes(const Run<V>& r, float scale, float offset, uint8_t* code) {
  const F32x16 inverse = set(magnitude(scale) < kNothing ? 0.0f : 1.0f / scale);
  for (int i = 0; i < V; ++i) {
    float lanes[16];
    store(Grid::code((r.x[i] - set(offset)) * inverse), lanes);
    for (int j = 0; j < 16; ++j) code[16 * i + j] = static_cast<uint8_t>(lanes[j]);
  }
}

// ---- y = s v ----

struct ScaleFit {
  float scale = 0, gain = 0;  // gain: how much smaller the error is than that of zero
};

// Codes at 1 / inverse, and the best scale for them.
template <class Grid, int V>
bool improve(const Run<V>& r, float inverse, ScaleFit& best) {
  F32x16 xv = zero(), vv = zero();
  for (int i = 0; i < V; ++i) {
    const F32x16 v = Grid::nearest(r.x[i] * set(inverse)), wv = r.w[i] * v;
    xv = xv + wv * r.x[i];
    vv = vv + wv * v;
  }
  const float a = reduce_add(xv), b = reduce_add(vv);
  if (!(b > 0) || !(a * a > best.gain * b)) return false;
  best = {a / b, a * a / b};
  return true;
}

template <class Grid, int V>
float fit_scale(const Run<V>& r) {
  const float largest = largest_magnitude(r);
  if (largest < kNothing) return 0;
  ScaleFit best;
  // The largest value lands between half way to the farthest level and so far outside that it is
  // cut to a third, which pays when it matters little; in small steps where the best is found most.
  constexpr float kFar = Grid::kFar;
  for (float level = kFar * 0.5f; level < kFar * 3.0f; level *= level < kFar * 0.8f    ? 1.1f
                                                                : level < kFar * 1.15f ? 1.02f
                                                                                       : 1.12f) {
    improve<Grid>(r, level / largest, best);
    improve<Grid>(r, -level / largest, best);
  }
  for (int turn = 0; turn < kTurns && magnitude(best.scale) > kNothing; ++turn) {
    if (!improve<Grid>(r, 1.0f / best.scale, best)) break;
  }
  return best.scale;
}

template <class Grid>
void fit_block(const float* x, const float* w, BlockFit* out) {
  const Run<2> r(x, w);
  out->d = round_to_f16(fit_scale<Grid>(r));
  put_codes<Grid>(r, out->d, 0, out->code);
}

// ---- y = s v + o, v = 0 .. kLevels ----

struct OffsetFit {
  float scale = 0, offset = 0, error = 0;
};

// Codes for `from`, the best scale and offset for them, offset <= highest. Values are taken from
// `base` on, which keeps the sums small.
template <int kLevels, int V>
bool improve(const Run<V>& r, float base, float highest, const OffsetFit& from, OffsetFit& best) {
  using Grid = Uniform<0, kLevels>;
  const float inverse = 1.0f / from.scale;
  F32x16 sw = zero(), swq = zero(), swqq = zero(), swx = zero(), swxq = zero(), swxx = zero();
  for (int i = 0; i < V; ++i) {
    const F32x16 q = Grid::nearest((r.x[i] - set(from.offset)) * set(inverse));
    const F32x16 x = r.x[i] - set(base), wq = r.w[i] * q, wx = r.w[i] * x;
    sw = sw + r.w[i], swq = swq + wq, swqq = swqq + wq * q;
    swx = swx + wx, swxq = swxq + wx * q, swxx = swxx + wx * x;
  }
  const float n = reduce_add(sw), q = reduce_add(swq), qq = reduce_add(swqq), t = reduce_add(swx),
              xq = reduce_add(swxq), xx = reduce_add(swxx);
  const float determinant = n * qq - q * q;
  if (!(determinant > 0)) return false;
  OffsetFit fit = {(n * xq - t * q) / determinant, (qq * t - q * xq) / determinant, 0};
  if (fit.offset > highest - base) {
    fit.offset = highest - base;
    fit.scale = (xq - fit.offset * q) / qq;
  }
  if (!(fit.scale > kNothing)) return false;
  fit.error = xx - 2 * (fit.scale * xq + fit.offset * t) + fit.scale * fit.scale * qq +
              2 * fit.scale * fit.offset * q + fit.offset * fit.offset * n;
  fit.offset += base;
  if (!(fit.error < best.error)) return false;
  best = fit;
  return true;
}

// offset <= highest: the K formats have no positive ones.
template <int kLevels, int V>
OffsetFit fit_offset(const Run<V>& r, float highest) {
  F32x16 low = r.x[0], high = r.x[0];
  for (int i = 1; i < V; ++i) low = min(low, r.x[i]), high = max(high, r.x[i]);
  const float least = smaller(highest, 0 - reduce_max(zero() - low)), most = reduce_max(high);
  const float step = (most - least) / kLevels;
  if (!(step > kNothing)) return {0, least, 0};  // all the same
  OffsetFit best = {step, least, __builtin_inff()};
  // Either end of the levels lies this many steps inside of the values.
  constexpr float kInside[] = {-0.3f, 0.1f, 0.5f, 0.9f, 1.4f, 2.1f, 3.0f};
  for (const float a : kInside) {
    for (const float b : kInside) {
      const float begin = least + a * step, end = most - b * step;
      if (begin < end)
        improve<kLevels>(r, least, highest, {(end - begin) / kLevels, begin, 0}, best);
    }
  }
  for (int turn = 0; turn < kTurns; ++turn) {
    if (!improve<kLevels>(r, least, highest, OffsetFit(best), best)) break;
  }
  return best;
}

template <int kLevels>
void fit_block_offset(const float* x, const float* w, BlockFit* out) {
  const Run<2> r(x, w);
  const OffsetFit fit = fit_offset<kLevels>(r, __builtin_inff());
  out->d = round_to_f16(fit.scale);
  out->minimum = round_to_f16(fit.offset);
  put_codes<Uniform<0, kLevels>>(r, out->d, out->minimum, out->code);
}

// ---- 256 values in runs of 16 V, y = d s v with s an integer of [kMin, kMax] ----

// The best of the integers next to `code`, whose error is returned.
template <class Grid, int kMin, int kMax, int V>
float choose_scale(const Run<V>& r, float d, int& code) {
  float least = __builtin_inff();
  const int middle = code;
  for (int s = middle - 1; s <= middle + 1; ++s) {
    if (s < kMin || s > kMax) continue;
    const float error = error_of<Grid>(r, d * static_cast<float>(s), 0);
    if (error < least) least = error, code = s;
  }
  return least;
}

// The best d for the codes that d and s give.
template <class Grid, int V>
float refit(const Run<V>* runs, int count, float d, const int* s) {
  double xv = 0, vv = 0;
  for (int j = 0; j < count; ++j) {
    const float scale = d * static_cast<float>(s[j]);
    if (magnitude(scale) < kNothing) continue;
    F32x16 a = zero(), b = zero();
    for (int i = 0; i < V; ++i) {
      const F32x16 v = Grid::nearest(runs[j].x[i] * set(1.0f / scale)), wv = runs[j].w[i] * v;
      a = a + wv * runs[j].x[i], b = b + wv * v;
    }
    xv += static_cast<double>(reduce_add(a)) * s[j];
    vv += static_cast<double>(reduce_add(b)) * s[j] * s[j];
  }
  return vv > 0 ? static_cast<float>(xv / vv) : 0.0f;
}

template <class Grid, int V, int kMin, int kMax>
void fit_runs(const float* x, const float* w, BlockFit* out) {
  constexpr int kRuns = 16 / V;
  alignas(64) unsigned char memory[kRuns * sizeof(Run<V>)];
  auto* runs = reinterpret_cast<Run<V>*>(memory);
  float scale[kRuns], extreme = 0;
  for (int j = 0; j < kRuns; ++j) {
    runs[j] = Run<V>(x + 16 * V * j, w + 16 * V * j);
    scale[j] = fit_scale<Grid>(runs[j]);
    if (magnitude(scale[j]) > magnitude(extreme)) extreme = scale[j];
  }
  float d = round_to_scale(extreme / kMin), least = __builtin_inff();
  int s[kRuns];
  for (int j = 0; j < kRuns; ++j) s[j] = clamp(d == 0 ? 0 : scale[j] / d, kMin, kMax);
  for (int turn = 0; turn < kTurns; ++turn) {
    float error = 0;
    for (int j = 0; j < kRuns; ++j) error += choose_scale<Grid, kMin, kMax>(runs[j], d, s[j]);
    if (turn > 0 && !(error < least)) break;
    least = error;
    out->d = d;
    for (int j = 0; j < kRuns; ++j) out->scale[j] = s[j];
    d = round_to_scale(refit<Grid>(runs, kRuns, d, s));
  }
  for (int j = 0; j < kRuns; ++j)
    put_codes<Grid>(runs[j], out->d * static_cast<float>(out->scale[j]), 0, out->code + 16 * V * j);
}

// ---- the same with minimums: y = d s v - m o, s and o integers of [0, kMax] ----

struct Pair {
  float d, m;
};

template <int kLevels, int kMax, int V>
float choose_pair(const Run<V>& r, Pair p, int& s, int& o) {
  float least = __builtin_inff();
  const int s0 = s, o0 = o;
  for (int a = s0 - 1; a <= s0 + 1; ++a) {
    for (int b = o0 - 1; b <= o0 + 1; ++b) {
      if (a < 0 || a > kMax || b < 0 || b > kMax) continue;
      const float error = error_of<Uniform<0, kLevels>>(r, p.d * static_cast<float>(a),
                                                        -(p.m * static_cast<float>(b)));
      if (error < least) least = error, s = a, o = b;
    }
  }
  return least;
}

// The best d and m for the codes that p, s and o give; p where there is none.
template <int kLevels, int V>
Pair refit(const Run<V>* runs, int count, Pair p, const int* s, const int* o) {
  double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;  // of a = s v and b = o
  for (int j = 0; j < count; ++j) {
    const float scale = p.d * static_cast<float>(s[j]), offset = p.m * static_cast<float>(o[j]);
    const F32x16 inverse = set(scale < kNothing ? 0.0f : 1.0f / scale);
    F32x16 w = zero(), wv = zero(), wvv = zero(), wx = zero(), wxv = zero();
    for (int i = 0; i < V; ++i) {
      const F32x16 v = Uniform<0, kLevels>::nearest((runs[j].x[i] + set(offset)) * inverse);
      const F32x16 weighted = runs[j].w[i] * v, value = runs[j].w[i] * runs[j].x[i];
      w = w + runs[j].w[i], wv = wv + weighted, wvv = wvv + weighted * v;
      wx = wx + value, wxv = wxv + value * v;
    }
    const double a = s[j], b = o[j];
    aa += a * a * static_cast<double>(reduce_add(wvv));
    ab += a * b * static_cast<double>(reduce_add(wv));
    bb += b * b * static_cast<double>(reduce_add(w));
    ax += a * static_cast<double>(reduce_add(wxv));
    bx += b * static_cast<double>(reduce_add(wx));
  }
  const double determinant = aa * bb - ab * ab;
  if (determinant > 1e-9 * aa * bb) {
    const Pair best = {static_cast<float>((ax * bb - ab * bx) / determinant),
                       static_cast<float>((ab * ax - aa * bx) / determinant)};
    if (best.d >= 0 && best.m >= 0) return best;
  }
  return aa > 0 && bb == 0 ? Pair{static_cast<float>(ax / aa), 0} : p;
}

template <int kLevels, int V, int kMax>
void fit_runs_offset(const float* x, const float* w, BlockFit* out) {
  constexpr int kRuns = 16 / V;
  alignas(64) unsigned char memory[kRuns * sizeof(Run<V>)];
  auto* runs = reinterpret_cast<Run<V>*>(memory);
  OffsetFit fit[kRuns];
  Pair p = {0, 0};
  for (int j = 0; j < kRuns; ++j) {
    runs[j] = Run<V>(x + 16 * V * j, w + 16 * V * j);
    fit[j] = fit_offset<kLevels>(runs[j], 0);
    p.d = larger(p.d, fit[j].scale);
    p.m = larger(p.m, -fit[j].offset);
  }
  p = {round_to_scale(p.d / kMax), round_to_scale(p.m / kMax)};
  int s[kRuns], o[kRuns];
  for (int j = 0; j < kRuns; ++j) {
    s[j] = clamp(p.d == 0 ? 0 : fit[j].scale / p.d, 0, kMax);
    o[j] = clamp(p.m == 0 ? 0 : -fit[j].offset / p.m, 0, kMax);
  }
  float least = __builtin_inff();
  for (int turn = 0; turn < kTurns; ++turn) {
    float error = 0;
    for (int j = 0; j < kRuns; ++j) error += choose_pair<kLevels, kMax>(runs[j], p, s[j], o[j]);
    if (turn > 0 && !(error < least)) break;
    least = error;
    out->d = p.d, out->minimum = p.m;
    for (int j = 0; j < kRuns; ++j) out->scale[j] = s[j], out->offset[j] = o[j];
    p = refit<kLevels>(runs, kRuns, p, s, o);
    p = {round_to_scale(p.d), round_to_scale(p.m)};
  }
  for (int j = 0; j < kRuns; ++j) {
    put_codes<Uniform<0, kLevels>>(runs[j], out->d * static_cast<float>(out->scale[j]),
                                   -(out->minimum * static_cast<float>(out->offset[j])),
                                   out->code + 16 * V * j);
  }
}

}  // namespace

void fit_q4_0(const float* x, const float* w, BlockFit* out) {
  fit_block<Uniform<-8, 7>>(x, w, out);
}
void fit_q5_0(const float* x, const float* w, BlockFit* out) {
  fit_block<Uniform<-16, 15>>(x, w, out);
}
void fit_iq4_nl(const float* x, const float* w, BlockFit* out) { fit_block<Iq4>(x, w, out); }
void fit_q4_1(const float* x, const float* w, BlockFit* out) { fit_block_offset<15>(x, w, out); }
void fit_q5_1(const float* x, const float* w, BlockFit* out) { fit_block_offset<31>(x, w, out); }
void fit_q3_k(const float* x, const float* w, BlockFit* out) {
  fit_runs<Uniform<-4, 3>, 1, -32, 31>(x, w, out);
}
void fit_q6_k(const float* x, const float* w, BlockFit* out) {
  fit_runs<Uniform<-32, 31>, 1, -128, 127>(x, w, out);
}
void fit_iq4_xs(const float* x, const float* w, BlockFit* out) {
  fit_runs<Iq4, 2, -32, 31>(x, w, out);
}
void fit_q2_k(const float* x, const float* w, BlockFit* out) {
  fit_runs_offset<3, 1, 15>(x, w, out);
}
void fit_q4_k(const float* x, const float* w, BlockFit* out) {
  fit_runs_offset<15, 2, 63>(x, w, out);
}
void fit_q5_k(const float* x, const float* w, BlockFit* out) {
  fit_runs_offset<31, 2, 63>(x, w, out);
}

// The scale is a power of two: that which just holds the largest value, or one of two smaller ones
// that cut it off.
void fit_mxfp4(const float* x, const float* w, BlockFit* out) {
  const float largest = largest_magnitude(Run<2>(x, w));
  const uint32_t bits = __builtin_bit_cast(uint32_t, largest / 12);
  const float up = __builtin_bit_cast(float, (bits + 0x7fffff) & 0x7f800000);
  const float d = smaller(0x1p124f, larger(0x1p-126f, up));
  // In units of d: squares of the values as they are could overflow.
  float unit[32];
  for (int i = 0; i < 32; ++i) unit[i] = x[i] / d;
  const Run<2> r(unit, w);
  float least = __builtin_inff(), scale = 1;
  for (float candidate = 1; candidate >= 0.25f; candidate /= 2) {
    const float error = error_of<Fp4>(r, candidate, 0);
    if (error < least) least = error, scale = candidate;
  }
  out->d = d * scale;
  put_codes<Fp4>(r, scale, 0, out->code);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
