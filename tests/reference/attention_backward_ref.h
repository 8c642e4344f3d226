// Plain twin of attention_backward.h: double, loops, dense results, the softmax gradient by its
// definition
// (dout · out).
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/attention.h"
#include "tensor/view.h"

namespace fathom::reference {

struct Gradient {
  explicit Gradient(int64_t size)
      : value(static_cast<size_t>(size)), bounds(static_cast<size_t>(size)) {}
  std::vector<double> value;
  std::vector<double> bounds;  // of attention_backward.h
};

struct AttentionBackwardRef {
  Gradient dq;         // as q
  Gradient dkey;       // [T, num_key_value_heads * key.dim]
  Gradient dkey_rope;  // [T, key_rope.dim]
  Gradient dvalue;     // [T, num_key_value_heads * value.dim]
};
AttentionBackwardRef attention_backward_ref(ConstRows q, int64_t num_attention_heads,
                                            int64_t num_key_value_heads, double scale,
                                            const AttentionKeys& keys, ConstRows dout);

}  // namespace fathom::reference
