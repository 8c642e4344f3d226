// Element-wise operations on rows.
#pragma once

#include "tensor/context.h"
#include "tensor/view.h"

namespace fathom {

// out = silu(gate) * up, silu(g) = g / (1 + e^-g). [T, I] each; out may be gate or up. Error: 8 u
// |out|, u = 2^-24; for g < -88.7, where |silu| < 1e-36, the result is -0.
void swiglu(Context& ctx, ConstRows gate, ConstRows up, Rows out);

// With s = 1 / (1 + e^-gate):  dgate = dy up s (1 + gate (1 - s)),  dup = dy gate s. [T, I] each.
// dgate and dup may each be any one of gate, up and dy, but not the same one. Error: of dgate 32 u
// |dy up| s (1 + |gate| (1 - s)) + 2^-118 |dy up|, of dup 8 u |dup| + 2^-118 |dy|.
// An infinite gate gives NaN.
void swiglu_backward(Context& ctx, ConstRows gate, ConstRows up, ConstRows dy, Rows dgate,
                     Rows dup);

// inout += x (the residual connection).
void add(Context& ctx, ConstRows x, Rows inout);

// Contiguous copy of n values to bf16 (nearest even; NaN stays NaN) and back.
void to_bf16(Isa isa, const float* x, int64_t n, bf16* out);
void from_bf16(Isa isa, const bf16* x, int64_t n, float* out);

}  // namespace fathom
