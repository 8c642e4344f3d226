// Muon's step against its twin in double, and what Newton-Schulz makes of singular values.
#include "train/muon.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "tests/reference/expect_close.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;
using reference::kUnit;
using reference::noise;

constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;

struct Shape {
  int64_t rows, cols;
};
constexpr Shape kShapes[] = {{1, 1},   {1, 40},  {40, 1},  {3, 5},    {16, 16},
                             {33, 33}, {24, 70}, {70, 24}, {17, 300}, {300, 17}};

std::vector<float> numbers(uint64_t stream, int64_t n, float scale = 1) {
  std::vector<float> x;
  for (int64_t i = 0; i < n; ++i) x.push_back(scale * noise(stream, i));
  return x;
}

// Dense matrices in double, row by row.
struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<double> values;

  Matrix(int64_t r, int64_t c) : rows(r), cols(c), values(static_cast<size_t>(r * c)) {}
  double& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
  double at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
  double norm() const {
    double sum = 0;
    for (const double x : values) sum += x * x;
    return std::sqrt(sum);
  }
};

Matrix product(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.cols);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t k = 0; k < a.cols; ++k) {
      for (int64_t j = 0; j < b.cols; ++j) c.at(i, j) += a.at(i, k) * b.at(k, j);
    }
  }
  return c;
}

Matrix transpose(const Matrix& a) {
  Matrix t(a.cols, a.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) t.at(j, i) = a.at(i, j);
  }
  return t;
}

Matrix absolute(Matrix a) {
  for (double& x : a.values) x = std::abs(x);
  return a;
}

struct Twin {
  Matrix x;
  double error;  // bound of the program's, as a Frobenius norm
};

// Newton-Schulz with the whole matrix on one side. The bound: what one iteration rounds, from the
// dot products' own bound gamma sum|x w|, propagated by spectral norms (singular values stay below
// 1.21, those of the Gram matrix below 1.47); and an error that an iteration is given leaves it at
// most four times as large, since the polynomial's slope on [0, 1.21] is between -1.7 and 4 and a
// matrix function of singular values has the Lipschitz constant of its scalar (in the Frobenius
// norm).
Twin orthogonalised(const Matrix& u, double error) {
  Matrix x = u;
  const double scale = 1 / (u.norm() + 1e-7);
  for (double& value : x.values) value *= scale;
  const bool wide = x.rows <= x.cols;
  if (!wide) x = transpose(x);
  // Dividing by the norm at most doubles a relative error; its own roundings are 2 u.
  error = 2 * error * scale + 2 * kUnit;
  // Of linear(), with one rounding more for a portable product; the Gram matrix of a tall one comes
  // from linear_backward_weight().
  const auto gamma = [](int64_t terms) { return (static_cast<double>(terms) / 16 + 6) * kUnit; };
  const double gamma_gram = wide ? gamma(x.cols)
                                 : (std::min<double>(static_cast<double>(x.cols), 256) +
                                    static_cast<double>(x.cols) / 256 + 2) *
                                       kUnit;
  for (int i = 0; i < 5; ++i) {
    const Matrix a = product(x, transpose(x)), a2 = product(a, a);
    Matrix b(a.rows, a.cols);
    for (size_t k = 0; k < b.values.size(); ++k) b.values[k] = kB * a.values[k] + kC * a2.values[k];
    const Matrix bx = product(b, x);
    const double in_a = gamma_gram * product(absolute(x), transpose(absolute(x))).norm();
    const double in_b = (-kB + 2 * kC * 1.47) * in_a +
                        kC * gamma(a.rows) * product(absolute(a), absolute(a)).norm() +
                        4 * kUnit * (-kB * a.norm() + kC * a2.norm());
    const double here = 1.21 * in_b + gamma(a.rows) * product(absolute(b), absolute(x)).norm() +
                        4 * kUnit * (kA * x.norm() + bx.norm());
    error = 4 * error + here;
    for (size_t k = 0; k < x.values.size(); ++k) x.values[k] = kA * x.values[k] + bx.values[k];
  }
  return {wide ? x : transpose(x), error};
}

double distance(const Matrix& expected, std::span<const float> actual) {
  Matrix difference = expected;
  for (size_t i = 0; i < actual.size(); ++i) difference.values[i] -= actual[i];
  return difference.norm();
}

// One-sided Jacobi: rotates pairs of rows until all are orthogonal; their lengths are the singular
// values.
std::vector<double> singular_values(Matrix x) {
  if (x.rows > x.cols) x = transpose(x);
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (int64_t p = 0; p < x.rows; ++p) {
      for (int64_t q = p + 1; q < x.rows; ++q) {
        double pp = 0, qq = 0, pq = 0;
        for (int64_t j = 0; j < x.cols; ++j) {
          pp += x.at(p, j) * x.at(p, j), qq += x.at(q, j) * x.at(q, j),
              pq += x.at(p, j) * x.at(q, j);
        }
        if (pq == 0) continue;
        const double angle = 0.5 * std::atan2(2 * pq, pp - qq), c = std::cos(angle),
                     s = std::sin(angle);
        for (int64_t j = 0; j < x.cols; ++j) {
          const double a = x.at(p, j), b = x.at(q, j);
          x.at(p, j) = c * a + s * b;
          x.at(q, j) = c * b - s * a;
        }
      }
    }
  }
  std::vector<double> values;
  for (int64_t p = 0; p < x.rows; ++p) {
    double square = 0;
    for (int64_t j = 0; j < x.cols; ++j) square += x.at(p, j) * x.at(p, j);
    values.push_back(std::sqrt(square));
  }
  return values;
}

Matrix widened(std::span<const float> x, int64_t rows, int64_t cols) {
  Matrix m(rows, cols);
  std::copy(x.begin(), x.end(), m.values.begin());
  return m;
}

TEST(Muon, AStepIsItsTwinsForEveryShape) {
  for (const Isa isa : instruction_sets()) {
    for (const auto& [rows, cols] : kShapes) {
      Context ctx(2, isa);
      const int64_t n = rows * cols;
      std::vector<float> w = numbers(1, n), momentum(w.size());
      std::vector<bf16> compute(w.size());
      for (uint64_t t = 0; t < 3; ++t) {
        std::vector<float> g = numbers(10 + t, n, 1e-3f);
        const MuonStep s{
            .lr = 0.02f, .momentum = 0.95f, .weight_decay = 0.1f, .gradient_scale = 0.7f};
        Matrix u(rows, cols);
        std::vector<double> expected_momentum;
        double momentum_terms = 0;
        for (size_t i = 0; i < w.size(); ++i) {
          const double scaled = double{s.gradient_scale} * g[i],
                       m = double{s.momentum} * momentum[i] + scaled;
          expected_momentum.push_back(m);
          u.values[i] = scaled + s.momentum * m;
          momentum_terms += std::pow(std::abs(momentum[i]) + 2 * std::abs(scaled), 2);
        }
        const Twin twin = orthogonalised(u, 4 * kUnit * std::sqrt(momentum_terms));
        const double rate =
            double{s.lr} * 0.2 * std::sqrt(static_cast<double>(std::max(rows, cols)));
        Matrix expected(rows, cols);
        double bound = rate * twin.error;
        for (size_t i = 0; i < w.size(); ++i) {
          expected.values[i] = w[i] * (1 - double{s.lr} * s.weight_decay) - rate * twin.x.values[i];
          bound += 4 * kUnit * (std::abs(w[i]) + rate * std::abs(twin.x.values[i]));
        }
        muon(ctx, s, {w.data(), rows, cols, cols}, g, momentum, compute);
        EXPECT_LE(distance(expected, w), bound) << rows << " x " << cols << " step " << t;
        EXPECT_LT(twin.error, 0.1 * twin.x.norm());  // the bound says something
        expect_close(std::span<const float>(momentum), expected_momentum, 4 * kUnit * 3e-3);
        for (size_t i = 0; i < w.size(); ++i) {
          EXPECT_EQ(compute[i], f32_to_bf16(w[i]));
          EXPECT_EQ(g[i], 0.0f);
        }
      }
    }
  }
}

// Of a diagonal matrix the singular values are its entries, and the polynomial is applied to each.
TEST(Orthogonalise, AppliesThePolynomialToTheSingularValues) {
  Context ctx(1);
  const std::vector<double> diagonal = {1, 0.5, 0.1, 0.03, 0.01, 0.001, 0};
  const auto side = static_cast<int64_t>(diagonal.size());
  for (const auto& [rows, cols] : {Shape{side, side + 4}, Shape{side + 4, side}}) {
    std::vector<float> x(static_cast<size_t>(rows * cols));
    double norm = 0;
    for (const double s : diagonal) norm += s * s;
    for (int64_t i = 0; i < side; ++i)
      x[static_cast<size_t>(i * cols + i)] = static_cast<float>(diagonal[static_cast<size_t>(i)]);
    orthogonalise(ctx, {x.data(), rows, cols, cols});
    std::vector<double> expected(x.size());
    for (int64_t i = 0; i < side; ++i) {
      double s = diagonal[static_cast<size_t>(i)] / (std::sqrt(norm) + 1e-7);
      for (int k = 0; k < 5; ++k) s = kA * s + kB * s * s * s + kC * std::pow(s, 5);
      expected[static_cast<size_t>(i * cols + i)] = s;
    }
    // Some 20 roundings of 10 at most an iteration, each four times as large in the next: 341 of
    // them.
    expect_close(std::span<const float>(x), expected, 341 * 200 * kUnit);
  }
}

// Of square matrices some singular values are so near 0 that five iterations do not bring them up,
// so these are not square.
TEST(Orthogonalise, BringsTheSingularValuesOfRandomMatricesNearOne) {
  Context ctx(2);
  for (const auto& [rows, cols] :
       {Shape{1, 50}, Shape{8, 12}, Shape{32, 64}, Shape{64, 32}, Shape{40, 200}, Shape{200, 40}}) {
    for (const float scale : {1e-3f, 1.0f, 1e4f}) {
      std::vector<float> x = numbers(static_cast<uint64_t>(rows), rows * cols, scale);
      orthogonalise(ctx, {x.data(), rows, cols, cols});
      for (const double s : singular_values(widened(x, rows, cols))) {
        EXPECT_TRUE(s > 0.6 && s < 1.3) << s << " of " << rows << " x " << cols;
      }
    }
  }
  // Square: none above, and nearly all of them there.
  std::vector<float> x = numbers(5, 48 * 48);
  orthogonalise(ctx, {x.data(), 48, 48, 48});
  const std::vector<double> values = singular_values(widened(x, 48, 48));
  EXPECT_LT(*std::max_element(values.begin(), values.end()), 1.3);
  EXPECT_GE(std::count_if(values.begin(), values.end(), [](double s) { return s > 0.6; }), 45);
}

TEST(Muon, AZeroGradientOnlyDecays) {
  Context ctx(1);
  for (const auto& [rows, cols] : kShapes) {
    std::vector<float> w = numbers(1, rows * cols), g(w.size()), momentum(w.size());
    const std::vector<float> before = w;
    muon(ctx, {.lr = 0.5f, .weight_decay = 0.5f}, {w.data(), rows, cols, cols}, g, momentum, {});
    for (size_t i = 0; i < w.size(); ++i) EXPECT_EQ(w[i], 0.75f * before[i]);
  }
}

// Gradients at the ends of f32: squares are summed in double.
TEST(Muon, TinyAndHugeGradientsStayFinite) {
  Context ctx(1);
  for (const float scale : {1e-44f, 1e-30f, 1e30f, 1e36f}) {
    std::vector<float> w = numbers(1, 6 * 9), g = numbers(2, 6 * 9, scale), momentum(w.size());
    muon(ctx, {.lr = 0.5f}, {w.data(), 6, 9, 9}, g, momentum, {});
    for (const float x : w) EXPECT_TRUE(std::isfinite(x)) << scale;
  }
}

TEST(Muon, HasTheSameBitsOnAnyNumberOfThreads) {
  for (const auto& [rows, cols] : {Shape{96, 200}, Shape{200, 96}, Shape{300, 300}}) {
    std::vector<std::vector<float>> results;
    for (const int threads : {1, 2, 3}) {
      Context ctx(threads);
      std::vector<float> w = numbers(1, rows * cols), g = numbers(2, rows * cols),
                         momentum = numbers(3, rows * cols);
      muon(ctx, {.lr = 0.1f}, {w.data(), rows, cols, cols}, g, momentum, {});
      results.push_back(w);
    }
    expect_same_bits(results[0], results[1]);
    expect_same_bits(results[0], results[2]);
  }
}

}  // namespace
}  // namespace fathom
