// Training from the command line, where two processes meet.
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "tests/base/test_files.h"
#include "tests/cli/subprocess.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> training(const char* command, const fs::path& folder,
                                  std::initializer_list<std::string> more) {
  std::vector<std::string> arguments = {
      command, std::string(FATHOM_SOURCE_DIR) + "/recipes/digit-sum-aloud.toml", "-o",
      folder.string(), "evaluation.problems=4"};
  arguments.insert(arguments.end(), more);
  return arguments;
}

// Until the process has taken the folder.
bool wait_for_owner(const fs::path& folder, pid_t process) {
  for (int i = 0; i < 3000; ++i) {
    if (fs::exists(folder / "metrics.jsonl") &&
        read_file(folder / "lock", 100) == std::to_string(process) + "\n")
      return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

TEST(TrainCommand, AFolderIsOneRunsAloneUntilItsProcessEndsHoweverThatDies) {
  const TempDir dir;
  const fs::path folder = dir / "run";
  Child first(training("pretrain", folder, {"train.tokens=100000000"}));
  ASSERT_TRUE(wait_for_owner(folder, first.pid()));
  for (const std::initializer_list<std::string> more :
       {std::initializer_list<std::string>{}, {"--resume"}}) {
    for (const char* command : {"pretrain", "sft"})
      expect_error(run_fathom(training(command, folder, more)), 2,
                   fmt::format("{}: found in use by process {}, expected a folder that no other "
                               "run writes to (-o names another; ",
                               folder.string(), first.pid()));
  }
  const auto brief = {std::string("train.tokens=2000"), std::string("--resume")};
  EXPECT_EQ(run_fathom(training("pretrain", dir / "other", brief)).code, 0);
  kill(first.pid(), SIGKILL);
  EXPECT_EQ(first.finish().code, 1000 + SIGKILL);
  EXPECT_TRUE(fs::exists(folder / "lock"));
  const Finished last = run_fathom(training("pretrain", folder, brief));
  EXPECT_EQ(last.code, 0) << last.err;
}

// Else metrics.jsonl, or the lock, would be stderr.
TEST(TrainCommand, AStreamThatTheCallerClosedIsNoFileOfTheRun) {
  const TempDir dir;
  const fs::path folder = dir / "run";
  const pid_t pid = fork();
  if (pid == 0) {
    dup2(open("/dev/null", O_RDONLY), 0);
    close(1);
    close(2);
    exec_fathom(training("pretrain", folder, {"train.tokens=2000"}), {}, "");
  }
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_EQ(exit_code(status), 0);
  EXPECT_EQ(read_file(folder / "lock", 100), std::to_string(pid) + "\n");
  std::istringstream metrics(read_file(folder / "metrics.jsonl", 1 << 20));
  for (std::string line; std::getline(metrics, line);)
    EXPECT_TRUE(nlohmann::json::accept(line)) << line;
}

TEST(TrainCommand, ANameIsNoWayOutOfTheFolderOfRuns) {
  const TempDir dir;
  const std::string recipe = std::string(FATHOM_SOURCE_DIR) + "/recipes/digit-sum-aloud.toml";
  for (const char* name : {"../out", "/tmp/out", ".", "..", ""})
    expect_error(
        run_fathom({"pretrain", recipe, fmt::format("name={}", name)}, "", {}, dir.string()), 2,
        "name: found ");
  EXPECT_TRUE(fs::is_empty(dir.path()));
}

}  // namespace
}  // namespace fathom
