#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/error.h"

namespace fathom {
namespace {

TEST(ThreadPool, EveryItemRunsExactlyOnceByAWorkerOfThePool) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (const int64_t items : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(items));
      std::atomic<bool> worker_in_range = true;
      pool.run(items, [&](int64_t item, int worker) {
        runs[static_cast<size_t>(item)].fetch_add(1);
        if (worker < 0 || worker >= threads) worker_in_range = false;
      });
      for (const auto& n : runs)
        ASSERT_EQ(n.load(), 1) << threads << " threads, " << items << " items";
      EXPECT_TRUE(worker_in_range);
    }
  }
}

TEST(ThreadPool, RunReturnsOnlyAfterTheSlowestItem) {
  ThreadPool pool(2);
  std::atomic<int> begun = 0;
  std::atomic<int> done = 0;
  pool.run(2, [&](int64_t, int worker) {
    ++begun;
    const double deadline =
        seconds_now() +
        2;  // both threads hold an item, or the machine is too busy to show anything
    while (begun < 2 && seconds_now() < deadline) std::this_thread::yield();
    if (worker != 0) std::this_thread::sleep_for(std::chrono::milliseconds(30));
    ++done;
  });
  EXPECT_EQ(done, 2);
}

TEST(ThreadPool, StretchesHoldEveryItemOnceInOrderForEachWorker) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const int64_t items : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(items));
      std::vector<int64_t> last(static_cast<size_t>(threads), -2);
      std::atomic<bool> right = true;
      pool.run_in_stretches(items, [&](int64_t item, int worker, bool follows) {
        runs[static_cast<size_t>(item)].fetch_add(1);
        int64_t& before = last[static_cast<size_t>(worker)];
        if (follows && item != before + 1) right = false;
        before = item;
      });
      for (const auto& n : runs)
        ASSERT_EQ(n.load(), 1) << threads << " threads, " << items << " items";
      EXPECT_TRUE(right);
    }
  }
  ThreadPool alone(1);
  int64_t following = 0;
  alone.run_in_stretches(10, [&](int64_t, int, bool follows) { following += follows; });
  EXPECT_EQ(following, 9);
}

// Whoever is held up by its first item leaves the rest of its stretch to others.
TEST(ThreadPool, OthersTakeWhatASlowWorkerHasLeft) {
  constexpr int64_t kItems = 40;
  ThreadPool pool(2);
  std::atomic<int64_t> done = 0;
  pool.run_in_stretches(kItems, [&](int64_t item, int, bool) {
    const double deadline = seconds_now() + 10;
    while (item == 0 && done < kItems - 1 && seconds_now() < deadline) std::this_thread::yield();
    if (item == 0) {
      EXPECT_EQ(done, kItems - 1);
    }
    ++done;
  });
  EXPECT_EQ(done, kItems);
}

TEST(ThreadPool, AnExceptionInAStretchReachesTheCallerAndThePoolStaysUsable) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    EXPECT_THROW(pool.run_in_stretches(30,
                                       [&](int64_t item, int, bool) {
                                         if (item == 11) throw std::runtime_error("11");
                                       }),
                 std::runtime_error);
    std::atomic<int> runs = 0;
    pool.run_in_stretches(30, [&](int64_t, int, bool) { ++runs; });
    EXPECT_EQ(runs, 30);
  }
}

TEST(ThreadPool, OneWorkerNeverRunsTwoItemsAtATime) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> busy(4);
  std::atomic<bool> clash = false;
  pool.run(2000, [&](int64_t, int worker) {
    if (busy[static_cast<size_t>(worker)].fetch_add(1) != 0) clash = true;
    busy[static_cast<size_t>(worker)].fetch_sub(1);
  });
  EXPECT_FALSE(clash);
}

TEST(ThreadPool, WritesOfTheItemsAreVisibleAfterEachOfManyLoops) {
  ThreadPool pool(3);
  std::vector<int64_t> plain(
      64);  // not atomic: a missing synchronisation is a data race under TSan
  for (int64_t loop = 1; loop <= 3000; ++loop) {
    pool.run(64, [&](int64_t item, int) { plain[static_cast<size_t>(item)] += item; });
    for (int64_t i = 0; i < 64; ++i) ASSERT_EQ(plain[static_cast<size_t>(i)], i * loop);
  }
}

TEST(ThreadPool, ALateWorkerTakesNoItemOfALongerLoopTwice) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> runs(64);
  for (int loop = 0; loop < 4000; ++loop) {
    const int64_t items = loop % 2 == 0 ? 2 : 64;
    for (auto& n : runs) n = 0;
    pool.run(items, [&](int64_t item, int) { ++runs[static_cast<size_t>(item)]; });
    for (int64_t i = 0; i < 64; ++i)
      ASSERT_EQ(runs[static_cast<size_t>(i)], i < items ? 1 : 0)
          << "loop " << loop << ", item " << i;
  }
}

TEST(ThreadPool, WorkersWakeAgainAfterTheyFellAsleep) {
  ThreadPool pool(3);
  for (int loop = 0; loop < 3; ++loop) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> count = 0;
    pool.run(100, [&](int64_t, int) { ++count; });
    EXPECT_EQ(count, 100);
  }
}

TEST(ThreadPool, AnExceptionOfAnItemReachesTheCallerAndThePoolStaysUsable) {
  for (const int threads : {1, 2, 4}) {
    ThreadPool pool(threads);
    for (const int64_t bad : {0, 17, 99}) {
      std::atomic<int> running = 0;
      std::string caught;
      try {
        pool.run(100, [&](int64_t item, int) {
          ++running;
          if (item == bad) {
            --running;
            throw std::runtime_error("item " + std::to_string(item));
          }
          --running;
        });
      } catch (const std::runtime_error& error) {
        caught = error.what();
        EXPECT_EQ(running, 0);  // handed over only after all running items have ended
      }
      EXPECT_EQ(caught, "item " + std::to_string(bad));
      std::atomic<int> count = 0;
      pool.run(100, [&](int64_t, int) { ++count; });
      EXPECT_EQ(count, 100);
    }
  }
}

TEST(ThreadPool, WhenEveryItemThrowsOneExceptionArrives) {
  ThreadPool pool(4);
  for (int loop = 0; loop < 200; ++loop) {
    EXPECT_THROW(pool.run(8, [](int64_t, int) { throw std::runtime_error("all"); }),
                 std::runtime_error);
  }
}

TEST(ThreadPool, AContainersShareOfProcessorTimeLimitsTheCores) {
  const std::filesystem::path root = std::filesystem::path(testing::TempDir()) / "fathom-cores";
  const auto with = [&](const std::string& file, const std::string& text) {
    std::filesystem::create_directories((root / file).parent_path());
    std::ofstream(root / file) << text;
    return available_cores(root);
  };
  const int all = with("sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_GE(all, 1);
  EXPECT_EQ(with("sys/fs/cgroup/cpu.max", "50000 100000\n"), 1);
  EXPECT_EQ(with("sys/fs/cgroup/cpu.max", "150000 100000\n"), std::min(all, 2));
  EXPECT_EQ(with("sys/fs/cgroup/cpu.max", "garbage"), all);
  with("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(with("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n"), all);
  EXPECT_EQ(with("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "100000\n"), 1);
  std::filesystem::remove_all(root);
}

// In the child: room for some hundred stacks of 8 MiB, then 4000 threads are asked for.
[[noreturn]] void ask_for_too_many_threads() {
  const rlimit limit{size_t{1} << 30, size_t{1} << 30};
  setrlimit(RLIMIT_AS, &limit);
  try {
    ThreadPool pool(4000);
  } catch (const Error& error) {
    _exit(static_cast<int>(error.code()));
  }
  _exit(0);
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)  // gcc
#define FATHOM_SANITIZER 1
#elif defined(__has_feature)  // clang
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define FATHOM_SANITIZER 1
#endif
#endif

TEST(ThreadPoolDeathTest, MoreThreadsThanTheSystemGivesIsAnErrorNotAHang) {
#if defined(FATHOM_SANITIZER)
  GTEST_SKIP() << "sanitizers themselves end the program where memory for threads is short";
#endif
  EXPECT_EXIT(ask_for_too_many_threads(), testing::ExitedWithCode(3), "");
}

TEST(ThreadPool, AvailableCoresIsAtLeastOne) { EXPECT_GE(available_cores(), 1); }

}  // namespace
}  // namespace fathom
