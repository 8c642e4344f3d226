// label: slow
// Ten thousand random lives of an engine, both kinds of attention, every request pool another.
#include "tests/engine/simulation.h"

namespace fathom {
namespace {

TEST(Simulation, EveryTextOfTenThousandTracesIsTheSoloText) {
  SimulationCounts counts;
  const char* names[] = {"v3", "qwen2", "v2", "llama3", "moonlight"};
  for (uint64_t part = 0; part < 50; ++part) {
    const Model model = load_tiny(names[part % std::size(names)]);
    Context one(1), two(2);
    const RequestPool pool(model, one, 2 + part, 40);
    ASSERT_NO_FATAL_FAILURE(
        simulate(model, one, two, pool, 1000 + 200 * part, 1200 + 200 * part, counts))
        << names[part % std::size(names)];
  }
  EXPECT_EQ(counts.traces, 10'000);
  printf("%ld traces, %ld requests, %ld cancelled, %ld preemptions, %ld rows from the cache\n",
         counts.traces, counts.requests, counts.cancelled, counts.preemptions,
         counts.cached_tokens);
}

}  // namespace
}  // namespace fathom
