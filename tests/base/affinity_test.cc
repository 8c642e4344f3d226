#include "base/affinity.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <set>
#include <thread>
#include <vector>

namespace fathom {
namespace {

// Processors that the calling thread may use.
std::set<int> processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  EXPECT_EQ(pthread_getaffinity_np(pthread_self(), sizeof set, &set), 0);
  std::set<int> list;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) list.insert(i);
  }
  return list;
}

TEST(Affinity, WorkerWIsOnTheWthProcessorAllowedCountedAround) {
  const std::set<int> set = processors();
  const std::vector<int> allowed(set.begin(), set.end());
  for (const int threads : {1, 2, 5}) {
    std::thread caller([&] {  // which stays pinned
      ThreadPool pool(threads);
      pin_threads(pool);
      std::atomic<int> waiting = threads;  // each worker holds its item until all have one
      pool.run(threads, [&](int64_t, int worker) {
        EXPECT_EQ(processors(), std::set{allowed[static_cast<size_t>(worker) % allowed.size()]});
        --waiting;
        while (waiting > 0) std::this_thread::yield();
      });
    });
    caller.join();
  }
}

}  // namespace
}  // namespace fathom
