#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <utility>

#include "base/check.h"
#include "base/error.h"

namespace fathom {
namespace {

// Some 20 µs of spinning: longer than the gap between two loops of a decode step, far shorter than
// a user notices.
constexpr int kSpins = 500;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  FATHOM_CHECK(threads >= 1, threads);
  try {
    for (int w = 1; w < threads; ++w) workers_.emplace_back([this, w] { worker_loop(w); });
  } catch (const std::exception& error) {  // std::system_error or bad_alloc: the ones that started
                                           // must not be left waiting
    stop();
    fail_resource("threads: started {} of {}: {}", workers_.size() + 1, threads, error.what());
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  {
    const std::lock_guard lock(mutex_);
    stop_.store(true);
    ticket_.store(uint64_t{current_loop() + 1} << 32);
  }
  wake_.notify_all();
  for (std::thread& t : workers_) t.join();
}

void ThreadPool::work(int worker, uint32_t loop) {
  while (true) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    const auto left = static_cast<int64_t>(ticket & 0xffffffff);
    if (static_cast<uint32_t>(ticket >> 32) != loop || left == 0) return;
    const Call call = call_.load(std::memory_order_relaxed);
    void* const body = body_.load(std::memory_order_relaxed);
    const int64_t item = items_.load(std::memory_order_relaxed) - left;
    // If the ticket is unchanged, an item of this loop is open: the caller still waits for it, so
    // what we read is this loop's.
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
    if (!failed_.load(std::memory_order_relaxed)) {
      try {
        call(body, item, worker);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!failed_.exchange(true)) error_ = std::current_exception();
      }
    }
    done_.fetch_add(1, std::memory_order_release);
  }
}

void ThreadPool::run_erased(int64_t items, Call call, void* body) {
  FATHOM_CHECK(items < int64_t{1} << 32, items);
  if (items <= 0) return;
  call_.store(call, std::memory_order_relaxed);
  body_.store(body, std::memory_order_relaxed);
  items_.store(items, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  const uint32_t loop = current_loop() + 1;
  ticket_.store(uint64_t{loop} << 32 | static_cast<uint64_t>(items));
  // Sequentially consistent with worker_loop: either we see the sleeper, or it sees the new ticket.
  if (items > 1 && sleepers_.load() > 0) {
    { const std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  work(0, loop);
  for (int spin = 0; done_.load(std::memory_order_acquire) != items; ++spin) {
    spin < kSpins ? relax() : std::this_thread::yield();
  }
  if (failed_.load()) {
    failed_.store(false);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void ThreadPool::worker_loop(int worker) {
  uint32_t seen = 0;
  while (true) {
    for (int spin = 0; current_loop() == seen && spin < kSpins; ++spin) relax();
    if (current_loop() == seen) {
      std::unique_lock lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, [&] { return current_loop() != seen; });
      sleepers_.fetch_sub(1);
    }
    seen = current_loop();
    if (stop_.load()) return;
    work(worker, seen);
  }
}

int available_cores(const std::filesystem::path& root) {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cores = sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
  // A container's share of processor time, "quota period" in microseconds, "max" without a limit.
  const auto limit = [&](const std::filesystem::path& quota_file,
                         const std::filesystem::path& period_file) {
    std::ifstream quota_in(root / quota_file), period_in(root / period_file);
    double quota = 0, period = 0;
    if (quota_file == period_file) {
      quota_in >> quota >> period;
    } else {
      quota_in >> quota;
      period_in >> period;
    }
    if (quota > 0 && period > 0)
      cores = std::min(cores, std::max(1, static_cast<int>(std::ceil(quota / period))));
  };
  limit("sys/fs/cgroup/cpu.max", "sys/fs/cgroup/cpu.max");
  limit("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/cpu.cfs_period_us");
  return cores;
}

}  // namespace fathom
