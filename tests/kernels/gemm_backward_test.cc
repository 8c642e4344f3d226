#include "kernels/gemm_backward.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/gemm.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/gemm_ref.h"
#include "tests/reference/ops_backward_ref.h"
#include "tests/reference/quantize_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::dense;
using reference::Doubles;
using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;
using reference::kUnit;
using reference::noise;
using reference::PaddedRows;

// Random weights in any type; block types from bytes whose scales are ordinary numbers (bit 14 of
// every half and bit 6 of every byte clear).
struct Weight {
  Weight(DType dtype, int64_t rows, int64_t cols, uint64_t stream)
      : memory(static_cast<size_t>(rows * row_bytes(dtype, cols))) {
    view = {.dtype = dtype, .rows = rows, .cols = cols, .data = memory.data()};
    for (int64_t i = 0; i < static_cast<int64_t>(memory.size()); ++i) {
      memory[static_cast<size_t>(i)] = static_cast<std::byte>(
          random_bits({.sequence = stream}, static_cast<uint64_t>(i)) & 0xbb);
    }
    for (int64_t i = 0; i < rows * cols; ++i) {
      if (dtype == DType::kF32) reinterpret_cast<float*>(memory.data())[i] = noise(stream, i);
      if (dtype == DType::kBF16)
        reinterpret_cast<bf16*>(memory.data())[i] = f32_to_bf16(noise(stream, i));
    }
    if (dtype == DType::kF8E4M3) {
      view.scale_cols = (cols + 127) / 128;
      for (int64_t i = 0; i < (rows + 127) / 128 * view.scale_cols; ++i)
        scales.push_back(0.5f + 0.25f * noise(9, i));
      view.block_scales = scales.data();
    }
  }
  // [cols, rows]
  Doubles transposed() const {
    Doubles w;
    for (int64_t c = 0; c < view.cols; ++c) {
      for (int64_t r = 0; r < view.rows; ++r) w.push_back(reference::weight_element(view, r, c));
    }
    return w;
  }
  std::vector<std::byte> memory;
  std::vector<float> scales;
  WeightView view;
};

void check_input(Context& ctx, DType dtype, int64_t m, int64_t n, int64_t k) {
  SCOPED_TRACE(std::string(isa_name(ctx.isa())) + " " + std::string(dtype_name(dtype)) + " M " +
               std::to_string(m) + " N " + std::to_string(n) + " K " + std::to_string(k));
  const PaddedRows dy(m, n, 1), dx(m, k, 4);
  const Weight w(dtype, n, k, 2);
  linear_backward_input(ctx, dy.view, w.view, dx.view);
  const auto round = dtype == DType::kBF16 && ctx.precision() == Precision::kNative
                         ? reference::Rounding::kBf16
                         : reference::Rounding::kNone;
  const auto ref = reference::linear_ref(dy.view, w.transposed(), k, nullptr, round);
  expect_close(dx.view, ref.y, ref.bounds);
  EXPECT_TRUE(dx.intact());
}

TEST(LinearBackwardInput, EqualsTheTwinInEveryShape) {
  for (const Isa isa : instruction_sets()) {
    for (const Precision precision : {Precision::kNative, Precision::kF32}) {
      Context ctx(2, isa, precision);
      for (const DType dtype : {DType::kF32, DType::kBF16}) {
        for (int64_t n = 0; n <= 40; ++n) check_input(ctx, dtype, 3, n, 37 - n % 20);
        for (int64_t k = 0; k <= 40; ++k) check_input(ctx, dtype, 2, 19, k);
        check_input(ctx, dtype, 0, 5, 5);
        check_input(ctx, dtype, 9, 100, 300);
        check_input(ctx, dtype, 70, 65, 513);
      }
    }
  }
}

// Few rows and many; N in one part and in three (kernels/gemm.cc: multiply_packed).
TEST(LinearBackwardInput, HasTheBitsOfTheLinearLayerOfTheTransposedWeight) {
  const int64_t k = 70;
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const int64_t n : {31, 300, 11001}) {
        const Weight w(dtype, n, k, 2), turned(dtype, k, n, 3);
        const int64_t bytes = dtype_info(dtype).block_bytes;
        for (int64_t r = 0; r < n; ++r) {
          for (int64_t c = 0; c < k; ++c)
            std::copy_n(w.view.row(r) + c * bytes, bytes,
                        const_cast<std::byte*>(turned.view.row(c)) + r * bytes);
        }
        for (const int64_t m : {1, 2, 40, 70}) {
          const PaddedRows dy(m, n, 1), dx(m, k), y(m, k);
          linear_backward_input(ctx, dy.view, w.view, dx.view);
          linear(ctx, dy.view, turned.view, nullptr, y.view);
          expect_same_bits(dx.view, y.view);
        }
      }
    }
  }
}

TEST(LinearBackwardInput, WidensEveryOtherType) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (const DType dtype : {DType::kF16, DType::kF8E4M3, DType::kQ8_0, DType::kQ4_K}) {
      for (const int64_t n : {1, 17, 130}) check_input(ctx, dtype, 4, n, 512);
    }
    check_input(ctx, DType::kF8E4M3, 3, 140, 300);
  }
}

// The values of a kBF16 operand: with them the products are exact and the sums have f32's bound.
Doubles rounded_to_bf16(Doubles values) {
  for (double& v : values) v = bf16_to_f32(f32_to_bf16(static_cast<float>(v)));
  return values;
}

void check_weight(Context& ctx, DType operands, int64_t m, int64_t n, int64_t k) {
  SCOPED_TRACE(std::string(isa_name(ctx.isa())) + " " + std::string(dtype_name(operands)) + " M " +
               std::to_string(m) + " N " + std::to_string(n) + " K " + std::to_string(k));
  const PaddedRows dy(m, n, 1), x(m, k, 2), dw(n, k, 3), before(n, k, 3);
  linear_backward_weight(ctx, dy.view, x.view, operands, dw.view);
  Doubles expected = dense(before.view), bounds(expected.size());
  if (n > 0 && k > 0) {
    const bool round = operands == DType::kBF16 && ctx.precision() == Precision::kNative;
    const Doubles x_values = round ? rounded_to_bf16(dense(x.view)) : dense(x.view);
    const Doubles dy_values = round ? rounded_to_bf16(dense(dy.view)) : dense(dy.view);
    const auto g =
        reference::linear_gradient(x_values, Doubles(static_cast<size_t>(n * k)), n, dy_values);
    const double terms =
        static_cast<double>(std::min<int64_t>(m, 256)) + static_cast<double>(m) / 256 + 1;
    for (size_t i = 0; i < expected.size(); ++i) {
      bounds[i] = terms * kUnit * (std::abs(expected[i]) + g.dw_terms[i]);
      expected[i] += g.dw[i];
    }
  }
  expect_close(dw.view, expected, bounds);
  EXPECT_TRUE(dw.intact());
}

TEST(LinearBackwardWeight, EqualsTheTwinInEveryShape) {
  for (const Isa isa : instruction_sets()) {
    for (const DType operands : {DType::kF32, DType::kBF16}) {
      Context ctx(2, isa);
      for (int64_t n = 0; n <= 20; ++n) check_weight(ctx, operands, 5, n, 70 - n);
      for (int64_t k = 0; k <= 140; ++k) check_weight(ctx, operands, 3, 7, k);
      for (const int64_t m : {0, 1, 2, 255, 256, 257, 700}) check_weight(ctx, operands, m, 13, 67);
      check_weight(ctx, operands, 40, 200, 530);
    }
    Context exact(2, isa, Precision::kF32);
    check_weight(exact, DType::kBF16, 40, 30, 70);
  }
}

TEST(BiasBackward, AddsTheColumnSumsRoundedOnce) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    for (const int64_t n : {0, 1, 5, 127, 128, 129, 300}) {
      for (const int64_t m : {0, 1, 1000}) {
        const PaddedRows dy(m, n, 1), db(1, n, 2), before(1, n, 2);
        bias_backward(ctx, dy.view, db.view.data);
        Doubles expected = dense(before.view), bounds;
        for (int64_t t = 0; t < m; ++t) {
          for (int64_t i = 0; i < n; ++i) expected[static_cast<size_t>(i)] += dy.view.row(t)[i];
        }
        for (const double v : expected) bounds.push_back(1.000001 * kUnit * std::abs(v) + 1e-12);
        expect_close(db.view, expected, bounds);
        EXPECT_TRUE(db.intact());
      }
    }
  }
}

// Experts 1 and 4 have no rows; their weights have no memory and their gradients stay.
TEST(GroupedLinearBackward, EachExpertIsALinearLayerOfItsOwnRows) {
  const std::vector<int64_t> offsets = {0, 5, 5, 6, 306, 306, 313};
  const int64_t m = offsets.back(), n = 50, k = 290;
  for (const Isa isa : instruction_sets()) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      Context ctx(3, isa), one(1, isa);
      const PaddedRows dy(m, n, 1), x(m, k, 2), dx(m, k), alone_dx(m, k), dw(6 * n, k, 5),
          alone_dw(6 * n, k, 5);
      std::vector<Weight> weights;
      std::vector<WeightView> experts;
      std::vector<Rows> gradients;
      weights.reserve(6);
      for (int64_t e = 0; e < 6; ++e) {
        weights.emplace_back(dtype, n, k, static_cast<uint64_t>(10 + e));
        experts.push_back(weights.back().view);
        gradients.push_back(dw.view.slice(e * n, n));
        const int64_t begin = offsets[static_cast<size_t>(e)],
                      count = offsets[static_cast<size_t>(e) + 1] - begin;
        if (count == 0) {
          experts.back().data = nullptr;
          continue;
        }
        linear_backward_input(one, dy.view.slice(begin, count), weights.back().view,
                              alone_dx.view.slice(begin, count));
        linear_backward_weight(one, dy.view.slice(begin, count), x.view.slice(begin, count), dtype,
                               alone_dw.view.slice(e * n, n));
      }
      grouped_linear_backward_input(ctx, dy.view, offsets, experts, dx.view);
      grouped_linear_backward_weight(ctx, dy.view, x.view, offsets, dtype, gradients);
      expect_same_bits(dx.view, alone_dx.view);
      expect_same_bits(dw.view, alone_dw.view);
    }
  }
}

TEST(LinearBackward, HasTheSameBitsOnAnyNumberOfThreads) {
  const int64_t m = 300, n = 200, k = 700;
  const PaddedRows dy(m, n, 1), x(m, k, 2);
  const Weight w(DType::kBF16, n, k, 3);
  for (const Isa isa : instruction_sets()) {
    const PaddedRows first_dx(m, k), first_dw(n, k, 5), first_db(1, n, 6);
    for (const int threads : {1, 2, 3}) {
      Context ctx(threads, isa);
      const PaddedRows dx(m, k), dw(n, k, 5), db(1, n, 6);
      const bool first = threads == 1;
      linear_backward_input(ctx, dy.view, w.view, first ? first_dx.view : dx.view);
      linear_backward_weight(ctx, dy.view, x.view, DType::kBF16, first ? first_dw.view : dw.view);
      bias_backward(ctx, dy.view, first ? first_db.view.data : db.view.data);
      if (first) continue;
      expect_same_bits(dx.view, first_dx.view);
      expect_same_bits(dw.view, first_dw.view);
      expect_same_bits(db.view, first_db.view);
    }
  }
}

// A training is the same on a processor with vdpbf16ps, without it, and without AVX-512.
TEST(LinearBackward, Avx2AndAvx512ComputeTheSameBits) {
  if (detect_isa() < Isa::kAvx512) GTEST_SKIP() << "this machine has no AVX-512";
  const int64_t n = 200, k = 290;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    for (const int64_t m : {1, 2, 301}) {
      for (const float scale : {1.0f, 0x1p-64f}) {  // the second: products and values below 2^-126
        PaddedRows dy(m, n, 1), x(m, k, 2);
        for (int64_t t = 0; t < m; ++t) {
          for (int64_t i = 0; i < n; ++i) dy.view.row(t)[i] *= scale;
          for (int64_t i = 0; i < k; ++i) x.view.row(t)[i] *= i % 5 == 0 ? scale * scale : scale;
        }
        const Weight w(dtype, n, k, 3);
        const PaddedRows dx[] = {{m, k}, {m, k}}, dw[] = {{n, k, 5}, {n, k, 5}};
        for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
          const size_t way = isa == Isa::kAvx2 ? 0 : 1;
          for (int64_t i = 0; scale < 1 && i < n; ++i)  // nothing beside which small sums vanish
            std::fill_n(dw[way].view.row(i), k, 0.0f);
          Context ctx(1, isa);
          linear_backward_input(ctx, dy.view, w.view, dx[way].view);
          linear_backward_weight(ctx, dy.view, x.view, dtype, dw[way].view);
        }
        expect_same_bits(dx[0].view, dx[1].view);
        expect_same_bits(dw[0].view, dw[1].view);
      }
    }
  }
}

}  // namespace
}  // namespace fathom
