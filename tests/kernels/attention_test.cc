#include "kernels/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "tests/reference/expect_close.h"
#include "tests/reference/ops_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::attention_ref;
using reference::expect_close;
using reference::expect_same_bits;
using reference::instruction_sets;
using reference::noise;
using reference::PaddedRows;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Form {
  std::string name;
  int64_t heads, kv_heads, key_dim, rope_dim, value_dim;
  bool absorbed;  // the value is the beginning of the key row
  int64_t width() const { return heads * (key_dim + rope_dim); }
};

const Form kGqa{"GQA", 6, 2, 20, 0, 20, false};
const Form kMha{"MHA", 3, 3, 16, 0, 24, false};
const Form kExpanded{"MLA expanded", 4, 4, 24, 8, 12, false};
const Form kAbsorbed{"MLA absorbed", 4, 1, 40, 0, 32, true};
const Form kManyHeads{"more heads than a tile", 80, 1, 12, 0, 8, true};
const std::vector<Form> kForms = {kGqa, kMha, kExpanded, kAbsorbed, kManyHeads};

// A cache of `keys` keys in blocks that lie backwards and with holes; every byte that is no key is NaN.
class Cache {
 public:
  Cache(const Form& form, DType dtype, int64_t keys) {
    const int64_t blocks = (keys + kKeyBlock - 1) / kKeyBlock;
    for (int64_t b = 0; b < blocks; ++b) block_rows_.push_back((2 * (blocks - b) - 1) * kKeyBlock);
    const int64_t rows = 2 * blocks * kKeyBlock;
    view.key = add_part(key_, dtype, rows, keys, form.kv_heads, form.key_dim, 1);
    if (form.rope_dim > 0) view.key_rope = add_part(rope_, dtype, rows, keys, 1, form.rope_dim, 2);
    view.value = form.absorbed ? view.key : add_part(value_, dtype, rows, keys, form.kv_heads, form.value_dim, 3);
    view.value.dim = form.value_dim;
    view.block_rows = block_rows_;
  }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  void set(const CachedPart& part, int64_t key, int64_t kv_head, int64_t i, float x) {
    const int64_t row = block_rows_[static_cast<size_t>(key / kKeyBlock)] + key % kKeyBlock;
    const int64_t index = row * part.row_stride + kv_head * part.head_stride + i;
    std::byte* data = const_cast<std::byte*>(part.data);
    const bf16 half = f32_to_bf16(x);
    if (part.dtype == DType::kBF16) {
      std::memcpy(data + index * 2, &half, 2);
    } else {
      std::memcpy(data + index * 4, &x, 4);
    }
  }

  AttentionKeys view;

 private:
  CachedPart add_part(std::vector<float>& memory, DType dtype, int64_t rows, int64_t keys, int64_t heads, int64_t dim,
                      uint64_t stream) {
    const int64_t stride = heads * dim + 5;
    memory.assign(static_cast<size_t>(rows * stride), kNan);
    if (dtype == DType::kBF16) std::memset(memory.data(), 0xff, memory.size() * 4);  // NaN as bf16 too
    const CachedPart part{dtype, reinterpret_cast<const std::byte*>(memory.data()), stride, heads > 1 ? dim : 0, dim};
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t i = 0; i < heads * dim; ++i) {
        set(part, j, i / dim, i % dim, noise(stream, j * heads * dim + i));
      }
    }
    return part;
  }

  std::vector<int64_t> block_rows_;
  std::vector<float> key_, rope_, value_;
};

float scale_of(const Form& form) { return 2.0f / std::sqrt(static_cast<float>(form.key_dim + form.rope_dim)); }

void run(Context& ctx, const Form& form, const Cache& cache, ConstRows q, int64_t position, Rows out) {
  attention(ctx, q, position, form.heads, form.kv_heads, scale_of(form), cache.view, out);
}

TEST(Attention, MatchesTheTwinForEveryFormDtypeAndInstructionSet) {
  struct Span {
    int64_t position, tokens;
  };
  for (const Form& form : kForms) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      for (const Span span : {Span{0, 1}, Span{0, 70}, Span{62, 3}, Span{255, 2}, Span{300, 1}, Span{530, 5}}) {
        const Cache cache(form, dtype, span.position + span.tokens);
        const PaddedRows q(span.tokens, form.width(), 4, 3);
        const auto expected =
            attention_ref(q.view, span.position, form.heads, form.kv_heads, scale_of(form), cache.view);
        for (const Isa isa : instruction_sets()) {
          SCOPED_TRACE(form.name + ", " + std::string(isa_name(isa)) + ", position " + std::to_string(span.position));
          Context ctx(2, isa);
          PaddedRows out(span.tokens, form.heads * form.value_dim);
          run(ctx, form, cache, q.view, span.position, out.view);
          expect_close(out.view, expected.out, expected.bounds);
          EXPECT_TRUE(out.intact());
        }
      }
    }
  }
}

TEST(Attention, EveryHeadDimWorks) {
  Context ctx(1);
  for (int64_t dim = 1; dim <= 70; ++dim) {
    const Form form{"dim", 2, 1, dim, 0, 71 - dim, false};
    const Cache cache(form, DType::kBF16, 66);
    const PaddedRows q(2, form.width(), 4);
    const auto expected = attention_ref(q.view, 64, 2, 1, scale_of(form), cache.view);
    PaddedRows out(2, form.heads * form.value_dim);
    run(ctx, form, cache, q.view, 64, out.view);
    expect_close(out.view, expected.out, expected.bounds);
  }
}

TEST(Attention, AQueryHasTheSameBitsAloneInAnyChunkAndOnAnyNumberOfThreads) {
  constexpr int64_t kTokens = 530;
  struct Chunks {
    int64_t begin, size;
  };
  for (const Form& form : {kGqa, kExpanded, kAbsorbed}) {
    for (const Isa isa : instruction_sets()) {
      SCOPED_TRACE(form.name + ", " + std::string(isa_name(isa)));
      const Cache cache(form, DType::kBF16, kTokens);
      const PaddedRows q(kTokens, form.width(), 4, 3);
      PaddedRows whole(kTokens, form.heads * form.value_dim);
      Context one(1, isa), three(3, isa);
      run(one, form, cache, q.view, 0, whole.view);
      for (const Chunks chunks : {Chunks{500, 1}, Chunks{420, 7}, Chunks{0, 64}, Chunks{0, 129}, Chunks{0, 530}}) {
        PaddedRows out(kTokens, form.heads * form.value_dim);
        for (int64_t begin = chunks.begin; begin < kTokens; begin += chunks.size) {
          const int64_t count = std::min(chunks.size, kTokens - begin);
          run(three, form, cache, q.view.slice(begin, count), begin, out.view.slice(begin, count));
        }
        const int64_t count = kTokens - chunks.begin;
        expect_same_bits(out.view.slice(chunks.begin, count), whole.view.slice(chunks.begin, count));
      }
    }
  }
}

TEST(Attention, NanInALaterKeyOrValueChangesNothing) {
  constexpr int64_t kTokens = 100, kBad = 70;
  for (const Form& form : kForms) {
    for (const Isa isa : instruction_sets()) {
      Context ctx(1, isa);
      const PaddedRows q(kTokens, form.width(), 4);
      Cache cache(form, DType::kF32, kTokens);
      PaddedRows before(kTokens, form.heads * form.value_dim), after(kTokens, form.heads * form.value_dim);
      run(ctx, form, cache, q.view, 0, before.view);
      cache.set(cache.view.key, kBad, 0, 1, kNan);
      cache.set(cache.view.value, kBad, 0, 1, kNan);
      run(ctx, form, cache, q.view, 0, after.view);
      expect_same_bits(after.view.slice(0, kBad), before.view.slice(0, kBad));
      for (int64_t t = kBad; t < kTokens; ++t) EXPECT_TRUE(std::isnan(after.view.row(t)[1])) << form.name << t;
    }
  }
}

TEST(Attention, NanInAQueryStaysInItsRowAndHead) {
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    const Cache cache(kAbsorbed, DType::kBF16, 300);
    const PaddedRows q(3, kAbsorbed.width(), 4);
    PaddedRows clean(3, kAbsorbed.heads * kAbsorbed.value_dim), out(3, kAbsorbed.heads * kAbsorbed.value_dim);
    run(ctx, kAbsorbed, cache, q.view, 297, clean.view);
    q.view.row(1)[2 * kAbsorbed.key_dim + 5] = kNan;
    run(ctx, kAbsorbed, cache, q.view, 297, out.view);
    for (int64_t t = 0; t < 3; ++t) {
      for (int64_t i = 0; i < out.view.cols; ++i) {
        const bool poisoned = t == 1 && i / kAbsorbed.value_dim == 2;
        EXPECT_EQ(std::isnan(out.view.row(t)[i]), poisoned);
        if (!poisoned) {
          EXPECT_EQ(out.view.row(t)[i], clean.view.row(t)[i]);
        }
      }
    }
  }
}

TEST(Attention, LargeScoresNeitherOverflowNorVanish) {
  // One key in each segment dominates in turn: scores to about +-2000, where e^s is far outside f32.
  const Form form{"large", 1, 1, 16, 0, 16, false};
  Context ctx(1);
  for (const int64_t strong : {int64_t{0}, int64_t{300}, int64_t{599}}) {
    Cache cache(form, DType::kF32, 600);
    PaddedRows q(1, 16, 4, 100);
    for (int64_t i = 0; i < 16; ++i) cache.set(cache.view.key, strong, 0, i, q.view.row(0)[i] > 0 ? 3.0f : -3.0f);
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
  Context ctx(2);
  PaddedRows together(kTokens, form.heads * form.value_dim), alone(kTokens, form.heads * form.value_dim);
  run(ctx, form, cache, q.view, kPosition, together.view);
  for (int64_t t = 0; t < kTokens; ++t) {
    run(ctx, form, cache, q.view.slice(t, 1), kPosition + t, alone.view.slice(t, 1));
  }
  expect_same_bits(together.view, alone.view);
  const auto expected = attention_ref(q.view.slice(39, 1), kPosition + 39, 80, 1, scale_of(form), cache.view);
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
