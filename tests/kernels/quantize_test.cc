// Stored formats to f32, on every instruction set of this machine: against gguf-py's bits
// (tests/golden/quant, made by tools/make_quant_golden.py) and against the plain twin.
#include "kernels/quantize.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/random.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/ops_backward_ref.h"
#include "tests/reference/quantize_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_same_bits;
using reference::instruction_sets;
using reference::PaddedRows;

std::vector<DType> computable_dtypes() {
  std::vector<DType> list;
  for (int i = 0; i < kDTypeCount; ++i) {
    if (dtype_info(static_cast<DType>(i)).computable) list.push_back(static_cast<DType>(i));
  }
  return list;
}

std::vector<std::byte> random_bytes(int64_t n, uint64_t sequence) {
  std::vector<std::byte> bytes(static_cast<size_t>(n));
  const RandomKey key{7, RandomPurpose::kTest, sequence};
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(random_bits(key, i));
  return bytes;
}

// A weight of random values; the bytes of scales are thinned so that no NaN or Inf (whose payload
// is nobody's promise) appears.
struct Weight {
  std::vector<std::byte> bytes;
  std::vector<float> scales;
  WeightView view;
  Weight(DType dtype, int64_t rows, int64_t cols)
      : bytes(random_bytes(rows * row_bytes(dtype, cols), static_cast<uint64_t>(dtype))) {
    for (std::byte& b : bytes)
      b &= std::byte{0xbb};  // clears an exponent bit of every format, whichever byte holds it
    view = {.dtype = dtype, .rows = rows, .cols = cols, .data = bytes.data()};
    if (dtype != DType::kF8E4M3) return;
    view.scale_cols = (cols + 127) / 128;
    for (int64_t i = 0; i < (rows + 127) / 128 * view.scale_cols; ++i)
      scales.push_back(0.37f + static_cast<float>(i));
    view.block_scales = scales.data();
  }
};

std::vector<float> expected_values(const WeightView& w, int64_t r, int64_t begin, int64_t count) {
  std::vector<float> values;
  for (int64_t c = begin; c < begin + count; ++c)
    values.push_back(reference::weight_element(w, r, c));
  return values;
}

struct GoldenType {
  DType dtype = DType::kF32;
  int64_t blocks = 0;
  std::vector<std::byte> bytes;
  std::vector<float> values;
};

std::vector<GoldenType> read_golden() {
  const std::string file = read_file(FATHOM_SOURCE_DIR "/tests/golden/quant/quants.bin", 1 << 20);
  std::vector<GoldenType> types;
  for (size_t at = 0; at < file.size();) {
    const std::string name = file.c_str() + at;
    uint32_t header[3];  // blocks, elements, bytes
    std::memcpy(header, file.data() + at + 16, sizeof header);
    at += 16 + sizeof header;
    GoldenType type;
    type.blocks = header[0];
    for (DType dtype : computable_dtypes()) {
      if (dtype_name(dtype) == name) type.dtype = dtype;
    }
    EXPECT_EQ(dtype_name(type.dtype), name);
    EXPECT_EQ(dtype_info(type.dtype).block_elements, header[1]) << name;
    EXPECT_EQ(dtype_info(type.dtype).block_bytes, header[2]) << name;
    type.bytes.resize(size_t{header[0]} * header[2]);
    type.values.resize(size_t{header[0]} * header[1]);
    std::memcpy(type.bytes.data(), file.data() + at, type.bytes.size());
    at += type.bytes.size();
    std::memcpy(type.values.data(), file.data() + at, type.values.size() * sizeof(float));
    at += type.values.size() * sizeof(float);
    types.push_back(std::move(type));
  }
  EXPECT_EQ(types.size(), 13u);
  return types;
}

TEST(Quantize, BlocksDecodeToTheBitsOfGgufPyAtAnyAlignment) {
  for (const GoldenType& type : read_golden()) {
    for (Isa isa : instruction_sets()) {
      for (size_t shift : {0u, 1u, 3u}) {
        SCOPED_TRACE(fmt::format("{} {} +{}", dtype_name(type.dtype), isa_name(isa), shift));
        std::vector<std::byte> row(type.bytes.size() + shift);
        std::memcpy(row.data() + shift, type.bytes.data(), type.bytes.size());
        std::vector<float> actual(type.values.size());
        dequantize_row(isa, type.dtype, row.data() + shift, static_cast<int64_t>(actual.size()),
                       actual.data());
        expect_same_bits(actual, type.values);
      }
    }
  }
}

TEST(Quantize, TheTwinDecodesToTheBitsOfGgufPy) {
  for (const GoldenType& type : read_golden()) {
    SCOPED_TRACE(dtype_name(type.dtype));
    std::vector<float> actual;
    for (size_t i = 0; i < type.values.size(); ++i) {
      actual.push_back(
          reference::dequantize_element(type.dtype, type.bytes.data(), static_cast<int64_t>(i)));
    }
    expect_same_bits(actual, type.values);
  }
}

// All codes of a 1- or 2-byte format. NaN must stay NaN; its payload may change.
template <class Code, class Convert>
void expect_all_codes(DType dtype, Convert convert) {
  std::vector<Code> codes(size_t{1} << 8 * sizeof(Code));
  std::iota(codes.begin(), codes.end(), Code{0});
  for (Isa isa : instruction_sets()) {
    SCOPED_TRACE(isa_name(isa));
    std::vector<float> actual(codes.size());
    dequantize_row(isa, dtype, reinterpret_cast<const std::byte*>(codes.data()),
                   static_cast<int64_t>(codes.size()), actual.data());
    for (size_t i = 0; i < codes.size(); ++i) {
      const float expected = convert(codes[i]);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(actual[i])) << i;
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(actual[i]), std::bit_cast<uint32_t>(expected)) << i;
      }
    }
  }
}

TEST(Quantize, EveryCodeOfTheSmallFloatFormatsIsItsValue) {
  expect_all_codes<uint16_t>(DType::kF16, f16_to_f32);
  expect_all_codes<uint16_t>(DType::kBF16, bf16_to_f32);
  expect_all_codes<uint8_t>(DType::kF8E4M3, f8e4m3_to_f32);
}

TEST(Quantize, EveryLengthIsWrittenWholeAndNothingBehindIt) {
  constexpr float kGuard = 12345;
  for (DType dtype : computable_dtypes()) {
    const int64_t block = dtype_info(dtype).block_elements;
    const Weight w(dtype, 1, block * 70);
    for (Isa isa : instruction_sets()) {
      for (int64_t cols = 0; cols <= block * (block == 1 ? 70 : 3); cols += block) {
        SCOPED_TRACE(fmt::format("{} {} {}", dtype_name(dtype), isa_name(isa), cols));
        // An exact copy, so that a sanitizer sees a read behind the row.
        const std::vector<std::byte> row(w.bytes.begin(), w.bytes.begin() + row_bytes(dtype, cols));
        std::vector<float> actual(static_cast<size_t>(cols) + 1, kGuard), expected;
        dequantize_row(isa, dtype, row.data(), cols, actual.data());
        for (int64_t i = 0; i < cols; ++i)
          expected.push_back(reference::dequantize_element(dtype, row.data(), i));
        expected.push_back(kGuard);
        expect_same_bits(actual, expected);
      }
    }
  }
}

TEST(Quantize, ScalesThatAreNotFiniteGiveNoFiniteValues) {
  for (const auto scale : {uint16_t{0x7c00}, uint16_t{0x7e00}, uint16_t{0xfd01}}) {
    std::vector<std::byte> block(34, std::byte{3});
    std::memcpy(block.data(), &scale, sizeof scale);
    for (Isa isa : instruction_sets()) {
      std::vector<float> y(32);
      dequantize_row(isa, DType::kQ8_0, block.data(), 32, y.data());
      for (float value : y) EXPECT_EQ(std::isnan(value), scale != 0x7c00) << value;
      for (float value : y) EXPECT_FALSE(std::isfinite(value));
    }
  }
}

TEST(Quantize, AnyColumnsOfAWeightAreThoseOfItsTwin) {
  for (DType dtype : computable_dtypes()) {
    const int64_t step = std::max<int64_t>(128, dtype_info(dtype).block_elements);
    const int64_t cols = dtype_info(dtype).block_elements == 1
                             ? 3 * step + 44
                             : 4 * step;  // 44: a ragged scale block
    const Weight w(dtype, 131, cols);     // 131: a ragged row of scale blocks
    for (Isa isa : instruction_sets()) {
      for (int64_t r : {0, 1, 127, 128, 130}) {
        for (int64_t begin = 0; begin < cols; begin += step) {
          for (int64_t end : {std::min(begin + step, cols), cols}) {
            SCOPED_TRACE(fmt::format("{} {} row {} [{}, {})", dtype_name(dtype), isa_name(isa), r,
                                     begin, end));
            std::vector<float> actual(static_cast<size_t>(end - begin));
            dequantize_weight(isa, w.view, r, begin, end - begin, actual.data());
            expect_same_bits(actual, expected_values(w.view, r, begin, end - begin));
          }
        }
      }
    }
  }
}

TEST(Quantize, ASliceOfScaledRowsKeepsItsScales) {
  const Weight w(DType::kF8E4M3, 300, 200);
  const WeightView slice = w.view.slice(128, 172);
  std::vector<float> actual(200);
  for (int64_t r : {0, 127, 128, 171}) {
    dequantize_weight(detect_isa(), slice, r, 0, 200, actual.data());
    expect_same_bits(actual, expected_values(w.view, 128 + r, 0, 200));
  }
}

TEST(Quantize, EmbeddingLooksUpRowsWhateverTheThreads) {
  const std::vector<int32_t> ids = {5, 0, 129, 5, 64};
  for (DType dtype : computable_dtypes()) {
    const Weight w(dtype, 130, 512);
    for (Isa isa : instruction_sets()) {
      for (int threads : {1, 3}) {
        SCOPED_TRACE(fmt::format("{} {} {}", dtype_name(dtype), isa_name(isa), threads));
        Context ctx(threads, isa);
        std::vector<float> memory(ids.size() * 520, -1);
        const Rows out{memory.data(), static_cast<int64_t>(ids.size()), 512, 520};
        embedding(ctx, w.view, ids.data(), out);
        for (size_t t = 0; t < ids.size(); ++t) {
          std::vector<float> expected = expected_values(w.view, ids[t], 0, 512);
          expected.resize(520, -1);  // between rows nothing is written
          expect_same_bits(std::span<const float>(out.row(static_cast<int64_t>(t)), 520), expected);
        }
      }
    }
  }
  Context ctx(1);
  // no tokens, nothing to do
  embedding(ctx, Weight(DType::kF32, 2, 4).view, nullptr, {nullptr, 0, 4, 4});
}

TEST(QuantizeDeathTest, OwnBugsStopTheProgram) {
  Context ctx(1);
  const Weight w(DType::kF32, 2, 4);
  std::vector<float> out(4);
  for (int32_t id : {-1, 2})
    EXPECT_DEATH(embedding(ctx, w.view, &id, {out.data(), 1, 4, 4}), "ids");
  EXPECT_DEATH(dequantize_row(Isa::kPortable, DType::kI8, w.bytes.data(), 4, out.data()), "I8");
}

TEST(EmbeddingBackward, AddsRepeatedTokensInOrderOnAnyNumberOfThreads) {
  const std::vector<int32_t> ids = {2, 0, 2, 5, 2, 2};
  for (const Isa isa : instruction_sets()) {
    for (const int threads : {1, 2, 3}) {
      Context ctx(threads, isa);
      for (const int64_t n : {0, 1, 17, 127, 128, 129, 700}) {
        const PaddedRows dy(6, n, 1), dtable(6, n, 2), before(6, n, 2), expected(6, n, 2);
        auto exact = reference::dense(before.view);
        const auto gradient = reference::embedding_gradient(reference::dense(dy.view), ids, 6, n);
        for (size_t i = 0; i < exact.size(); ++i) exact[i] += gradient[i];
        for (size_t t = 0; t < ids.size(); ++t) {
          for (int64_t c = 0; c < n; ++c)
            expected.view.row(ids[t])[c] += dy.view.row(static_cast<int64_t>(t))[c];
        }
        embedding_backward(ctx, ids.data(), dy.view, dtable.view);
        expect_same_bits(dtable.view, expected.view);
        // four additions, sums at most 5
        reference::expect_close(dtable.view, exact, 4 * 5 * reference::kUnit);
        EXPECT_TRUE(dtable.intact());
      }
    }
  }
}

}  // namespace
}  // namespace fathom
