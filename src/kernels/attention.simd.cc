// Two small matrix products (attention-inl.h) around a softmax: scores[key, row] = K · Qᵀ, so that
// a lane is a query row (or 2 or 4 are, each with another key, where rows are few) and the softmax
// needs next to no work across lanes; then out[row, dim] = Pᵀ · V.
// Every element is one chain, over dims or over keys.
#include "kernels/attention_forms-inl.h"

namespace fathom::FATHOM_SIMD_TARGET {
namespace {

template <class Form>
int64_t q_steps(const AttentionTile& t) {
  return Form::steps(t.key.dim) + Form::steps(t.key_rope.dim);
}

// Scores of one part, whose first dim is q's element `q_begin`. Lanes that see none of a block are
// left out.
template <class Form, int kBeside>
void add_scores(const AttentionTile& t, const AttentionPart& part, int64_t q_begin, int64_t keys) {
  const bool in_place = Form::reads_in_place(part);
  const int64_t chunk = in_place ? part.dim : kChunk, column = q_steps<Form>(t) * kLanes;
  for (int64_t j = 0; j < keys; j += kBlock) {
    const int64_t count = clamp(keys - j, 0, kBlock), row = t.block_rows[j / kBlock];
    const int64_t first_group = clamp((j + 1 - t.visible) * t.heads, 0, t.rows) / kLanes;
    for (int64_t begin = 0; begin < part.dim; begin += chunk) {
      const int64_t dims = clamp(part.dim - begin, 0, chunk), from = q_begin + Form::steps(begin);
      Product p{.a = t.block,
                .b = t.q + first_group * column + from * kLanes,
                .b_column = column,
                .c = scores_of<kBeside>(t, first_group * kLanes) + j / kBeside * kLanes,
                .c_row = kLanes,
                .c_column = kTileSegment * kLanes,
                .k = Form::steps(dims),
                .accumulate = from > 0};
      const int64_t groups = t.lanes / kLanes - first_group;
      if constexpr (Form::kPairs) {
        const auto stored = [](const AttentionPart& of, int64_t r, int64_t dim) {
          return reinterpret_cast<const float*>(static_cast<const uint16_t*>(of.data) +
                                                r * of.row_stride + dim);
        };
        p.a_row = part.row_stride / 2;
        p.rows = count;
        if (in_place || groups == 1) {  // more have the time to wait
          p.next_a = begin + dims < part.dim
                         ? stored(part, row, begin + dims)
                         : stored(part, j + kBlock < keys ? t.block_rows[j / kBlock + 1] : row, 0);
        }
        if (t.value.data != part.data && t.value.row_stride == part.row_stride)
          p.values = stored(t.value, row, begin);
        if (in_place) {
          p.a = stored(part, row, 0);
          multiply<typename Form::Op, InPlace>(p, count, groups);
          continue;
        }
      }
      Form::template load_keys<kBeside>(part, row, count, begin, dims, t.block);
      multiply<typename Form::Op, typename Form::template KeyStrides<kBeside>,
               kBeside == 1 ? kVectors : 1>(p, (count + kBeside - 1) / kBeside, groups);
    }
  }
}

// out = Pᵀ · V. Eight rows go together over the keys that the first of them sees, the others then
// add theirs alone: a row touches no value it must not see, not even with weight 0 (0 * NaN is
// NaN).
template <class Form>
void add_values(const AttentionTile& t, int64_t keys) {
  constexpr int64_t kGroup = 8;
  for (int64_t j = 0; j < keys; j += Form::kValueKeys) {
    const int64_t count = clamp(keys - j, 0, Form::kValueKeys);
    for (int64_t begin = 0; begin < t.value.dim; begin += kChunk) {
      const int64_t dims = clamp(t.value.dim - begin, 0, kChunk);
      for (int64_t i = 0; i < count; i += kBlock) {
        Form::load_values(t.value, t.block_rows[(j + i) / kBlock], clamp(count - i, 0, kBlock),
                          begin, dims, t.block + Form::steps(i) * kChunk);
      }
      // `from` is even where keys go in pairs.
      const auto product = [&](int64_t row, int64_t from, int64_t steps) {
        return Product{.a = t.scores +
                            (row / kLanes * kTileSegment + Form::steps(j + from)) * kLanes +
                            row % kLanes,
                       .b = t.block + Form::steps(from) * kChunk,
                       .b_column = kLanes,
                       .c = t.out + row * t.out_stride + begin,
                       .c_row = t.out_stride,
                       .c_column = kLanes,
                       .k = steps,
                       .accumulate = j + from > 0};
      };
      const int64_t vectors = (dims + kLanes - 1) / kLanes;
      const auto add = [&](int64_t row, int64_t rows, int64_t from, int64_t to) {
        // The pair of a block's last key is filled up with zeros.
        const int64_t whole = Form::kPairs && to < count ? to & -2 : to;
        if (from < whole)
          multiply<typename Form::Op, ValueStrides>(product(row, from, Form::steps(whole - from)),
                                                    rows, vectors);
        if constexpr (Form::kPairs) {
          if (whole < to) Form::multiply_last(product(row, whole, 1), rows, vectors);
        }
      };
      for (int64_t row = 0; row < t.rows; row += kGroup) {
        const int64_t rows = clamp(t.rows - row, 0, kGroup);
        const int64_t first = clamp(visible_keys(t, row) - j, 0, count),
                      last = clamp(visible_keys(t, row + rows - 1) - j, 0, count);
        const int64_t common = Form::kPairs && first < last ? first & -2 : first;
        add(row, rows, 0, common);
        if (common == last) continue;
        for (int64_t r = row; r < row + rows; ++r)
          add(r, 1, common, clamp(visible_keys(t, r) - j, 0, count));
      }
    }
  }
}

template <class Form, int kBeside = 1>
void compute(const AttentionTile& t) {
  const int64_t keys = visible_keys(t, t.rows - 1);
  add_scores<Form, kBeside>(t, t.key, 0, keys);
  add_scores<Form, kBeside>(t, t.key_rope, Form::steps(t.key.dim), keys);
  softmax_scores<Form, kBeside>(t);
  add_values<Form>(t, keys);
}

// [dims as elements, 16] from up to 16 rows.
template <class Form>
void transpose_part(const float* const* rows, int64_t count, int64_t dims, float* out) {
  for (int64_t begin = 0; begin < dims; begin += kLanes) {
    const int64_t n = clamp(dims - begin, 0, kLanes);
    F32x16 a[kLanes];
    for (int64_t r = 0; r < kLanes; ++r)
      a[r] = r < count ? Form::rounded(load_n(rows[r] + begin, n)) : zero();
    transpose_16(a);
    if (n == kLanes || Form::kPairs) {
      for (int64_t i = 0; i < n; i += 2)
        Form::put(a[i], a[i + 1], out + Form::steps(begin + i) * kLanes);
    } else {
      for (int64_t i = 0; i < n; ++i) store(a[i], out + (begin + i) * kLanes);
    }
  }
}

template <class Form>
void transpose_queries(const QueryTile& t) {
  const int64_t key = Form::steps(t.key_dim), rope = Form::steps(t.rope_dim);
  for_each_16_queries(t, [&](const float* const* rows, const float* const* rope_rows, int64_t group,
                             int64_t count) {
    float* out = t.out + group * (key + rope) * kLanes;
    transpose_part<Form>(rows, count, t.key_dim, out);
    transpose_part<Form>(rope_rows, count, t.rope_dim, out + key * kLanes);
  });
}

// f(a form) for the tile's form.
template <class F>
void with_form(AttentionForm form, F f) {
  if (form == AttentionForm::kF32) return f(F32Form{});
  FlushSubnormals flush;
#if defined(FATHOM_SIMD_IS_avx512)
  if (form == AttentionForm::kNativeBf16) return f(NativeForm{});
#endif
  f(SplitForm{});
}

}  // namespace

void attention_queries(const QueryTile& t) {
  with_form(t.form, [&](auto form) { transpose_queries<decltype(form)>(t); });
}

void attention_tile(const AttentionTile& t) {
  with_form(t.form, [&](auto form) {
    using Form = decltype(form);
    if constexpr (__is_same(Form, SplitForm)) {
      if (t.beside == 4) return compute<Form, 4>(t);
      if (t.beside == 2) return compute<Form, 2>(t);
    }
    compute<Form>(t);
  });
}

// (max, sum, out) of a row merged with those of its next segment.
void attention_merge(const float* out_next, float max_next, float sum_next, int64_t n, float* out,
                     float* row_max, float* row_sum) {
  const F32x16 before = set(*row_max), next = set(max_next), both = max(before, next);
  const F32x16 keep = exp(before - both), weight = exp(next - both);
  float lane[kLanes];
  store(both, lane);
  *row_max = lane[0];
  store(fma(weight, set(sum_next), keep * set(*row_sum)), lane);
  *row_sum = lane[0];
  for (int64_t i = 0; i < n; i += kLanes)
    store(fma(weight, load(out_next + i), keep * load(out + i)), out + i);
}

void attention_finish(const float* sums, float sum, int64_t n, float* out) {
  const F32x16 divisor = set(sum);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(load(sums + i) / divisor, out + i);
  store_n(load_n(sums + i, n - i) / divisor, out + i, n - i);
}

}  // namespace fathom::FATHOM_SIMD_TARGET
