#include "kernels/attention.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "tests/reference/attention_cases.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/ops_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::attention_ref;
using reference::Cache;
using reference::expect_close;
using reference::expect_same_bits;
using reference::Form;
using reference::instruction_sets;
using reference::kAbsorbed;
using reference::kExpanded;
using reference::kForms;
using reference::kGqa;
using reference::kInt8Forms;
using reference::kOddFew;
using reference::noise;
using reference::PaddedRows;
using reference::scale_of;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// Every form in every dtype its cache may have.
std::vector<std::pair<Form, DType>> all_cases() {
  std::vector<std::pair<Form, DType>> cases;
  for (const Form& form : kForms) {
    cases.emplace_back(form, DType::kF32);
    cases.emplace_back(form, DType::kBF16);
  }
  for (const Form& form : kInt8Forms) cases.emplace_back(form, DType::kI8);
  return cases;
}

void run(Context& ctx, const Form& form, const Cache& cache, ConstRows q, int64_t position,
         Rows out) {
  attention(ctx, q, position, form.heads, form.kv_heads, scale_of(form), cache.view, out);
}

TEST(Attention, MatchesTheTwinForEveryFormDtypeAndInstructionSet) {
  struct Span {
    int64_t position, tokens;
  };
  for (const auto& [form, dtype] : all_cases()) {
    for (const Span span :
         {Span{0, 1}, Span{0, 70}, Span{62, 3}, Span{255, 2}, Span{300, 1}, Span{530, 5}}) {
      const Cache cache(form, dtype, span.position + span.tokens);
      const PaddedRows q(span.tokens, form.width(), 4, 3);
      for (const Precision precision : {Precision::kNative, Precision::kF32}) {
        const auto expected = attention_ref(q.view, span.position, form.heads, form.kv_heads,
                                            scale_of(form), cache.view, precision);
        for (const Isa isa : instruction_sets()) {
          SCOPED_TRACE(form.name + ", " + std::string(isa_name(isa)) + ", position " +
                       std::to_string(span.position));
          Context ctx(2, isa, precision);
          PaddedRows out(span.tokens, form.heads * form.value_dim);
          run(ctx, form, cache, q.view, span.position, out.view);
          expect_close(out.view, expected.out, expected.bounds);
          EXPECT_TRUE(out.intact());
        }
      }
    }
  }
}

TEST(Attention, I8BesideAnotherTypeIsRefused) {
  Context ctx(1);
  const Form& form = kInt8Forms[0];
  const Cache int8(form, DType::kI8, 1), bf16(form, DType::kBF16, 1);
  const PaddedRows q(1, form.width(), 4);
  PaddedRows out(1, form.heads * form.value_dim);
  for (CachedPart AttentionKeys::*part : {&AttentionKeys::key, &AttentionKeys::value}) {
    AttentionKeys mixed = bf16.view;
    mixed.*part = int8.view.*part;
    EXPECT_DEATH(attention(ctx, q.view, 0, form.heads, form.kv_heads, 1, mixed, out.view), "kI8");
  }
}

TEST(Attention, EveryHeadDimWorks) {
  for (int64_t dim = 1; dim <= 70; ++dim) {
    for (const int64_t heads : {2, 4, 5}) {  // 4, 8 and 10 rows: 4, 2 and 1 keys side by side
      const Form form{"dim", heads, 1, dim, dim % 7, 71 - dim, false};
      const Cache cache(form, DType::kBF16, 66);
      const PaddedRows q(2, form.width(), 4);
      const auto expected = attention_ref(q.view, 64, heads, 1, scale_of(form), cache.view);
      for (const Isa isa : instruction_sets()) {
        SCOPED_TRACE(fmt::format("{} dims, {} heads, {}", dim, heads, isa_name(isa)));
        Context ctx(1, isa);
        PaddedRows out(2, form.heads * form.value_dim);
        run(ctx, form, cache, q.view, 64, out.view);
        expect_close(out.view, expected.out, expected.bounds);
      }
    }
  }
}

TEST(Attention, AQueryHasTheSameBitsAloneInAnyChunkAndOnAnyNumberOfThreads) {
  constexpr int64_t kTokens = 530;
  struct Chunks {
    int64_t begin, size;
  };
  for (const auto& [form, dtype] :
       std::vector<std::pair<Form, DType>>{{kGqa, DType::kBF16},
                                           {kOddFew, DType::kBF16},
                                           {kExpanded, DType::kF32},
                                           {kAbsorbed, DType::kBF16},
                                           {kInt8Forms[0], DType::kI8},
                                           {kInt8Forms[4], DType::kI8}}) {
    for (const Isa isa : instruction_sets()) {
      SCOPED_TRACE(form.name + ", " + std::string(isa_name(isa)));
      const Cache cache(form, dtype, kTokens);
      const PaddedRows q(kTokens, form.width(), 4, 3);
      PaddedRows whole(kTokens, form.heads * form.value_dim);
      Context one(1, isa), three(3, isa);
      run(one, form, cache, q.view, 0, whole.view);
      for (const Chunks chunks : {Chunks{500, 1}, Chunks{490, 2}, Chunks{420, 7}, Chunks{0, 64},
                                  Chunks{0, 129}, Chunks{0, 530}}) {
        PaddedRows out(kTokens, form.heads * form.value_dim);
        for (int64_t begin = chunks.begin; begin < kTokens; begin += chunks.size) {
          const int64_t count = std::min(chunks.size, kTokens - begin);
          run(three, form, cache, q.view.slice(begin, count), begin, out.view.slice(begin, count));
        }
        const int64_t count = kTokens - chunks.begin;
        expect_same_bits(out.view.slice(chunks.begin, count),
                         whole.view.slice(chunks.begin, count));
      }
    }
  }
}

TEST(Attention, NanInALaterKeyOrValueChangesNothing) {
  constexpr int64_t kTokens = 100;
  for (const auto& [form, dtype] : all_cases()) {
    for (const Isa isa : instruction_sets()) {
      for (const int64_t bad : {68, 69, 70, 71}) {  // each of those that may share a vector
        Context ctx(1, isa);
        const PaddedRows q(kTokens, form.width(), 4);
        Cache cache(form, dtype, kTokens);
        PaddedRows before(kTokens, form.heads * form.value_dim),
            after(kTokens, form.heads * form.value_dim);
        run(ctx, form, cache, q.view, 0, before.view);
        cache.set(cache.view.key, bad, 0, 1, kNan);
        cache.set(cache.view.value, bad, 0, 1, kNan);
        run(ctx, form, cache, q.view, 0, after.view);
        expect_same_bits(after.view.slice(0, bad), before.view.slice(0, bad));
        for (int64_t t = bad; t < kTokens; ++t)
          EXPECT_TRUE(std::isnan(after.view.row(t)[1])) << form.name << t;
        for (const int64_t tokens : {1, 2, 4}) {  // few rows, of which some see it
          const int64_t first = bad - tokens / 2;
          run(ctx, form, cache, q.view.slice(first, tokens), first,
              after.view.slice(first, tokens));
          expect_same_bits(after.view.slice(first, bad - first),
                           before.view.slice(first, bad - first));
          for (int64_t t = bad; t < first + tokens; ++t)
            EXPECT_TRUE(std::isnan(after.view.row(t)[1])) << form.name << t;
        }
      }
    }
  }
}

TEST(Attention, NanOfAnEarlierCallIsNotFoundAgainInScratch) {
  for (const auto& [form, dtype] : all_cases()) {
    for (const Isa isa : instruction_sets()) {
      Context used(1, isa), fresh(1, isa);
      const PaddedRows q(1, form.width(), 4);
      Cache cache(form, dtype, 8);
      cache.set(cache.view.value, 7, form.kv_heads - 1, form.value_dim - 1,
                kNan);  // past the dims of MHA's keys
      PaddedRows out(1, form.heads * form.value_dim), expected(1, form.heads * form.value_dim);
      for (int i = 0; i < 3; ++i) run(used, form, cache, q.view, 7, out.view);  // the arenas grow
      run(used, form, cache, q.view, 6, out.view);  // an odd number of keys
      run(fresh, form, cache, q.view, 6, expected.view);
      expect_same_bits(out.view, expected.view);
    }
  }
}

TEST(Attention, Avx2AndAvx512GiveTheSameBits) {
  if (instruction_sets().back() != Isa::kAvx512) GTEST_SKIP() << "no AVX-512";
  for (const auto& [form, dtype] : all_cases()) {
    for (const float size : {4.0f, 1e-38f}) {  // the second is subnormal
      for (const int64_t tokens : {1, 2, 33}) {
        const Cache cache(form, dtype, 300 + tokens);
        const PaddedRows q(tokens, form.width(), size);
        PaddedRows narrow(tokens, form.heads * form.value_dim),
            wide(tokens, form.heads * form.value_dim);
        Context avx2(1, Isa::kAvx2), avx512(1, Isa::kAvx512);
        run(avx2, form, cache, q.view, 300, narrow.view);
        run(avx512, form, cache, q.view, 300, wide.view);
        expect_same_bits(wide.view, narrow.view);
      }
    }
  }
}

TEST(Attention, ManySequencesInOneCallHaveTheBitsOfEachAlone) {
  struct Sequence {
    int64_t position, rows;
  };
  const std::vector<Sequence> parts = {{300, 1}, {0, 1}, {1000, 3}, {700, 0}, {37, 150}, {255, 1}};
  for (const auto& [form, dtype] : all_cases()) {
    for (const Isa isa : instruction_sets()) {
      SCOPED_TRACE(form.name + ", " + std::string(isa_name(isa)));
      const Cache cache(form, dtype, 1003);
      // Each sequence begins at a block of its own.
      std::vector<SequenceRows> sequences;
      int64_t rows = 0;
      for (size_t i = 0; i < parts.size(); ++i) {
        const int64_t first =
            parts[i].position + parts[i].rows < 900 ? static_cast<int64_t>(i) % 2 : 0;
        sequences.push_back({parts[i].rows, parts[i].position,
                             cache.view.block_rows.subspan(static_cast<size_t>(first))});
        rows += parts[i].rows;
      }
      const PaddedRows q(rows, form.width(), 4, 3);
      PaddedRows together(rows, form.heads * form.value_dim),
          alone(rows, form.heads * form.value_dim);
      Context one(1, isa), three(3, isa);
      attention(three, q.view, sequences, form.heads, form.kv_heads, scale_of(form), cache.view,
                together.view);
      int64_t row = 0;
      for (const SequenceRows& s : sequences) {
        attention(one, q.view.slice(row, s.rows), {&s, 1}, form.heads, form.kv_heads,
                  scale_of(form), cache.view, alone.view.slice(row, s.rows));
        row += s.rows;
      }
      expect_same_bits(together.view, alone.view);
      EXPECT_TRUE(together.intact());
    }
  }
}

TEST(Attention, NanInAQueryStaysInItsRowAndHead) {
  const Form& form = kAbsorbed;
  for (const Isa isa : instruction_sets()) {
    for (const int64_t tokens : {1, 2, 3}) {
      Context ctx(2, isa);
      const Cache cache(form, DType::kBF16, 297 + tokens);
      const PaddedRows q(tokens, form.width(), 4);
      PaddedRows clean(tokens, form.heads * form.value_dim), out(tokens, clean.view.cols);
      run(ctx, form, cache, q.view, 297, clean.view);
      q.view.row(tokens / 2)[2 * form.key_dim + 5] = kNan;
      run(ctx, form, cache, q.view, 297, out.view);
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t i = 0; i < out.view.cols; ++i) {
          const bool poisoned = t == tokens / 2 && i / form.value_dim == 2;
          EXPECT_EQ(std::isnan(out.view.row(t)[i]), poisoned);
          if (!poisoned) {
            EXPECT_EQ(out.view.row(t)[i], clean.view.row(t)[i]);
          }
        }
      }
    }
  }
}

TEST(Attention, LargeScoresNeitherOverflowNorVanish) {
  // One key in each segment dominates in turn: scores to about +-2000, where e^s is far outside
  // f32.
  const Form form{"large", 1, 1, 16, 0, 16, false};
  Context ctx(1);
  for (const int64_t strong : {int64_t{0}, int64_t{300}, int64_t{599}}) {
    Cache cache(form, DType::kF32, 600);
    PaddedRows q(1, 16, 4, 100);
    for (int64_t i = 0; i < 16; ++i)
      cache.set(cache.view.key, strong, 0, i, q.view.row(0)[i] > 0 ? 3.0f : -3.0f);
    const auto expected = attention_ref(q.view, 599, 1, 1, scale_of(form), cache.view);
    PaddedRows out(1, 16);
    run(ctx, form, cache, q.view, 599, out.view);
    expect_close(out.view, expected.out, expected.bounds);
    for (int64_t i = 0; i < 16; ++i) EXPECT_EQ(out.view.row(0)[i], noise(3, strong * 16 + i));
  }
}

TEST(Attention, ManySegmentsInSeveralRoundsAgreeWithOneRound) {
  // 40 tokens x 80 heads make a slot large enough that not all 9 segments fit between two merges.
  const Form form{"rounds", 80, 1, 8, 0, 256, false};
  constexpr int64_t kPosition = 2200, kTokens = 40;
  const Cache cache(form, DType::kBF16, kPosition + kTokens);
  const PaddedRows q(kTokens, form.width(), 4);
  // With 2 threads there are tiles enough for each to be one item, without rounds; not with 16.
  Context few(2), many(16);
  PaddedRows together(kTokens, form.heads * form.value_dim),
      whole(kTokens, form.heads * form.value_dim), alone(kTokens, form.heads * form.value_dim);
  run(many, form, cache, q.view, kPosition, together.view);
  run(few, form, cache, q.view, kPosition, whole.view);
  for (int64_t t = 0; t < kTokens; ++t) {
    run(few, form, cache, q.view.slice(t, 1), kPosition + t, alone.view.slice(t, 1));
  }
  expect_same_bits(together.view, alone.view);
  expect_same_bits(whole.view, alone.view);
  const auto expected =
      attention_ref(q.view.slice(39, 1), kPosition + 39, 80, 1, scale_of(form), cache.view);
  expect_close(together.view.slice(39, 1), expected.out, expected.bounds);
}

TEST(Attention, NoTokensIsFine) {
  Context ctx(1);
  const Cache cache(kGqa, DType::kF32, 1);
  const PaddedRows q(0, kGqa.width());
  PaddedRows out(0, kGqa.heads * kGqa.value_dim);
  run(ctx, kGqa, cache, q.view, 0, out.view);
}

}  // namespace
}  // namespace fathom
