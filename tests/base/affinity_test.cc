#include "base/affinity.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <sched.h>

#include <mutex>
#include <set>
#include <thread>

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

TEST(Affinity, EachWorkerHasOneProcessorOfThoseAllowedAndAsManyAsThereAreAreUsed) {
  const std::set<int> allowed = processors();
  for (const int threads : {1, 2, 5}) {
    std::thread caller([&] {  // which stays pinned
      ThreadPool pool(threads);
      pin_threads(pool);
      std::mutex mutex;
      std::set<int> used, workers;
      for (int loop = 0; loop < 300 && static_cast<int>(workers.size()) < threads; ++loop) {
        pool.run(64, [&](int64_t, int worker) {
          const std::set<int> mine = processors();
          EXPECT_EQ(mine.size(), 1u);
          const std::lock_guard lock(mutex);
          used.insert(mine.begin(), mine.end());
          workers.insert(worker);
          std::this_thread::yield();
        });
      }
      EXPECT_EQ(used.size(), std::min(allowed.size(), workers.size()));
      for (const int processor : used) EXPECT_TRUE(allowed.contains(processor));
    });
    caller.join();
  }
}

}  // namespace
}  // namespace fathom
