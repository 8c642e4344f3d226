// The Nth call to the system fails, for every N of a save and of the deletion after it: the
// checkpoint before is never lost.
//
// The functions below take the place of libc's in this program only, for the library's calls too.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <map>
#include <string>

#include "base/error.h"
#include "model/model.h"
#include "tests/base/test_files.h"
#include "tests/model/golden.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/test_rows.h"
#include "train/train_state.h"

namespace {

struct Plan {
  int64_t fail_at = 0;        // this call, counted from 1
  bool from_then_on = false;  // and the same kind of call ever after, as on a disk that stays full
  bool short_writes =
      false;  // only writes are counted, and take half of the bytes instead of failing
};

struct Faults {
  Plan plan;
  bool armed = false;
  int64_t calls = 0;
  std::string failed = {};  // what kind of call it was
  std::map<std::string, int> kinds = {};
} faults;

// True if this call is to fail; sets errno.
bool fails(const char* kind, int error) {
  const Plan& plan = faults.plan;
  if (!faults.armed || (plan.short_writes && std::string(kind) != "write")) return false;
  ++faults.calls;
  ++faults.kinds[kind];
  const bool now = faults.calls == plan.fail_at || (plan.from_then_on && faults.failed == kind);
  if (now) faults.failed = kind, errno = error;
  return now;
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
  va_list arguments;
  va_start(arguments, flags);
  const bool makes = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
  const mode_t mode = makes ? va_arg(arguments, mode_t) : 0;
  va_end(arguments);
  if (fails("open", ENOSPC)) return -1;
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

ssize_t write(int fd, const void* bytes, size_t count) {
  if (fails("write", ENOSPC)) {
    if (!faults.plan.short_writes) return -1;
    count = std::max<size_t>(count / 2, 1);
  }
  return ::syscall(SYS_write, fd, bytes, count);
}

// Does not wait for the disk: what the kernel knows is what these tests look at.
int fsync(int) { return fails("fsync", EIO) ? -1 : 0; }

int close(int fd) {
  const bool written = (::fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY;
  const auto result = static_cast<int>(::syscall(SYS_close, fd));
  return fails(written ? "close of a written file" : "close", EIO) ? -1 : result;
}

int rename(const char* from, const char* to) noexcept {
  return fails("rename", EIO) ? -1 : static_cast<int>(::syscall(SYS_rename, from, to));
}

int linkat(int from_folder, const char* from, int to_folder, const char* to, int flags) noexcept {
  if (fails("linkat", ENOSPC)) return -1;
  return static_cast<int>(::syscall(SYS_linkat, from_folder, from, to_folder, to, flags));
}

int mkdir(const char* path, mode_t mode) noexcept {
  return fails("mkdir", ENOSPC) ? -1 : static_cast<int>(::syscall(SYS_mkdir, path, mode));
}

int unlinkat(int folder, const char* name, int flags) noexcept {
  return fails("unlinkat", EIO) ? -1
                                : static_cast<int>(::syscall(SYS_unlinkat, folder, name, flags));
}

}  // extern "C"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using reference::expect_same_bits;

// A few weights of each kind.
struct Small {
  explicit Small(int64_t step) : config(Model::load(golden_path("models/v3")).config()) {
    append_parameter(table, "model.embed_tokens.weight", {11, 6}, ParameterKind::kEmbedding);
    append_parameter(table, "model.norm.weight", {5}, ParameterKind::kVector);
    append_parameter(table, "lm_head.weight", {7, 5}, ParameterKind::kEmbedding);
    for (std::vector<float>* array : {&master, &first, &second}) {
      array->resize(static_cast<size_t>(table.total));
      for (size_t i = 0; i < array->size(); ++i)
        (*array)[i] = reference::noise(static_cast<uint64_t>(step), static_cast<int64_t>(i));
    }
    state = {.step = step,
             .table = &table,
             .master = master,
             .first_moment = first,
             .second_moment = second,
             .config = &config,
             .f32 = false,
             .adapter = false,
             .state_json = "{}\n",
             .side_files = {{"tokenizer.json", "{}"}}};
  }
  ModelConfig config;
  ParameterTable table;
  std::vector<float> master, first, second;
  TrainState state;
};

// Runs `body` with the given fault; the exit code of the Error it threw, 0 if it threw none.
template <class Body>
int code_of(const Plan& plan, Body body) {
  faults = {plan, true};
  int code = 0;
  try {
    body();
  } catch (const Error& error) {
    code = static_cast<int>(error.code());
  }
  faults.armed = false;
  return code;
}

std::vector<std::string> folders(const fs::path& run) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(run))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

void expect_found(const fs::path& run, const Small& expected) {
  const auto found = find_checkpoint(run);
  ASSERT_TRUE(found);
  ASSERT_EQ(found->step, expected.state.step);
  EXPECT_TRUE(found->damaged.empty());
  std::vector<float> master(expected.master.size()), first(master), second(master);
  load_optimizer(found->folder, expected.table, master, first, second);
  expect_same_bits(master, expected.master);
  expect_same_bits(first, expected.first);
  expect_same_bits(second, expected.second);
}

class SaveFaults : public testing::Test {
 protected:
  // Saves step 2 beside step 1 with each call failing in turn, until a save meets no fault any
  // more.
  void fail_each_call(Plan plan) {
    for (plan.fail_at = 1;; ++plan.fail_at) {
      const TempDir run;
      save_checkpoint(run.path(), one_.state);
      const int code = code_of(plan, [&] { save_checkpoint(run.path(), two_.state); });
      if (faults.failed.empty()) {
        EXPECT_EQ(code, 0);
        EXPECT_GT(plan.fail_at, plan.short_writes ? 15 : 60);
        return;
      }
      SCOPED_TRACE(fmt::format("call {}, {}", plan.fail_at, faults.failed));
      const std::vector<std::string> both = {"step-00000001", "step-00000002"};
      const std::vector<std::string> left = folders(run.path());
      if (code == 0) {
        // What was only read is closed without asking; a short write is no failure.
        EXPECT_TRUE(faults.failed == "close" || plan.short_writes);
        EXPECT_EQ(left, both);
        expect_found(run.path(), two_);
      } else {
        EXPECT_EQ(code, 3);
        EXPECT_FALSE(plan.short_writes);
        if (left == both) {  // the sync after the last rename
          expect_found(run.path(), two_);
        } else {
          EXPECT_EQ(left, std::vector<std::string>{"step-00000001"});
          expect_found(run.path(), one_);
        }
      }
      save_checkpoint(run.path(), two_.state);  // the next try
      expect_found(run.path(), two_);
      if (HasFailure()) return;
    }
  }
  const Small one_{1}, two_{2};
};

TEST_F(SaveFaults, AnyOneCallThatFailsLeavesAGoodCheckpoint) {
  fail_each_call({});
  for (const char* kind : {"open", "write", "fsync", "close of a written file", "rename", "mkdir"})
    EXPECT_GT(faults.kinds[kind], 0) << kind;
  EXPECT_EQ(faults.kinds["linkat"] > 0, has_unnamed_files(fs::temp_directory_path()));
}

TEST_F(SaveFaults, SoDoesADiskThatStaysFull) { fail_each_call({.from_then_on = true}); }

TEST_F(SaveFaults, AShortWriteIsCarriedOn) { fail_each_call({.short_writes = true}); }

// A damaged checkpoint of the same step is in the way.
TEST_F(SaveFaults, ReplacingADamagedCheckpointLosesNoGoodOne) {
  Plan plan;
  for (plan.fail_at = 1;; ++plan.fail_at) {
    const TempDir run;
    save_checkpoint(run.path(), one_.state);
    save_checkpoint(run.path(), two_.state);
    fs::remove(run.path() / "step-00000002" / "config.json");
    const int code = code_of(plan, [&] { save_checkpoint(run.path(), two_.state); });
    const std::string failed = faults.failed;
    SCOPED_TRACE(fmt::format("call {}, {}", plan.fail_at, failed));
    const auto found = find_checkpoint(run.path());
    ASSERT_TRUE(found);
    if (code == 0) {
      EXPECT_EQ(found->step, 2);
    }
    save_checkpoint(run.path(), two_.state);
    expect_found(run.path(), two_);
    if (failed.empty() || HasFailure()) break;
  }
  EXPECT_GT(faults.kinds["unlinkat"], 0);
}

TEST_F(SaveFaults, ADeletionThatFailsLeavesTheNewestAndTheBest) {
  Small small(1);
  Plan plan;
  for (plan.fail_at = 1;; ++plan.fail_at) {
    const TempDir run;
    for (int64_t step = 1; step <= 5; ++step) {
      small.state.step = step;
      save_checkpoint(run.path(), small.state);
    }
    code_of(plan, [&] { prune_checkpoints(run.path(), 2, 1); });
    const std::string failed = faults.failed;
    SCOPED_TRACE(fmt::format("call {}, {}", plan.fail_at, failed));
    expect_found(run.path(), small);
    prune_checkpoints(run.path(), 2, 1);
    EXPECT_EQ(folders(run.path()),
              (std::vector<std::string>{"step-00000001", "step-00000004", "step-00000005"}));
    if (failed.empty() || HasFailure()) break;
  }
  EXPECT_GT(faults.kinds["unlinkat"], 10);
}

}  // namespace
}  // namespace fathom
