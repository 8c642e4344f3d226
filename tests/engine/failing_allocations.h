// A life of an engine in which every allocation of every step fails once.
#pragma once

#include "tests/base/count_allocations.h"
#include "tests/engine/traces.h"

namespace fathom {

// The next try goes on as if nothing had been: every request ends as alone.
inline void expect_solo_results_despite_failures(Engine& engine,
                                                 const std::vector<Request>& requests,
                                                 const std::vector<Outcome>& solo) {
  std::map<uint64_t, size_t> index;
  for (size_t g = 0; g < requests.size(); ++g) index[engine.submit(requests[g])] = g;
  std::vector<Outcome> found(requests.size());
  int failures = 0;
  for (bool busy = true; busy;) {
    std::vector<TokenEvent> events;
    for (int64_t n = 0;; ++n) {
      failing_allocation = allocations + n;
      try {
        busy = engine.step(events);
        failing_allocation = -1;
        break;
      } catch (const std::bad_alloc&) {
        failing_allocation = -1;
        ++failures;
        ASSERT_TRUE(events.empty());
        engine.check();
      }
    }
    engine.check();
    for (const TokenEvent& event : events) add(found[index.at(event.request)], event);
  }
  for (size_t g = 0; g < requests.size(); ++g) EXPECT_EQ(found[g], solo[g]) << g;
  EXPECT_GT(failures, 100);
}

}  // namespace fathom
