// f32 to stored formats: errors against bounds by hand and against the true minimum, importance,
// and what must not matter (instruction set, scale of the importance).
#include "kernels/quantizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "base/random.h"
#include "kernels/quantize.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/quantize_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::instruction_sets;

std::vector<DType> types() {
  std::vector<DType> list;
  for (int i = 0; i < kDTypeCount; ++i) {
    if (can_quantize(static_cast<DType>(i))) list.push_back(static_cast<DType>(i));
  }
  return list;
}
// Those with a search: blocks, but Q8_0.
std::vector<DType> searched_types() {
  std::vector<DType> list;
  for (const DType dtype : types()) {
    if (dtype_info(dtype).block_elements > 1 && dtype != DType::kQ8_0) list.push_back(dtype);
  }
  return list;
}

// Bell-shaped, as weights are, with an outlier now and then.
std::vector<float> weights_like(int64_t n, uint64_t stream, float scale = 1) {
  const RandomKey key{3, RandomPurpose::kTest, stream};
  std::vector<float> x;
  for (int64_t i = 0; i < n; ++i) {
    const auto at = static_cast<uint64_t>(i);
    x.push_back(scale * static_cast<float>(random_normal(key, at) * (i % 97 == 5 ? 4 : 1)));
  }
  return x;
}
// Over four orders of magnitude.
std::vector<float> importance_like(int64_t n, uint64_t stream) {
  const RandomKey key{4, RandomPurpose::kTest, stream};
  std::vector<float> w;
  for (int64_t i = 0; i < n; ++i)
    w.push_back(static_cast<float>(std::exp(2 * random_normal(key, static_cast<uint64_t>(i)))));
  return w;
}

std::vector<std::byte> bytes_of(DType dtype, const std::vector<float>& x,
                                const std::vector<float>& importance = {}, Isa isa = detect_isa()) {
  std::vector<std::byte> row(static_cast<size_t>(row_bytes(dtype, std::ssize(x))));
  quantize_row(isa, dtype, x.data(), importance.empty() ? nullptr : importance.data(),
               std::ssize(x), row.data());
  return row;
}
// There and back.
std::vector<float> stored(DType dtype, const std::vector<float>& x,
                          const std::vector<float>& importance = {}) {
  const std::vector<std::byte> row = bytes_of(dtype, x, importance);
  std::vector<float> y(x.size());
  dequantize_row(detect_isa(), dtype, row.data(), std::ssize(y), y.data());
  return y;
}

double squared_error(std::span<const float> x, std::span<const float> y,
                     std::span<const float> w = {}) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double left = static_cast<double>(x[i]) - static_cast<double>(y[i]);
    sum += (w.empty() ? 1 : static_cast<double>(w[i])) * left * left;
  }
  return sum;
}

struct Range {
  double low = 0, high = 0, largest = 0;
};
Range range_of(std::span<const float> x) {
  const auto [low, high] = std::minmax_element(x.begin(), x.end());
  return {*low, *high, std::max(std::abs(*low), std::abs(*high))};
}

// Of a plain choice that every format allows: scales that lay the extremes of a run on its levels,
// rounded up to their own few bits. No value is then farther than half of the widest gap between
// levels. The sum of the squares of these halves over a block bounds what a search may leave.
double plain_bound(DType dtype, std::span<const float> x) {
  const auto over_runs = [&](size_t run, const std::function<double(std::span<const float>)>& gap) {
    double sum = 0;
    for (size_t i = 0; i < x.size(); i += run) {
      const double half = gap(x.subspan(i, run)) / 2;
      sum += static_cast<double>(run) * half * half;
    }
    return sum;
  };
  const auto largest = [](std::span<const float> run) { return range_of(run).largest; };
  // levels from `low` to `high` of codes of `steps` steps, offsets and scales in 1 / codes
  const auto with_offsets = [&](size_t run, double steps, double codes) {
    const double lowest = -std::min(0.0, range_of(x).low) / codes;
    const auto step = [=](std::span<const float> part) {
      const Range r = range_of(part);
      return (std::max(0.0, r.high) - std::min(0.0, r.low) + lowest) / steps;
    };
    double widest = 0;
    for (size_t i = 0; i < x.size(); i += run) widest = std::max(widest, step(x.subspan(i, run)));
    return over_runs(run, [=](auto part) { return step(part) + widest / codes; });
  };
  // levels to both sides as far as `steps` gaps of the widest kind, scales in 1 / codes
  const auto with_scales = [&](size_t run, double steps, double codes) {
    const double all = largest(x);
    return over_runs(run, [=](auto part) { return (largest(part) + all / codes) / steps; });
  };
  switch (dtype) {
    case DType::kQ4_0:
      return over_runs(32, [=](auto run) { return largest(run) / 7; });
    case DType::kQ5_0:
      return over_runs(32, [=](auto run) { return largest(run) / 15; });
    case DType::kQ8_0:
      return over_runs(32, [=](auto run) { return largest(run) / 127; });
    case DType::kQ4_1:
      return over_runs(32, [](auto run) { return (range_of(run).high - range_of(run).low) / 15; });
    case DType::kQ5_1:
      return over_runs(32, [](auto run) { return (range_of(run).high - range_of(run).low) / 31; });
    case DType::kIQ4_NL:  // widest gap 24 of levels that reach 113 to both sides
      return over_runs(32, [=](auto run) { return largest(run) * 24 / 113; });
    case DType::kMXFP4:  // widest gap 4 of levels to 12, times up to 2 for the power of two
      return over_runs(32, [=](auto run) { return largest(run) * 2 * 4 / 12; });
    case DType::kQ2_K:
      return with_offsets(16, 3, 15);
    case DType::kQ4_K:
      return with_offsets(32, 15, 63);
    case DType::kQ5_K:
      return with_offsets(32, 31, 63);
    case DType::kQ3_K:
      return with_scales(16, 3, 31);
    case DType::kQ6_K:
      return with_scales(16, 31, 127);
    case DType::kIQ4_XS:
      return with_scales(32, 113.0 / 24, 31);
    default:
      ADD_FAILURE() << dtype_name(dtype);
      return 0;
  }
}

TEST(Quantizer, NoBlockIsWorseThanAPlainChoiceOfScales) {
  for (const DType dtype : searched_types()) {
    const int64_t n = dtype_info(dtype).block_elements;
    for (uint64_t stream = 0; stream < 200; ++stream) {
      std::vector<float> x = weights_like(n, stream);
      if (stream % 4 == 1) std::sort(x.begin(), x.end());
      if (stream % 4 == 2) {
        for (float& value : x) value = std::abs(value);
      }
      if (stream % 4 == 3) {
        for (float& value : x) value -= 3;
      }
      // f16 scales: each off by 2^-11 of the largest value at most
      const double slack = std::pow(range_of(x).largest * 0x1p-10, 2) * static_cast<double>(n);
      EXPECT_LE(squared_error(x, stored(dtype, x)), plain_bound(dtype, x) + slack)
          << dtype_name(dtype) << " block " << stream;
    }
  }
}

// The least error of any real scale: codes change only where a value crosses the middle between two
// levels, so one scale from each interval between such crossings, refitted, tries all codes.
double least_error(std::span<const double> levels, std::span<const float> x,
                   std::span<const float> w) {
  std::vector<double> crossings;
  for (const float value : x) {
    for (size_t i = 1; i < levels.size(); ++i)
      crossings.push_back((levels[i - 1] + levels[i]) / 2 / static_cast<double>(value));
  }
  std::sort(crossings.begin(), crossings.end());
  double all = 0, best = 0;
  for (size_t i = 0; i < x.size(); ++i)
    all += static_cast<double>(w[i]) * static_cast<double>(x[i]) * static_cast<double>(x[i]);
  for (size_t k = 1; k < crossings.size(); ++k) {
    const double inverse = (crossings[k - 1] + crossings[k]) / 2;
    double xv = 0, vv = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      const double t = static_cast<double>(x[i]) * inverse;
      const auto above = std::lower_bound(levels.begin(), levels.end(), t);
      double v = above == levels.end() ? levels.back() : *above;
      if (above != levels.begin() && t - *(above - 1) < std::abs(v - t)) v = *(above - 1);
      xv += static_cast<double>(w[i]) * static_cast<double>(x[i]) * v;
      vv += static_cast<double>(w[i]) * v * v;
    }
    if (vv > 0) best = std::max(best, xv * xv / vv);
  }
  return all - best;
}

TEST(Quantizer, OneScaleIsWithinOnePercentOfTheTrueMinimumOverAll) {
  std::vector<double> q4, q5;
  for (int i = -8; i < 8; ++i) q4.push_back(i);
  for (int i = -16; i < 16; ++i) q5.push_back(i);
  const std::vector<double> iq4 = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
  const std::pair<DType, std::vector<double>> cases[] = {
      {DType::kQ4_0, q4}, {DType::kQ5_0, q5}, {DType::kIQ4_NL, iq4}};
  for (const auto& [dtype, levels] : cases) {
    double found = 0, least = 0;
    for (uint64_t stream = 0; stream < 100; ++stream) {
      const std::vector<float> x = weights_like(32, stream), w = importance_like(32, stream);
      found += squared_error(x, stored(dtype, x, w), w);
      const double minimum = least_error(levels, x, w);
      least += minimum;
      EXPECT_GE(squared_error(x, stored(dtype, x, w), w), minimum * (1 - 1e-5));
    }
    EXPECT_LE(found, 1.01 * least) << dtype_name(dtype);
  }
}

// A grid of ends of the range, 1/8 of a step apart, each refitted.
double least_error_with_offset(int steps, std::span<const float> x, std::span<const float> w) {
  const Range range = range_of(x);
  const double step = (range.high - range.low) / steps;
  double best = std::numeric_limits<double>::infinity();
  for (double low = range.low - step; low < range.low + 4 * step; low += step / 8) {
    for (double high = range.high + step; high > range.high - 4 * step; high -= step / 8) {
      double n = 0, q = 0, qq = 0, t = 0, xq = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double value = x[i], weight = w[i];
        const double code =
            std::clamp(std::nearbyint((value - low) / (high - low) * steps), 0.0, 1.0 * steps);
        n += weight, q += weight * code, qq += weight * code * code;
        t += weight * value, xq += weight * value * code;
      }
      const double det = n * qq - q * q;
      if (!(det > 0)) continue;
      const double scale = (n * xq - t * q) / det, offset = (qq * t - q * xq) / det;
      double error = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double code = std::clamp(std::nearbyint((static_cast<double>(x[i]) - offset) / scale),
                                       0.0, 1.0 * steps);
        error += static_cast<double>(w[i]) *
                 std::pow(static_cast<double>(x[i]) - scale * code - offset, 2);
      }
      best = std::min(best, error);
    }
  }
  return best;
}

TEST(Quantizer, ScaleAndOffsetAreWithinSixPercentOfAFineSearchOverAll) {
  for (const auto& [dtype, steps] : {std::pair{DType::kQ4_1, 15}, {DType::kQ5_1, 31}}) {
    double found = 0, least = 0;
    for (uint64_t stream = 0; stream < 20; ++stream) {
      const std::vector<float> x = weights_like(32, stream), w = importance_like(32, stream);
      found += squared_error(x, stored(dtype, x, w), w);
      least += least_error_with_offset(steps, x, w);
    }
    EXPECT_LE(found, 1.06 * least) << dtype_name(dtype);
  }
}

TEST(Quantizer, ImportanceLowersTheErrorItWeighs) {
  for (const DType dtype : searched_types()) {
    for (uint64_t stream = 0; stream < 20; ++stream) {
      const std::vector<float> x = weights_like(1024, stream), w = importance_like(1024, stream);
      EXPECT_LT(squared_error(x, stored(dtype, x, w), w), squared_error(x, stored(dtype, x), w))
          << dtype_name(dtype);
    }
  }
}

TEST(Quantizer, OnlyTheRatiosOfImportanceCount) {
  const std::vector<float> x = weights_like(512, 1), w = importance_like(512, 1);
  for (const DType dtype : searched_types()) {
    for (const float factor : {0x1p-100f, 0x1p60f}) {
      std::vector<float> scaled = w;
      for (float& value : scaled) value *= factor;
      EXPECT_EQ(bytes_of(dtype, x, scaled), bytes_of(dtype, x, w)) << dtype_name(dtype);
    }
    for (const float nothing : {0.0f, std::numeric_limits<float>::infinity()}) {
      EXPECT_EQ(bytes_of(dtype, x, std::vector<float>(512, nothing)), bytes_of(dtype, x))
          << dtype_name(dtype);
    }
  }
}

TEST(Quantizer, EveryInstructionSetFindsTheSameBytes) {
  for (const DType dtype : types()) {
    for (uint64_t stream = 0; stream < 8; ++stream) {
      const std::vector<float> x = weights_like(1024, stream, std::pow(10.0f, 2.0f - stream));
      const std::vector<float> w = importance_like(1024, stream);
      for (const Isa isa : instruction_sets()) {
        EXPECT_EQ(bytes_of(dtype, x, w, isa), bytes_of(dtype, x, w, Isa::kPortable))
            << dtype_name(dtype) << " " << isa_name(isa);
        EXPECT_EQ(bytes_of(dtype, x, {}, isa), bytes_of(dtype, x, {}, Isa::kPortable));
      }
    }
  }
}

TEST(Quantizer, ZerosStayZeroAndConstantsAreMet) {
  for (const DType dtype : types()) {
    for (const float value : stored(dtype, std::vector<float>(256, 0.0f))) EXPECT_EQ(value, 0.0f);
    if (dtype == DType::kMXFP4) continue;  // its scales are powers of two
    for (const float constant : {1.0f, -1.0f, 0.3f, -700.0f}) {
      for (const float value : stored(dtype, std::vector<float>(256, constant))) {
        // one f16 scale, beside it at most the six bits of IQ4's level 113 or a K scale
        EXPECT_NEAR(value, constant, std::abs(constant) * 0x1p-8) << dtype_name(dtype);
      }
    }
  }
}

TEST(Quantizer, ExtremesStayFinite) {
  for (const DType dtype : types()) {
    const float limit = largest_magnitude(dtype);
    for (const float scale : {limit, limit / 16, 1e-4f, 1e-7f, 1e-12f, 1e-40f}) {
      std::vector<float> x;
      for (int64_t i = 0; i < 256; ++i) x.push_back(scale * reference::noise(5, i));
      x[3] = scale, x[40] = -scale;
      const std::vector<float> y = stored(dtype, x);
      for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_TRUE(std::isfinite(y[i])) << dtype_name(dtype) << " " << scale;
        // below what an f16 scale can hold the values go to zero, or to the scale's smallest step
        ASSERT_LE(std::abs(y[i] - x[i]), scale * 1.001f + 0x1p-18f) << dtype_name(dtype);
      }
      const double norm = std::sqrt(squared_error(x, std::vector<float>(256, 0.0f)));
      if (scale >= 1e-4f) {
        EXPECT_LT(std::sqrt(squared_error(x, y)), 0.5 * norm) << dtype_name(dtype) << " " << scale;
      }
    }
  }
}

// What has the form of a block already comes back as it is: the search finds its scale. With two
// levels of scales another split of the same numbers may be found, so those are left out.
TEST(Quantizer, TheStoredValuesAreStoredAsTheyAre) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0,
                            DType::kQ5_0, DType::kIQ4_NL, DType::kMXFP4}) {
    const std::vector<float> x = stored(dtype, weights_like(32 * 200, 9));
    EXPECT_EQ(squared_error(x, stored(dtype, x)), 0) << dtype_name(dtype);
  }
}

TEST(Quantizer, AWholeRowIsItsBlocksAndNothingBehindItIsWritten) {
  for (const DType dtype : types()) {
    const int64_t block = dtype_info(dtype).block_elements;
    const std::vector<float> x = weights_like(3 * block, 2), w = importance_like(3 * block, 2);
    for (int64_t count = 0; count <= 3; ++count) {
      std::vector<std::byte> expected;
      for (int64_t b = 0; b < count; ++b) {
        const std::vector<std::byte> one =
            bytes_of(dtype, {x.begin() + b * block, x.begin() + (b + 1) * block},
                     {w.begin() + b * block, w.begin() + (b + 1) * block});
        expected.insert(expected.end(), one.begin(), one.end());
      }
      expected.push_back(std::byte{0x5a});
      std::vector<std::byte> row(expected.size(), std::byte{0x5a});
      quantize_row(detect_isa(), dtype, x.data(), w.data(), count * block, row.data());
      EXPECT_EQ(row, expected) << dtype_name(dtype) << " " << count;
    }
  }
}

// Half a step of the block's scale, and the rounding of the scale to f16.
TEST(Quantizer, Q8IsWithinHalfAStep) {
  std::vector<float> x(96);
  for (size_t i = 0; i < x.size(); ++i)
    x[i] = i < 32 ? 0.0f
                  : static_cast<float>(std::sin(static_cast<double>(i)) *
                                       std::pow(10, static_cast<double>(i / 32)));
  const std::vector<float> back = stored(DType::kQ8_0, x);
  for (size_t begin = 0; begin < 96; begin += 32) {
    float largest = 0;
    for (size_t i = begin; i < begin + 32; ++i) largest = std::max(largest, std::abs(x[i]));
    for (size_t i = begin; i < begin + 32; ++i)
      EXPECT_LE(std::abs(back[i] - x[i]), largest / 127 * 0.5 * 1.001 + largest * 0x1p-11) << i;
  }
}

TEST(QuantizerDeathTest, OtherTypesStopTheProgram) {
  std::vector<float> x(32);
  std::vector<std::byte> row(64);
  EXPECT_DEATH(quantize_row(Isa::kPortable, DType::kI8, x.data(), nullptr, 32, row.data()), "I8");
}

}  // namespace
}  // namespace fathom
