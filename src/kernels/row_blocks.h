// Cuts a loop over rows into work items. Internal to src/kernels. Every output is made whole within
// one item, in an order of its shape alone, so the cut changes no bit.
#pragma once

#include <algorithm>

#include "tensor/context.h"

namespace fathom {

// Enough arithmetic to pay for handing an item to another thread, little enough to balance.
inline constexpr int64_t kItemElements = 8192;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Fewer multiply-adds do not wake other threads.
inline constexpr int64_t kWorthWaking = 1 << 16;

// A loop over items of `multiply_adds` in all, each thread over a stretch of its own: the items
// beside each other write lines of y beside each other, which processors take from each other by
// fetching ahead (512x4096x512 in BF16: 66 instead of 78 % of the roof).
template <class Body>
void run_items(Context& ctx, int64_t multiply_adds, int64_t items, const Body& body) {
  if (multiply_adds > kWorthWaking) {
    return ctx.pool().run_in_stretches(items,
                                       [&](int64_t item, int worker, bool) { body(item, worker); });
  }
  for (int64_t i = 0; i < items; ++i) body(i, 0);
}

// body(row, worker) for every row of `cols` elements.
template <class Body>
void for_rows(Context& ctx, int64_t rows, int64_t cols, Body body) {
  const int64_t step = std::max<int64_t>(1, kItemElements / std::max<int64_t>(1, cols));
  ctx.pool().run((rows + step - 1) / step, [&](int64_t item, int worker) {
    const int64_t end = std::min(rows, (item + 1) * step);
    for (int64_t row = item * step; row < end; ++row) body(row, worker);
  });
}

// body(row, begin, count): the same for element-wise work, where a long row is cut as well.
template <class Body>
void for_row_pieces(Context& ctx, int64_t rows, int64_t cols, Body body) {
  const int64_t pieces = (cols + kItemElements - 1) / kItemElements;
  for_rows(ctx, rows * pieces, std::min(cols, kItemElements), [&](int64_t i, int) {
    const int64_t begin = i % pieces * kItemElements;
    body(i / pieces, begin, std::min(kItemElements, cols - begin));
  });
}

}  // namespace fathom
