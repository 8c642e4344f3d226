// Linear layers alone, in the common weight formats.
#include <bit>

#include "base/check.h"
#include "base/clock.h"
#include "base/random.h"
#include "cli/bench_parts.h"
#include "kernels/gemm.h"

namespace fathom {
namespace {

// Matrices of one format, together larger than any cache, so that each call reads memory as a model
// does.
class WeightSet {
 public:
  WeightSet(DType dtype, int64_t rows, int64_t cols) {
    constexpr int64_t kTotalBytes = 256 << 20;
    const int64_t bytes = rows * row_bytes(dtype, cols);
    const int64_t count = std::max<int64_t>(1, kTotalBytes / bytes);
    memory_.resize(static_cast<size_t>(count * bytes / 8 + 8));
    fill(dtype);
    for (int64_t i = 0; i < count; ++i) {
      views_.push_back({dtype, rows, cols,
                        reinterpret_cast<const std::byte*>(memory_.data()) + i * bytes, nullptr,
                        0});
    }
  }
  const WeightView& next() { return views_[at_++ % views_.size()]; }

 private:
  // Any bits make a block; a scale whose upper byte is below 0x40 is finite in every format.
  void fill(DType dtype) {
    const RandomKey key{2, RandomPurpose::kTest, 0};
    // a prime number of words is random enough for timing and quick to make
    constexpr uint64_t kPeriod = 4099;
    std::vector<uint64_t> pattern(kPeriod);
    for (uint64_t i = 0; i < kPeriod; ++i) pattern[i] = random_bits(key, i) & 0x3f3f3f3f3f3f3f3f;
    if (dtype == DType::kF32 || dtype == DType::kBF16) {
      const bool wide = dtype == DType::kF32;
      for (uint64_t i = 0; i < kPeriod; ++i) {
        uint64_t word = 0;
        for (uint64_t j = 0; j < (wide ? 2 : 4); ++j) {
          const auto value = static_cast<float>(random_uniform(key, 4 * i + j) - 0.5);
          word |= wide ? uint64_t{std::bit_cast<uint32_t>(value)} << 32 * j
                       : uint64_t{f32_to_bf16(value)} << 16 * j;
        }
        pattern[i] = word;
      }
    }
    for (size_t i = 0; i < memory_.size(); ++i) memory_[i] = pattern[i % kPeriod];
  }

  std::vector<uint64_t> memory_;
  std::vector<WeightView> views_;
  size_t at_ = 0;
};

}  // namespace

void bench_kernels(Context& ctx, BenchLog& log) {
  constexpr int64_t kRows = 2048, kCols = 2048;
  constexpr double kSeconds = 0.3;  // for each line
  for (const DType dtype :
       {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ6_K}) {
    WeightSet weights(dtype, kRows, kCols);
    for (const int64_t m : {1, 16, 512}) {
      std::vector<float> x(static_cast<size_t>(m * kCols), 0.5f), y(static_cast<size_t>(m * kRows));
      BenchLine line;
      line.work = fmt::format("{} x {}", dtype_name(dtype), m);
      line.tokens = static_cast<double>(m);
      line.cost.add_weight(weights.next(), line.tokens);
      log.start();
      const double begin = seconds_now();
      while (line.run_seconds.size() < 5 || seconds_now() - begin < kSeconds) {
        check_interrupt();
        const double start = seconds_now();
        linear(ctx, {x.data(), m, kCols, kCols}, weights.next(), nullptr,
               {y.data(), m, kRows, kRows});
        line.run_seconds.push_back(seconds_now() - start);
      }
      log.add(std::move(line));
    }
  }
}

}  // namespace fathom
