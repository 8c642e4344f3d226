#include "model/linear.h"

#include "base/check.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "kernels/gemm_backward.h"

namespace fathom {
namespace {

constexpr size_t kMostTogether = 4;  // layers of one x

// Spans over the parts of a layer; a Linear is a group of one expert.
struct Group {
  std::span<const int64_t> offsets;
  std::span<const WeightView> weight, lora_a, lora_b;
  float lora_scale;
};

struct GroupGradient {
  std::span<const Rows> weight, lora_a, lora_b;
};

// Weight gradients are made of bf16 operands where the layer computes with bf16.
DType operands_of(const WeightView& w) {
  return w.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
}

void scale_rows(Rows x, float factor) {
  for (int64_t t = 0; t < x.rows; ++t) {
    for (int64_t i = 0; i < x.cols; ++i) x.row(t)[i] *= factor;
  }
}

void add_lora(Context& ctx, ConstRows x, const Group& g, Rows y) {
  if (g.lora_a.empty()) return;
  ArenaScope scope(ctx.scratch());
  const Rows inner = scope.rows(x.rows, g.lora_a[0].rows);
  const Rows update = scope.rows(y.rows, y.cols);
  grouped_linear(ctx, x, g.offsets, g.lora_a, inner);
  scale_rows(inner, g.lora_scale);
  grouped_linear(ctx, inner, g.offsets, g.lora_b, update);
  add(ctx, update, y);
}

void group_backward(Context& ctx, ConstRows x, const Group& w, ConstRows dy, const GroupGradient& g,
                    Rows dx) {
  grouped_linear_backward_input(ctx, dy, w.offsets, w.weight, dx);
  if (!g.weight.empty()) {
    grouped_linear_backward_weight(ctx, dy, x, w.offsets, operands_of(w.weight[0]), g.weight);
  }
  if (w.lora_a.empty()) return;
  ArenaScope scope(ctx.scratch());
  const int64_t rank = w.lora_a[0].rows;
  const Rows inner = scope.rows(x.rows, rank), dinner = scope.rows(x.rows, rank);
  const Rows update = scope.rows(dx.rows, dx.cols);
  grouped_linear(ctx, x, w.offsets, w.lora_a, inner);
  scale_rows(inner, w.lora_scale);
  grouped_linear_backward_weight(ctx, dy, inner, w.offsets, operands_of(w.lora_b[0]), g.lora_b);
  grouped_linear_backward_input(ctx, dy, w.offsets, w.lora_b, dinner);
  scale_rows(dinner, w.lora_scale);
  grouped_linear_backward_weight(ctx, dinner, x, w.offsets, operands_of(w.lora_a[0]), g.lora_a);
  grouped_linear_backward_input(ctx, dinner, w.offsets, w.lora_a, update);
  add(ctx, update, dx);
}

// One element if there is a weight, else none.
template <class View>
std::span<const View> one(const View& view) {
  return {&view, view.data == nullptr ? size_t{0} : size_t{1}};
}

Group group_of(const Linear& w, std::span<const int64_t> offsets) {
  return {offsets, one(w.weight), one(w.lora_a), one(w.lora_b), w.lora_scale};
}

void observe(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
             std::span<const WeightView> w) {
  if (!ctx.input_observer()) return;
  for (size_t i = 0; i < w.size(); ++i)
    ctx.input_observer()(w[i], {x.row(offsets[i]), offsets[i + 1] - offsets[i], x.cols, x.stride});
}

}  // namespace

void heads_forward(Context& ctx, ConstRows x, int64_t x_head, std::span<const WeightView> heads,
                   Rows y, int64_t y_head) {
  for (int64_t h = 0; ctx.input_observer() && h < std::ssize(heads); ++h) {
    ctx.input_observer()(heads[static_cast<size_t>(h)],
                         {x.data + h * x_head, x.rows, x.cols, x.stride});
  }
  head_linears(ctx, x, x_head, heads, y, y_head);
}

void linear_forward(Context& ctx, ConstRows x, const Linear& w, const float* bias, Rows y) {
  linears_forward(ctx, x, {{w, bias, y}});
}

void linears_forward(Context& ctx, ConstRows x, std::initializer_list<LinearOutput> outputs) {
  const int64_t offsets[] = {0, x.rows};
  LinearPart parts[kMostTogether];
  size_t count = 0;
  FATHOM_CHECK(outputs.size() <= kMostTogether, outputs.size());
  for (const LinearOutput& o : outputs) {
    if (ctx.input_observer()) ctx.input_observer()(o.w.weight, x);
    parts[count++] = {{&o.w.weight, 1}, o.bias, o.y};
  }
  grouped_linears(ctx, x, offsets, {parts, count});
  for (const LinearOutput& o : outputs) add_lora(ctx, x, group_of(o.w, offsets), o.y);
}

void experts_forward(Context& ctx, ConstRows x, std::span<const int64_t> offsets, const Experts& w,
                     Rows y) {
  experts_forward(ctx, x, offsets, {{w, y}});
}

void experts_forward(Context& ctx, ConstRows x, std::span<const int64_t> offsets,
                     std::initializer_list<ExpertsOutput> outputs) {
  LinearPart parts[kMostTogether];
  size_t count = 0;
  FATHOM_CHECK(outputs.size() <= kMostTogether, outputs.size());
  for (const ExpertsOutput& o : outputs) {
    observe(ctx, x, offsets, o.w.weight);
    parts[count++] = {o.w.weight, nullptr, o.y};
  }
  grouped_linears(ctx, x, offsets, {parts, count});
  for (const ExpertsOutput& o : outputs)
    add_lora(ctx, x, {offsets, o.w.weight, o.w.lora_a, o.w.lora_b, o.w.lora_scale}, o.y);
}

void linear_backward(Context& ctx, ConstRows x, const Linear& w, ConstRows dy,
                     const LinearGradient& g, Rows dx) {
  const int64_t offsets[] = {0, x.rows};
  group_backward(ctx, x, group_of(w, offsets), dy, {one(g.weight), one(g.lora_a), one(g.lora_b)},
                 dx);
}

void experts_backward(Context& ctx, ConstRows x, std::span<const int64_t> offsets, const Experts& w,
                      ConstRows dy, const ExpertsGradient& g, Rows dx) {
  group_backward(ctx, x, {offsets, w.weight, w.lora_a, w.lora_b, w.lora_scale}, dy,
                 {g.weight, g.lora_a, g.lora_b}, dx);
}

}  // namespace fathom
