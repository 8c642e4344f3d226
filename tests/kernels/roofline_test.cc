#include "kernels/roofline.h"

#include <gtest/gtest.h>

#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

// Bounds wide enough for any machine and a loaded host: they catch a loop that the compiler
// removed, a forgotten factor of the units, and a read that never left the cache.
TEST(Roofline, EveryFigureIsPossible) {
  for (const Isa isa : reference::instruction_sets()) {
    Context ctx(2, isa);
    const Roofs roofs = measure_roofs(ctx, 0.1);
    SCOPED_TRACE(isa_name(isa));
    for (double flops : {roofs.f32_flops, roofs.bf16_flops}) {
      EXPECT_GT(flops, 5e7);
      EXPECT_LT(flops, 2 * 6e9 * 512);  // two cores, 6 GHz, four 512-bit bf16 dot products a cycle
    }
    EXPECT_GT(roofs.read_bytes, 1e7);
    EXPECT_LT(roofs.read_bytes, 1e12);
    if (isa == Isa::kPortable) {
      EXPECT_EQ(roofs.int8_ops, 0);
    } else {
      EXPECT_GT(roofs.int8_ops, 5e7);
      EXPECT_LT(roofs.int8_ops, 2 * 6e9 * 1024);
    }
  }
}

}  // namespace
}  // namespace fathom
