#include "base/affinity.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "base/error.h"

namespace fathom {

void pin_threads(ThreadPool& pool) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (const int error = pthread_getaffinity_np(pthread_self(), sizeof set, &set))
    fail_resource("threads: processors of this process: {}", std::strerror(error));
  std::vector<int> processors;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &set)) processors.push_back(i);
  }
  std::atomic<int> waiting = pool.threads();
  std::atomic<int> failed = 0;
  pool.run(pool.threads(), [&](int64_t, int worker) {
    const int processor = processors[static_cast<size_t>(worker) % processors.size()];
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(processor, &one);
    if (const int error = pthread_setaffinity_np(pthread_self(), sizeof one, &one)) failed = error;
    // Until every worker has an item: so each has one.
    --waiting;
    while (waiting > 0) std::this_thread::yield();
  });
  if (failed != 0) fail_resource("threads: pinning: {}", std::strerror(failed));
}

}  // namespace fathom
