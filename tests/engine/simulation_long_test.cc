// label: slow
// Ten thousand random lives of an engine, both kinds of attention, fifty pools of requests; half of
// the pools in fast mode, where the model has one.
#include "tests/engine/simulation.h"

namespace fathom {
namespace {

class LongSimulation : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Tiny, LongSimulation,
                         testing::Values("v3", "qwen2", "v2", "llama3", "moonlight"));

TEST_P(LongSimulation, EveryTextOfTwoThousandTracesIsTheSoloText) {
  SimulationCounts counts;
  const Model model = load_tiny(GetParam());
  const uint64_t stream = static_cast<uint64_t>(GetParam()[0] * 256 + GetParam()[1]) * 100;
  for (uint64_t part = 0; part < 10; ++part) {
    Context one(1), two(2);
    const RequestPool pool(model, one, stream + part, 40, part % 2 == 0 ? 0 : 24);
    const uint64_t first = 1000 * (stream + part);
    ASSERT_NO_FATAL_FAILURE(simulate(model, one, two, pool, first, first + 200, counts));
  }
  EXPECT_EQ(counts.traces, 2'000);
  EXPECT_GT(counts.requests, 4'000);
  EXPECT_GT(counts.cancelled, 200);
  EXPECT_GT(counts.preemptions, 100);
  EXPECT_GT(counts.cached_tokens, 100'000);
  EXPECT_GT(counts.tails, 4'000);
  EXPECT_GT(counts.stored_blocks, 100);
  EXPECT_GT(counts.stored_rows, 100);
  EXPECT_GT(counts.accepted, 10'000);
  EXPECT_GT(counts.drafted, counts.accepted + 10'000);
}

}  // namespace
}  // namespace fathom
