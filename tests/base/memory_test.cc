#include "base/memory.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace fathom {
namespace {

namespace fs = std::filesystem;

// A made-up machine with 8 GiB available.
class Machine {
 public:
  Machine()
      : root_(fs::temp_directory_path() / ("fathom_memory_test_" + std::to_string(getpid()))) {
    write("proc/meminfo",
          "MemTotal:       16777216 kB\nMemFree:         1024 kB\nMemAvailable:    8388608 "
          "kB\nBuffers: 7 "
          "kB\n");
  }
  ~Machine() { fs::remove_all(root_); }
  void write(const std::string& path, const std::string& text) {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text;
  }
  uint64_t available_mib() const { return available_memory(root_).value() >> 20; }
  const fs::path& root() const { return root_; }

 private:
  fs::path root_;
};

TEST(AvailableMemory, IsWhatTheKernelSaysWithoutAContainer) {
  const Machine machine;
  EXPECT_EQ(machine.available_mib(), 8192u);
}

TEST(AvailableMemory, IsUnknownWithoutTheKernelsFigures) {
  EXPECT_FALSE(available_memory("/nonexistent"));
  Machine machine;
  machine.write("proc/meminfo", "MemAvailable: much kB\n");
  EXPECT_FALSE(available_memory(machine.root()));
}

TEST(AvailableMemory, StopsAtTheTightestGroupAbove) {
  Machine machine;
  machine.write("proc/self/cgroup", "0::/a/b\n");
  machine.write("sys/fs/cgroup/a/b/memory.max", "max\n");
  EXPECT_EQ(machine.available_mib(), 8192u);
  machine.write("sys/fs/cgroup/a/memory.max", std::to_string(1000 << 20) + "\n");
  machine.write("sys/fs/cgroup/a/memory.current", std::to_string(400 << 20) + "\n");
  EXPECT_EQ(machine.available_mib(), 600u);
  // Page cache of the group can be dropped, shared memory and anonymous pages cannot.
  machine.write("sys/fs/cgroup/a/memory.stat", "anon 1\nfile 9\ninactive_file " +
                                                   std::to_string(100 << 20) + "\nactive_file " +
                                                   std::to_string(50 << 20) + "\nshmem 7\n");
  EXPECT_EQ(machine.available_mib(), 750u);
  machine.write("sys/fs/cgroup/a/memory.current", std::to_string(1400u << 20) + "\n");
  EXPECT_EQ(machine.available_mib(), 0u);
}

TEST(AvailableMemory, ReadsTheFirstVersionOfGroupsToo) {
  Machine machine;
  machine.write("proc/self/cgroup", "9:name=systemd:/\n4:cpu,memory:/x\n3:memory:/box\n0::/\n");
  machine.write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", std::to_string(300 << 20));
  machine.write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", std::to_string(100 << 20));
  machine.write("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  EXPECT_EQ(machine.available_mib(), 200u);
}

TEST(AvailableMemory, SeesALimitAtTheMountWhenTheGroupIsHidden) {
  Machine machine;
  machine.write("proc/self/cgroup", "0::/outside/of/this/container\n");
  machine.write("sys/fs/cgroup/memory.max", std::to_string(512 << 20));
  EXPECT_EQ(machine.available_mib(), 512u);
}

TEST(OwnMemory, IsWhatTheProcessLimitLeaves) {
  Machine machine;
  machine.write("proc/self/status", "VmSize:   900000 kB\nVmData:\t  1024 kB\n");
  EXPECT_FALSE(own_memory_left(machine.root()));
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_DATA, &before), 0);
  rlimit limit = before;
  limit.rlim_cur = rlim_t{4} << 30;
  ASSERT_EQ(setrlimit(RLIMIT_DATA, &limit), 0);
  EXPECT_EQ(own_memory_left(machine.root()), (uint64_t{4} << 30) - (uint64_t{1} << 20));
  ASSERT_EQ(setrlimit(RLIMIT_DATA, &before), 0);
}

TEST(ResidentMemory, IsThatOfThisProcess) {
  const uint64_t before = resident_memory().anonymous;
  std::vector<char> more(64 << 20, 1);
  char* volatile kept = more.data();  // or clang leaves them out
  EXPECT_GT(resident_memory().anonymous, before + (32 << 20)) << static_cast<int>(kept[1 << 20]);
  EXPECT_GT(resident_memory().file, 0u);
}

}  // namespace
}  // namespace fathom
