// Plain twins of rms_norm.h, rope.h, elementwise.h, softmax.h, router.h, moe_permute.h and
// attention.h: double, loops, dense results [rows, cols], no blocks, no scratch. Each follows the
// formula of its header and nothing else.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cached_rows.h"
#include "kernels/rope.h"
#include "kernels/router.h"
#include "tensor/view.h"

namespace fathom::reference {

std::vector<double> rms_norm_ref(ConstRows x, const float* weight, double eps);

// [positions, inv_freq.size() * 2]
std::vector<double> rope_angles_ref(std::span<const int32_t> positions,
                                    std::span<const double> inv_freq, double magnitude);
std::vector<double> rope_ref(ConstRows cos_sin, RopeLayout layout, int64_t heads,
                             int64_t head_stride, int64_t offset, ConstRows x);

std::vector<double> swiglu_ref(ConstRows gate, ConstRows up);

std::vector<double> log_sum_exp_ref(ConstRows x);

struct RouteRef {
  std::vector<int32_t> experts;  // [T, k]
  std::vector<double> weights;   // [T, k]
};
// Literally the steps of V2 §2.2 and V3 §2.1.2, by sorting. REQUIRES: no NaN.
RouteRef route_ref(const RouterRule& rule, ConstRows logits, const float* e_score_correction_bias);

// inout + the weighted sum of each token's k rows of y; position as in moe_permute.h.
std::vector<double> scatter_add_weighted_ref(ConstRows y, std::span<const int64_t> position,
                                             std::span<const float> weights, ConstRows inout);

struct AttentionRef {
  std::vector<double> out;     // [T, num_attention_heads * value.dim]
  std::vector<double> bounds;  // of attention.h, for that precision
};
AttentionRef attention_ref(ConstRows q, int64_t position, int64_t num_attention_heads,
                           int64_t num_key_value_heads, double scale, const AttentionKeys& keys,
                           Precision precision = Precision::kNative);

}  // namespace fathom::reference
