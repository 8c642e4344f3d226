// A fixed set of threads that run the items of one loop at a time.
//
// Work is cut by the caller so that every result is made whole within one item and in an order of
// its shape: whoever runs it, and however many items there are, the bits are the same. Items are
// handed out dynamically, so uneven items balance. Between loops workers spin briefly, then sleep:
// thousands of loops per token are cheap, an idle process costs nothing.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace fathom {

class ThreadPool {
 public:
  // `threads` >= 1 counts the calling thread. Throws (exit code 3) if the system does not give so
  // many.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls body(item, worker) once for each item in [0, items), worker in [0, threads()); returns
  // when all are done. The first exception of any item is rethrown here, after all running items
  // have ended. Not reentrant: one caller thread, no nested run. Allocates nothing.
  template <class Body>
  void run(int64_t items, Body&& body) {
    using Plain = std::remove_reference_t<Body>;
    run_erased(
        items, [](void* b, int64_t item, int worker) { (*static_cast<Plain*>(b))(item, worker); },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

  // The same, but a worker takes items that follow each other, which pays where these lie one
  // behind the other in memory: each begins with its own stretch of the items; who has come to its
  // end takes the last item of the longest stretch left. body(item, worker, follows): whether this
  // worker's last item was the one before.
  template <class Body>
  void run_in_stretches(int64_t items, Body&& body) {
    if (items <= 0) return;
    make_stretches(items);
    run(items < threads() ? items : threads(), [&](int64_t, int worker) {
      int64_t last = -1;
      for (int64_t item; !failed_.load(std::memory_order_relaxed) &&
                         (item = take(static_cast<size_t>(worker))) >= 0;
           last = item)
        body(item, worker, last >= 0 && item == last + 1);
    });
  }

 private:
  using Call = void (*)(void*, int64_t, int);
  void run_erased(int64_t items, Call call, void* body);
  void work(int worker, uint32_t loop);
  void make_stretches(int64_t items);
  int64_t take(size_t own);  // -1: none left
  void worker_loop(int worker);
  void stop();
  uint32_t current_loop() const { return static_cast<uint32_t>(ticket_.load() >> 32); }

  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;

  // Loop number (upper half) and items left (lower half) in one word: whoever counts it down owns
  // that item of that loop. A worker that comes late finds 0 left and touches nothing, so the
  // caller need not wait for workers that sleep.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<Call> call_{nullptr};
  std::atomic<void*> body_{nullptr};
  std::atomic<int64_t> items_{0};
  std::atomic<int64_t> done_{0};
  std::atomic<int> sleepers_{0};
  // Of each thread: the items from the lower half on up to, not with, the upper half. Only touched
  // by items of the loop under way, so nobody comes late.
  struct alignas(64) Stretch {
    std::atomic<uint64_t> items{0};
  };
  std::unique_ptr<Stretch[]> stretches_;  // [threads()]
  std::atomic<bool> stop_{false};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

// Cores this process may use: its affinity, narrowed by its container's share of processor time
// (cgroup version 1 or 2, as the container sees it). At least 1. `root` stands for "/": tests give
// a made-up tree.
int available_cores(const std::filesystem::path& root = "/");

}  // namespace fathom
