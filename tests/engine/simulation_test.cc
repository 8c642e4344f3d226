// A few hundred random lives of an engine; simulation_long_test.cc has ten thousand.
#include "tests/engine/simulation.h"

namespace fathom {
namespace {

TEST(Simulation, EveryTextIsTheSoloTextAndNoBlockIsLost) {
  SimulationCounts counts;
  for (const auto& [name, expand_by] : {std::pair{"v3", 0}, {"qwen2", 0}, {"v3", 24}}) {
    const Model model = load_tiny(name);
    Context one(1), two(2);
    const RequestPool pool(model, one, 1, 40, expand_by);
    ASSERT_NO_FATAL_FAILURE(simulate(model, one, two, pool, 0, 100, counts)) << name;
  }
  // It did what it is for.
  EXPECT_EQ(counts.traces, 300);
  EXPECT_GT(counts.requests, 600);
  EXPECT_GT(counts.cancelled, 50);
  EXPECT_GT(counts.preemptions, 10);
  EXPECT_GT(counts.cached_tokens, 10'000);
  EXPECT_GT(counts.tails, 500);
  EXPECT_GT(counts.stored_blocks, 20);
  EXPECT_GT(counts.stored_rows, 20);
  EXPECT_GT(counts.accepted, 1'000);
  EXPECT_GT(counts.drafted, counts.accepted + 1'000);
}

}  // namespace
}  // namespace fathom
