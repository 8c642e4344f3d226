#include "kernels/attention_backward.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "tests/reference/attention_backward_ref.h"
#include "tests/reference/attention_cases.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/ops_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::attention_backward_ref;
using reference::attention_ref;
using reference::AttentionBackwardRef;
using reference::Cache;
using reference::expect_close;
using reference::expect_same_bits;
using reference::Form;
using reference::instruction_sets;
using reference::kExpanded;
using reference::kGqa;
using reference::kMha;
using reference::noise;
using reference::PaddedRows;
using reference::scale_of;

const Form kOdd{"MLA, odd dims", 3, 3, 12, 7, 20, false};
const Form kGrouped{"GQA, one kv head", 4, 1, 17, 0, 33, false};
const Form kWide{"MLA, real dims", 2, 2, 128, 64, 128, false};
const std::vector<Form> kTrained = {kGqa, kMha, kExpanded, kOdd, kGrouped};

// dkey and dvalue of a head lie behind each other, as those of kv_b_proj's output do.
struct Results {
  Results(const Form& form, int64_t tokens)
      : dq(tokens, form.width()),
        dkv(tokens, form.kv_heads * (form.key_dim + form.value_dim)),
        drope(tokens, form.rope_dim),
        gradients{{dkv.view.data, dkv.view.stride, form.key_dim + form.value_dim},
                  {drope.view.data, drope.view.stride, 0},
                  {dkv.view.data + form.key_dim, dkv.view.stride, form.key_dim + form.value_dim}} {}
  bool intact() const { return dq.intact() && dkv.intact() && drope.intact(); }
  PaddedRows dq, dkv, drope;
  AttentionGradients gradients;
};

void run(Context& ctx, const Form& form, const AttentionKeys& keys, ConstRows q, ConstRows dout,
         Results& results) {
  attention_backward(ctx, q, form.heads, form.kv_heads, scale_of(form), keys, dout, results.dq.view,
                     results.gradients);
}

// One part of one head out of a twin's dense rows of `heads` such parts.
std::vector<double> head_of(const std::vector<double>& x, int64_t heads, int64_t head,
                            int64_t dim) {
  std::vector<double> y;
  for (size_t i = 0; i < x.size(); ++i) {
    if (static_cast<int64_t>(i) / dim % heads == head) y.push_back(x[i]);
  }
  return y;
}

void expect_twin(const Form& form, const Results& actual, const AttentionBackwardRef& twin) {
  expect_close(actual.dq.view, twin.dq.value, twin.dq.bounds);
  expect_close(actual.drope.view, twin.dkey_rope.value, twin.dkey_rope.bounds);
  for (int64_t h = 0; h < form.kv_heads; ++h) {
    const int64_t column = h * (form.key_dim + form.value_dim);
    expect_close(actual.dkv.view.columns(column, form.key_dim),
                 head_of(twin.dkey.value, form.kv_heads, h, form.key_dim),
                 head_of(twin.dkey.bounds, form.kv_heads, h, form.key_dim));
    expect_close(actual.dkv.view.columns(column + form.key_dim, form.value_dim),
                 head_of(twin.dvalue.value, form.kv_heads, h, form.value_dim),
                 head_of(twin.dvalue.bounds, form.kv_heads, h, form.value_dim));
  }
  EXPECT_TRUE(actual.intact());
}

TEST(AttentionBackward, I8IsRefused) {
  Context ctx(1);
  const Form& form = reference::kInt8Forms[0];
  const Cache cache(form, DType::kI8, 1);
  const PaddedRows q(1, form.width(), 1), dout(1, form.heads * form.value_dim, 1);
  Results results(form, 1);
  EXPECT_DEATH(run(ctx, form, cache.view, q.view, dout.view, results), "kI8");
}

// L = dout · attention(x + step * direction), directions of -1 and 1, for one input at a time.
// Inputs are multiples of 2^-10 and steps are 2^-12 and 2^-13, so that the moved inputs are exact
// in f32. The central differences of the two steps are off by c step^2 and a quarter of it:
// extrapolation removes that, and their distance bounds what is left.
TEST(AttentionBackwardTwin, AgreesWithCentralDifferencesOfTheForwardTwinForEveryInput) {
  constexpr int64_t kTokens = 9;
  const auto grid = [](uint64_t stream, int64_t i) {
    return std::round(noise(stream, i) * 1024) / 1024;
  };
  const auto sign = [](int64_t i) { return noise(9, i) < 0 ? -1.0f : 1.0f; };
  for (const Form& form : {kGqa, kExpanded, kOdd, kGrouped}) {
    Cache cache(form, DType::kF32, kTokens);
    PaddedRows q(kTokens, form.width());
    const PaddedRows dout(kTokens, form.heads * form.value_dim, 5);
    using Set = std::function<void(int64_t token, int64_t i, float x)>;
    const auto set_part = [&](const CachedPart& part) -> Set {
      return
          [&](int64_t t, int64_t i, float x) { cache.set(part, t, i / part.dim, i % part.dim, x); };
    };
    struct Input {
      std::string name;
      int64_t cols;
      Set set;
    };
    const std::vector<Input> inputs = {
        {"q", form.width(), [&](int64_t t, int64_t i, float x) { q.view.row(t)[i] = x; }},
        {"key", form.kv_heads * form.key_dim, set_part(cache.view.key)},
        {"key_rope", form.rope_dim, set_part(cache.view.key_rope)},
        {"value", form.kv_heads * form.value_dim, set_part(cache.view.value)}};
    const auto move = [&](size_t input, float step) {
      const int64_t cols = inputs[input].cols;
      for (int64_t i = 0; i < kTokens * cols; ++i) {
        inputs[input].set(i / cols, i % cols, grid(20 + input, i) + step * sign(i));
      }
    };
    const auto loss = [&] {
      const auto out =
          attention_ref(q.view, 0, form.heads, form.kv_heads, scale_of(form), cache.view).out;
      double sum = 0;
      for (size_t i = 0; i < out.size(); ++i) {
        const auto at = static_cast<int64_t>(i);
        sum += out[i] * dout.view.row(at / dout.view.cols)[at % dout.view.cols];
      }
      return sum;
    };
    for (size_t input = 0; input < inputs.size(); ++input) move(input, 0);
    const auto twin = attention_backward_ref(q.view, form.heads, form.kv_heads, scale_of(form),
                                             cache.view, dout.view);
    const std::vector<double>* gradients[] = {&twin.dq.value, &twin.dkey.value,
                                              &twin.dkey_rope.value, &twin.dvalue.value};
    for (size_t input = 0; input < inputs.size(); ++input) {
      SCOPED_TRACE(form.name + ", " + inputs[input].name);
      ASSERT_EQ(static_cast<int64_t>(gradients[input]->size()), kTokens * inputs[input].cols);
      double expected = 0, slope[2];
      for (size_t i = 0; i < gradients[input]->size(); ++i)
        expected += (*gradients[input])[i] * sign(static_cast<int64_t>(i));
      for (int s = 0; s < 2; ++s) {
        const float step = s == 0 ? 0x1p-12f : 0x1p-13f;
        move(input, step);
        const double up = loss();
        move(input, -step);
        slope[s] = (up - loss()) / (2 * static_cast<double>(step));
      }
      move(input, 0);
      EXPECT_NEAR((4 * slope[1] - slope[0]) / 3, expected, std::abs(slope[1] - slope[0]) + 1e-10);
    }
  }
}

TEST(AttentionBackward, MatchesTheTwinForEveryFormLengthAndInstructionSet) {
  for (const Form& form : kTrained) {
    for (const int64_t tokens : {1, 2, 15, 16, 17, 47, 63, 64, 65, 97, 128, 131, 200}) {
      const Cache cache(form, tokens % 2 == 0 ? DType::kBF16 : DType::kF32, tokens);
      const PaddedRows q(tokens, form.width(), 4, 3), dout(tokens, form.heads * form.value_dim, 5);
      const auto twin = attention_backward_ref(q.view, form.heads, form.kv_heads, scale_of(form),
                                               cache.view, dout.view);
      for (const Isa isa : instruction_sets()) {
        SCOPED_TRACE(form.name + ", " + std::string(isa_name(isa)) + ", " + std::to_string(tokens) +
                     " tokens");
        Context ctx(2, isa);
        Results results(form, tokens);
        run(ctx, form, cache.view, q.view, dout.view, results);
        expect_twin(form, results, twin);
      }
    }
  }
}

TEST(AttentionBackward, MatchesTheTwinAtRealDims) {
  const Cache cache(kWide, DType::kF32, 150);
  const PaddedRows q(150, kWide.width(), 4), dout(150, kWide.heads * kWide.value_dim, 5);
  const auto twin = attention_backward_ref(q.view, kWide.heads, kWide.kv_heads, scale_of(kWide),
                                           cache.view, dout.view);
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    Results results(kWide, 150);
    run(ctx, kWide, cache.view, q.view, dout.view, results);
    expect_twin(kWide, results, twin);
  }
}

TEST(AttentionBackward, EveryHeadDimWorks) {
  Context ctx(1);
  for (int64_t dim = 1; dim <= 70; ++dim) {
    const Form form{"dim", 2, 2, dim, 71 - dim, 71 - dim, false};
    const Cache cache(form, DType::kF32, 19);
    const PaddedRows q(19, form.width(), 4), dout(19, form.heads * form.value_dim, 5);
    Results results(form, 19);
    run(ctx, form, cache.view, q.view, dout.view, results);
    expect_twin(form, results,
                attention_backward_ref(q.view, form.heads, form.kv_heads, scale_of(form),
                                       cache.view, dout.view));
  }
}

TEST(AttentionBackward, BitsDoNotDependOnThreads) {
  for (const Form& form : kTrained) {
    for (const Isa isa : instruction_sets()) {
      SCOPED_TRACE(form.name + ", " + std::string(isa_name(isa)));
      const Cache cache(form, DType::kF32, 200);
      const PaddedRows q(200, form.width(), 4), dout(200, form.heads * form.value_dim, 5);
      Context one(1, isa);
      Results expected(form, 200);
      run(one, form, cache.view, q.view, dout.view, expected);
      for (const int threads : {2, 3}) {
        Context ctx(threads, isa);
        Results actual(form, 200);
        run(ctx, form, cache.view, q.view, dout.view, actual);
        expect_same_bits(actual.dq.view, expected.dq.view);
        expect_same_bits(actual.dkv.view, expected.dkv.view);
        expect_same_bits(actual.drope.view, expected.drope.view);
      }
    }
  }
}

// 20 heads of 500 tokens are more tiles than one round keeps, 4 heads of one kv head are not: the
// same sums in one round, by hand.
TEST(AttentionBackward, SumsThatGoOnInTheNextRoundHaveTheSameBits) {
  const Form many{"rounds", 20, 5, 8, 4, 8, false}, few{"one round", 4, 1, 8, 4, 8, false};
  constexpr int64_t kTokens = 500;
  const Cache cache(many, DType::kF32, kTokens);
  const PaddedRows q(kTokens, many.width(), 4), dout(kTokens, many.heads * many.value_dim, 5);
  Context ctx(2);
  Results together(many, kTokens);
  run(ctx, many, cache.view, q.view, dout.view, together);
  for (int64_t g = 0; g < many.kv_heads; ++g) {
    AttentionKeys keys = cache.view;
    keys.key.data += row_bytes(DType::kF32, g * keys.key.head_stride);
    keys.value.data += row_bytes(DType::kF32, g * keys.value.head_stride);
    Results alone(few, kTokens);
    run(ctx, few, keys, q.view.columns(g * few.width(), few.width()), dout.view.columns(g * 32, 32),
        alone);
    expect_same_bits(together.dq.view.columns(g * few.width(), few.width()), alone.dq.view);
    expect_same_bits(together.dkv.view.columns(g * 16, 16), alone.dkv.view);
  }
  const auto twin = attention_backward_ref(q.view, 20, 5, scale_of(many), cache.view, dout.view);
  expect_twin(many, together, twin);
}

TEST(AttentionBackward, LargeScoresNeitherOverflowNorVanish) {
  const Form form{"large", 1, 1, 16, 0, 16, false};
  const Cache cache(form, DType::kF32, 90);
  const PaddedRows q(90, 16, 4, 300), dout(90, 16, 5);
  for (const Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    Results results(form, 90);
    run(ctx, form, cache.view, q.view, dout.view, results);
    expect_twin(form, results,
                attention_backward_ref(q.view, 1, 1, scale_of(form), cache.view, dout.view));
  }
}

TEST(AttentionBackward, NoTokensIsFine) {
  Context ctx(1);
  const Cache cache(kGqa, DType::kF32, 1);
  const PaddedRows q(0, kGqa.width()), dout(0, kGqa.heads * kGqa.value_dim);
  Results results(kGqa, 0);
  run(ctx, kGqa, cache.view, q.view, dout.view, results);
}

}  // namespace
}  // namespace fathom
