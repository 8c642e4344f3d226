// Packed documents: the bits of each document alone, forward and backward.
#include "kernels/attention_documents.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/attention_backward.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_same_bits;
using reference::instruction_sets;
using reference::PaddedRows;

struct Shape {
  int64_t heads, kv_heads, key_dim, rope_dim, value_dim;
};

CachedPart part(const Rows& rows, int64_t head_stride, int64_t dim) {
  return {DType::kF32, reinterpret_cast<const std::byte*>(rows.data), rows.stride, head_stride,
          dim};
}

struct Packed {
  Packed(const Shape& s, int64_t tokens)
      : shape(s),
        q(tokens, s.heads * (s.key_dim + s.rope_dim), 1),
        key(tokens, s.kv_heads * s.key_dim, 2),
        rope(tokens, s.rope_dim, 3),
        value(tokens, s.kv_heads * s.value_dim, 4),
        dout(tokens, s.heads * s.value_dim, 5) {}
  AttentionKeys keys(int64_t row, std::span<const int64_t> blocks) const {
    const auto from = [row](const Rows& r) {
      return Rows{r.data + row * r.stride, r.rows - row, r.cols, r.stride};
    };
    return {part(from(key.view), shape.key_dim, shape.key_dim),
            part(from(rope.view), 0, shape.rope_dim),
            part(from(value.view), shape.value_dim, shape.value_dim), blocks};
  }
  Shape shape;
  PaddedRows q, key, rope, value, dout;
};

struct Gradients {
  Gradients(const Packed& p, int64_t tokens)
      : out(tokens, p.dout.view.cols),
        dq(tokens, p.q.view.cols),
        dkey(tokens, p.key.view.cols),
        drope(tokens, p.rope.view.cols),
        dvalue(tokens, p.value.view.cols) {}
  AttentionGradients at(int64_t row, const Shape& s) const {
    return {{dkey.view.data + row * dkey.view.stride, dkey.view.stride, s.key_dim},
            {drope.view.data + row * drope.view.stride, drope.view.stride, 0},
            {dvalue.view.data + row * dvalue.view.stride, dvalue.view.stride, s.value_dim}};
  }
  PaddedRows out, dq, dkey, drope, dvalue;
};

TEST(AttentionDocuments, HaveTheBitsOfEachDocumentAlone) {
  const std::vector<std::vector<int64_t>> packs = {
      {1}, {300}, {1, 2, 63, 64, 65, 257, 30, 5, 1, 1, 40, 7, 128}, {70, 130}};
  const Shape shapes[] = {{4, 4, 24, 8, 32}, {6, 2, 20, 0, 20}};
  std::vector<int64_t> blocks;
  for (int64_t b = 0; b < 8; ++b) blocks.push_back(b * kKeyBlock);
  for (const Isa isa : instruction_sets()) {
    for (const Shape& s : shapes) {
      for (const auto& lengths : packs) {
        int64_t tokens = 0;
        for (const int64_t n : lengths) tokens += n;
        const Packed p(s, tokens);
        const Gradients alone(p, tokens);
        Context one(1, isa);
        int64_t row = 0;
        for (const int64_t n : lengths) {
          const AttentionKeys keys = p.keys(row, blocks);
          attention(one, p.q.view.slice(row, n), 0, s.heads, s.kv_heads, 0.2f, keys,
                    alone.out.view.slice(row, n));
          attention_backward(one, p.q.view.slice(row, n), s.heads, s.kv_heads, 0.2f, keys,
                             p.dout.view.slice(row, n), alone.dq.view.slice(row, n),
                             alone.at(row, s));
          row += n;
        }
        for (const int threads : {1, 2, 3}) {
          Context ctx(threads, isa);
          const Gradients packed(p, tokens);
          attention_documents(ctx, p.q.view, lengths, s.heads, s.kv_heads, 0.2f, p.keys(0, {}),
                              packed.out.view);
          attention_documents_backward(ctx, p.q.view, lengths, s.heads, s.kv_heads, 0.2f,
                                       p.keys(0, {}), p.dout.view, packed.dq.view, packed.at(0, s));
          expect_same_bits(packed.out.view, alone.out.view);
          expect_same_bits(packed.dq.view, alone.dq.view);
          expect_same_bits(packed.dkey.view, alone.dkey.view);
          expect_same_bits(packed.dvalue.view, alone.dvalue.view);
          if (s.rope_dim > 0) expect_same_bits(packed.drope.view, alone.drope.view);
          EXPECT_TRUE(packed.out.intact() && packed.dq.intact() && packed.dkey.intact() &&
                      packed.dvalue.intact());
        }
      }
    }
  }
}

}  // namespace
}  // namespace fathom
