#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/error.h"

namespace fathom {
namespace {

// Longer than what one thread does alone between two loops of a decode step (attention over a short
// context, sampling), far shorter than a user notices. Waking a sleeper takes 20 to 50 µs in a
// guest.
constexpr double kSpinSeconds = 200e-6;
constexpr int kSpinsPerLook = 64;  // at the clock
constexpr int kSpinsBeforeYield = 500;

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads)
    : stretches_(std::make_unique<Stretch[]>(static_cast<size_t>(std::max(threads, 1)))) {
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
  // A processor of its own is not certain: whoever has the last item may need this one.
  for (int spin = 0; done_.load(std::memory_order_acquire) != items; ++spin) {
    spin < kSpinsBeforeYield ? relax() : std::this_thread::yield();
  }
  if (failed_.load()) {
    failed_.store(false);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }
}

void ThreadPool::make_stretches(int64_t items) {
  FATHOM_CHECK(items >= 0 && items < int64_t{1} << 32, items);
  uint64_t begin = 0;
  for (int t = 0; t < threads(); ++t) {
    const uint64_t end = static_cast<uint64_t>(items) * static_cast<uint64_t>(t + 1) /
                         static_cast<uint64_t>(threads());
    stretches_[static_cast<size_t>(t)].items.store(end << 32 | begin, std::memory_order_relaxed);
    begin = end;
  }
}

int64_t ThreadPool::take(size_t own) {
  const auto begin_of = [](uint64_t stretch) { return static_cast<int64_t>(stretch & 0xffffffff); };
  const auto end_of = [](uint64_t stretch) { return static_cast<int64_t>(stretch >> 32); };
  constexpr auto kOrder = std::memory_order_relaxed;  // an item's data is the loop's
  std::atomic<uint64_t>& mine = stretches_[own].items;
  for (uint64_t stretch = mine.load(kOrder); begin_of(stretch) < end_of(stretch);) {
    if (mine.compare_exchange_weak(stretch, stretch + 1, kOrder)) return begin_of(stretch);
  }
  while (true) {
    size_t longest = own;
    uint64_t stretch = 0;
    for (size_t t = 0; t < static_cast<size_t>(threads()); ++t) {
      const uint64_t other = stretches_[t].items.load(kOrder);
      if (end_of(other) - begin_of(other) > end_of(stretch) - begin_of(stretch)) {
        longest = t;
        stretch = other;
      }
    }
    if (stretch == 0) return -1;
    if (stretches_[longest].items.compare_exchange_weak(stretch, stretch - (uint64_t{1} << 32),
                                                        kOrder))
      return end_of(stretch) - 1;
  }
}

void ThreadPool::worker_loop(int worker) {
  uint32_t seen = 0;
  while (true) {
    const double begin = seconds_now();
    for (int spin = 1; current_loop() == seen; ++spin) {
      relax();
      if (spin % kSpinsPerLook == 0 && seconds_now() - begin > kSpinSeconds) break;
    }
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
