// Loops over packed documents, shared by attention.cc and attention_backward.cc.
#pragma once

#include <algorithm>
#include <span>

#include "base/check.h"
#include "kernels/attention.h"

namespace fathom {

// The part as document rows see it that begin at `row`.
inline CachedPart part_from(CachedPart part, int64_t row) {
  part.data += row_bytes(part.dtype, row * part.row_stride);
  return part;
}

// body(ctx, first row, rows, keys of these rows). Many documents are items of one loop, each on one
// thread; a few long ones take the threads one after the other. The kernels' bits do not depend on
// that.
template <class Body>
void for_documents(Context& ctx, std::span<const int64_t> lengths, int64_t rows,
                   const AttentionKeys& keys, Body body) {
  const auto count = static_cast<int64_t>(lengths.size());
  if (count == 0) return;
  ArenaScope scope(ctx.scratch());
  const int64_t blocks =
      (*std::max_element(lengths.begin(), lengths.end()) + kKeyBlock - 1) / kKeyBlock;
  auto* const block_rows = scope.array<int64_t>(blocks);
  for (int64_t b = 0; b < blocks; ++b) block_rows[b] = b * kKeyBlock;
  auto* const first = scope.array<int64_t>(count + 1);
  first[0] = 0;
  for (int64_t d = 0; d < count; ++d) first[d + 1] = first[d] + lengths[static_cast<size_t>(d)];
  FATHOM_CHECK(first[count] == rows, first[count], rows);

  const auto run = [&](Context& on, int64_t d) {
    const int64_t row = first[d];
    body(on, row, lengths[static_cast<size_t>(d)],
         AttentionKeys{part_from(keys.key, row),
                       part_from(keys.key_rope, row),
                       part_from(keys.value, row),
                       {block_rows, static_cast<size_t>(blocks)}});
  };
  if (count >= 4 * ctx.pool().threads()) {
    ctx.pool().run(count, [&](int64_t d, int worker) { run(ctx.serial(worker), d); });
  } else {
    for (int64_t d = 0; d < count; ++d) run(ctx, d);
  }
}

}  // namespace fathom
