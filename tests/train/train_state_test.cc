// Checkpoints: saved and loaded to the bit, never lost, whatever fails or kills the writer.
#include "train/train_state.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cmath>
#include <fstream>

#include "base/error.h"
#include "base/file.h"
#include "model/model.h"
#include "tests/base/test_files.h"
#include "tests/model/golden.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/test_rows.h"
#include "text/character_tokenizer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using reference::expect_same_bits;

struct Saved {
  explicit Saved(int64_t step = 1)
      : config(Model::load(golden_path("models/v3")).config()), table(parameter_table(config)) {
    for (std::vector<float>* array : {&master, &first, &second}) {
      array->resize(static_cast<size_t>(table.total));
      for (size_t i = 0; i < array->size(); ++i) (*array)[i] = reference::noise(static_cast<uint64_t>(step), static_cast<int64_t>(i));
    }
    state = {.step = step, .table = &table, .master = master, .first_moment = first, .second_moment = second, .config = &config,
             .f32 = false, .adapter = false, .state_json = "{\"step\": " + std::to_string(step) + "}\n",
             .side_files = {{"tokenizer.json", character_tokenizer_json()}, {"tokenizer_config.json", character_tokenizer_config_json()}}};
  }
  ModelConfig config;
  ParameterTable table;
  std::vector<float> master, first, second;
  TrainState state;
};

std::vector<std::string> folders(const fs::path& run) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(run)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(Checkpoint, ComesBackToTheBit) {
  const TempDir run;
  const Saved saved(7);
  save_checkpoint(run.path(), saved.state);
  const auto found = find_checkpoint(run.path());
  ASSERT_TRUE(found);
  EXPECT_EQ(found->step, 7);
  EXPECT_EQ(found->state_json, saved.state.state_json);
  std::vector<float> master(saved.master.size()), first(master.size()), second(master.size());
  load_optimizer(found->folder, saved.table, master, first, second);
  expect_same_bits(master, saved.master);
  expect_same_bits(first, saved.first);
  expect_same_bits(second, saved.second);
}

TEST(Checkpoint, IsAModelFolderWithTheMtpLayerAsV3StoresIt) {
  const TempDir run;
  const Saved saved(7);
  save_checkpoint(run.path(), saved.state);
  const Model model = Model::load(run.path() / "step-00000007");
  EXPECT_TRUE(model.has_mtp());
  EXPECT_EQ(model.weights().lm_head.weight.dtype, DType::kBF16);
  EXPECT_EQ(model.weights().layers[1].moe->gate[3], [&] {
    for (const Parameter& p : saved.table.parameters) {
      if (p.name == "model.layers.1.mlp.gate.weight") return saved.master[static_cast<size_t>(p.offset + 3)];
    }
    return 0.0f;
  }());
  const Safetensors file = Safetensors::open(run.path() / "step-00000007" / "model.safetensors");
  for (const char* copy : {"model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"}) {
    EXPECT_NE(file.find(copy), nullptr) << copy;
  }
}

TEST(Checkpoint, DamageOfAnyFileIsSeenAndTheOneBeforeCounts) {
  const TempDir run;
  save_checkpoint(run.path(), Saved(1).state);
  for (const char* name : {"config.json", "model.safetensors", "optimizer.safetensors", "state.json", "tokenizer.json", "manifest.json"}) {
    for (const bool cut : {false, true}) {
      save_checkpoint(run.path(), Saved(2).state);
      const fs::path file = run.path() / "step-00000002" / name;
      const auto size = fs::file_size(file);
      if (cut) {
        fs::resize_file(file, size / 2);
      } else {
        std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
        stream.seekg(static_cast<std::streamoff>(size / 2));
        const char byte = static_cast<char>(stream.get());
        stream.seekp(static_cast<std::streamoff>(size / 2));
        stream.put(static_cast<char>(byte ^ 1));
      }
      const auto found = find_checkpoint(run.path());
      ASSERT_TRUE(found) << name;
      EXPECT_EQ(found->step, 1) << name;
      ASSERT_EQ(found->damaged.size(), 1u);
      EXPECT_NE(found->damaged[0].find("step-00000002"), std::string::npos) << found->damaged[0];
    }
  }
  // None is good: that is an error, not a fresh start.
  fs::remove(run.path() / "step-00000001" / "manifest.json");
  EXPECT_THROW(find_checkpoint(run.path()), Error);
}

TEST(Checkpoint, WeightsThatAreNotFiniteAreNamedAndNotSaved) {
  const TempDir run;
  Saved saved(3);
  saved.master[static_cast<size_t>(saved.table.parameters[4].offset + 5)] = std::nanf("");
  try {
    save_checkpoint(run.path(), saved.state);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kDiverged);
    EXPECT_NE(std::string(e.what()).find(saved.table.parameters[4].name + ": element 5 is nan"), std::string::npos) << e.what();
  }
  EXPECT_TRUE(folders(run.path()).empty());
}

TEST(Checkpoint, AnotherModelsIsRefused) {
  const TempDir run;
  save_checkpoint(run.path(), Saved(1).state);
  ParameterTable other;
  append_parameter(other, "x", {3, 3}, ParameterKind::kMatrix);
  std::vector<float> array(static_cast<size_t>(other.total));
  try {
    load_optimizer(run.path() / "step-00000001", other, array, array, array);
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("expected F32 [32]"), std::string::npos) << e.what();
  }
}

TEST(Prune, KeepsTheLastOnesTheBestAndNeverFewerThanTwoGoodOnes) {
  const TempDir run;
  for (int64_t step = 1; step <= 5; ++step) save_checkpoint(run.path(), Saved(step).state);
  fs::create_directory(run.path() / "step-00000009.tmp");
  fs::remove(run.path() / "step-00000005" / "manifest.json");  // damaged: does not count
  prune_checkpoints(run.path(), 2, 1);
  EXPECT_EQ(folders(run.path()), (std::vector<std::string>{"step-00000001", "step-00000003", "step-00000004", "step-00000005"}));
}

// Every write, rename, sync and deletion is a moment to be killed at: 50 children save step after step and are killed at
// random times.
TEST(Checkpoint, SurvivesBeingKilledAtAnyMoment) {
  const TempDir run;
  Saved odd(1), even(2);
  save_checkpoint(run.path(), odd.state);
  int64_t last = 1;
  for (int kill_number = 0; kill_number < 50; ++kill_number) {
    const pid_t child = ::fork();
    if (child == 0) {
      for (int64_t step = last + 1;; ++step) {
        TrainState& state = step % 2 == 1 ? odd.state : even.state;
        state.step = step;
        save_checkpoint(run.path(), state);
        prune_checkpoints(run.path(), 2, std::nullopt);
      }
    }
    ::usleep(static_cast<useconds_t>(random_bits({.seed = 5}, static_cast<uint64_t>(kill_number)) % 40000));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const auto found = find_checkpoint(run.path());
    ASSERT_TRUE(found);
    EXPECT_GE(found->step, last);
    last = found->step;
    std::vector<float> master(odd.master.size()), m(master.size()), v(master.size());
    load_optimizer(found->folder, odd.table, master, m, v);
    expect_same_bits(master, last % 2 == 1 ? odd.master : even.master);
  }
  EXPECT_GT(last, 10);  // the children did save
  prune_checkpoints(run.path(), 2, std::nullopt);
  for (const std::string& name : folders(run.path())) EXPECT_EQ(name.find(".tmp"), std::string::npos) << name;
}

// The disk is full at every possible byte of the largest file (RLIMIT_FSIZE stands for it): exit code 3, the old one stays.
TEST(Checkpoint, AFullDiskLeavesTheOneBefore) {
  const TempDir run;
  const Saved first(1), second(2);
  save_checkpoint(run.path(), first.state);
  for (const rlim_t limit : {0, 100, 4096, 100000, 1000000, 5000000}) {
    const pid_t child = ::fork();
    if (child == 0) {
      ::signal(SIGXFSZ, SIG_IGN);
      const rlimit file_size{limit, limit};
      ::setrlimit(RLIMIT_FSIZE, &file_size);
      try {
        save_checkpoint(run.path(), second.state);
        ::_exit(100);
      } catch (const Error& e) {
        ::_exit(static_cast<int>(e.code()));
      }
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(WEXITSTATUS(status), 3) << limit;
    const auto found = find_checkpoint(run.path());
    ASSERT_TRUE(found);
    EXPECT_EQ(found->step, 1);
    EXPECT_EQ(folders(run.path()), std::vector<std::string>{"step-00000001"}) << limit;
  }
}

}  // namespace
}  // namespace fathom
