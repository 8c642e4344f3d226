// Checkpoints: saved and loaded to the bit, never lost, whatever fails or kills the writer.
#include "train/train_state.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <limits>

#include "base/clock.h"
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
             .state_json = "{\"step\": " + std::to_string(step) + "}\n",
             .side_files = {{"tokenizer.json", character_tokenizer_json()},
                            {"tokenizer_config.json", character_tokenizer_config_json()}}};
  }
  ModelConfig config;
  ParameterTable table;
  std::vector<float> master, first, second;
  TrainState state;
};

std::vector<std::string> folders(const fs::path& run) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(run))
    names.push_back(entry.path().filename().string());
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
      if (p.name == "model.layers.1.mlp.gate.weight")
        return saved.master[static_cast<size_t>(p.offset + 3)];
    }
    return 0.0f;
  }());
  const Safetensors file = Safetensors::open(run.path() / "step-00000007" / "model.safetensors");
  for (const char* copy :
       {"model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"}) {
    EXPECT_NE(file.find(copy), nullptr) << copy;
  }
}

TEST(Checkpoint, DamageOfAnyFileIsSeenAndTheOneBeforeCounts) {
  const TempDir run;
  save_checkpoint(run.path(), Saved(1).state);
  for (const char* name : {"config.json", "model.safetensors", "optimizer.safetensors",
                           "state.json", "tokenizer.json", "manifest.json"}) {
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
    EXPECT_NE(std::string(e.what()).find(saved.table.parameters[4].name + ": element 5 is nan"),
              std::string::npos)
        << e.what();
  }
  EXPECT_TRUE(folders(run.path()).empty());
}

// The largest floats are finite until BF16 rounds them.
TEST(Checkpoint, AWeightThatRoundsToInfinityIsNotSavedUnlessAsF32) {
  const TempDir run;
  Saved saved(3);
  const auto matrix =
      std::find_if(saved.table.parameters.begin(), saved.table.parameters.end(),
                   [](const Parameter& p) { return p.kind == ParameterKind::kMatrix; });
  saved.master[static_cast<size_t>(matrix->offset)] = -std::numeric_limits<float>::max();
  EXPECT_EQ(error_of([&] { save_checkpoint(run.path(), saved.state); }, ExitCode::kDiverged),
            "checkpoint: tensor " + matrix->name +
                ": element 0 is -inf, expected finite weights (nothing was saved)");
  EXPECT_TRUE(folders(run.path()).empty());
  saved.state.f32 = true;
  save_checkpoint(run.path(), saved.state);
  EXPECT_TRUE(find_checkpoint(run.path()));
}

// Another model of the same number of weights has its numbers in other places.
TEST(Checkpoint, AnotherModelsIsRefusedByTheFirstTensorThatDiffers) {
  const TempDir run;
  const Saved saved(1);
  save_checkpoint(run.path(), saved.state);
  const fs::path folder = run.path() / "step-00000001";
  const auto refusal = [&](const ParameterTable& table) {
    std::vector<float> array(static_cast<size_t>(table.total));
    return error_of([&] { load_optimizer(folder, table, array, array, array); });
  };
  const std::string place = (folder / "model.safetensors").string();
  ParameterTable other = saved.table;
  Parameter& wide = *std::find_if(
      other.parameters.begin(), other.parameters.end(),
      [](const Parameter& p) { return p.shape.size() == 2 && p.shape[0] != p.shape[1]; });
  const std::vector<int64_t> shape = wide.shape;
  std::swap(wide.shape[0], wide.shape[1]);
  EXPECT_EQ(refusal(other),
            fmt::format(
                "{}: tensor {}: found '{}' {}, expected '{}' {} (the checkpoint of another model)",
                place, &wide - other.parameters.data(), wide.name, shape_text(shape), wide.name,
                shape_text(wide.shape)));
  other = saved.table;
  std::swap(other.parameters[3], other.parameters[4]);
  EXPECT_NE(refusal(other).find("expected '" + other.parameters[3].name + "'"), std::string::npos);
  other = saved.table;
  append_parameter(other, "x", {1}, ParameterKind::kVector);
  EXPECT_NE(refusal(other).find("expected 'x' [1]"), std::string::npos) << refusal(other);
  other = saved.table;
  other.parameters.pop_back();
  EXPECT_NE(refusal(other).find("(the checkpoint of another model)"), std::string::npos);
}

// Larger than the pieces in which it is written.
TEST(Checkpoint, MatricesAreTheMastersRoundedToBf16AndVectorsTheMasters) {
  const TempDir run;
  Saved saved(1);
  saved.table = {};
  append_parameter(saved.table, "a.weight", {1200, 1001}, ParameterKind::kMatrix);
  append_parameter(saved.table, "a.bias", {1200}, ParameterKind::kVector);
  for (std::vector<float>* array : {&saved.master, &saved.first, &saved.second}) {
    array->resize(static_cast<size_t>(saved.table.total));
    for (size_t i = 0; i < array->size(); ++i)
      (*array)[i] = reference::noise(1, static_cast<int64_t>(i));
  }
  saved.state.master = saved.master, saved.state.first_moment = saved.first,
  saved.state.second_moment = saved.second;
  save_checkpoint(run.path(), saved.state);
  const Safetensors file = Safetensors::open(run.path() / "step-00000001" / "model.safetensors");
  ASSERT_EQ(file.tensors().size(), 2u);
  const TensorInfo &matrix = file.tensors()[0], &bias = file.tensors()[1];
  ASSERT_EQ(matrix.dtype, DType::kBF16);
  ASSERT_EQ(bias.dtype, DType::kF32);
  for (int64_t i = 0; i < 1200 * 1001; ++i) {
    bf16 value = 0;
    std::memcpy(&value, matrix.data + 2 * i, sizeof value);
    ASSERT_EQ(value, f32_to_bf16(saved.master[static_cast<size_t>(i)])) << i;
  }
  EXPECT_EQ(
      std::memcmp(bias.data, saved.master.data() + saved.table.parameters[1].offset, bias.bytes),
      0);
}

TEST(Checkpoint, TakesTheBytesItSaysBeforehand) {
  const TempDir run;
  Saved saved(1);
  for (const bool f32 : {false, true}) {
    saved.state.f32 = f32;
    saved.state.step += 1;
    save_checkpoint(run.path(), saved.state);
    const fs::path folder = find_checkpoint(run.path())->folder;
    uint64_t bytes = 0;
    for (const char* name : {"model.safetensors", "optimizer.safetensors"}) {
      const Safetensors file = Safetensors::open(folder / name);
      for (const TensorInfo& tensor : file.tensors()) bytes += tensor.bytes;
    }
    EXPECT_EQ(checkpoint_bytes(saved.table, f32), bytes);
  }
}

TEST(Checkpoint, AnotherConfigTokenizerOrRecipeIsNamedWithThePlace) {
  const TempDir run;
  Saved saved(1);
  saved.state.side_files.emplace_back("recipe.toml", "seed = 1\n[schedule]\nlr = 0.001\n");
  save_checkpoint(run.path(), saved.state);
  const FoundCheckpoint found = *find_checkpoint(run.path());
  const std::string folder = found.folder.string();
  expect_same_run(found, saved.state);
  const auto refusal = [&] { return error_of([&] { expect_same_run(found, saved.state); }); };

  saved.state.side_files[2].second = "seed = 1\n[schedule]\nlr = 0.002\n";
  EXPECT_EQ(refusal(),
            folder +
                "/recipe.toml: differs from this run's at byte 29: '[schedule]\\x0alr = "
                "0.001\\x0a' there, "
                "'[schedule]\\x0alr = 0.002\\x0a' here (another recipe.toml is another run)");
  saved.state.side_files[0].second += ' ';  // the first that differs
  EXPECT_EQ(refusal().find(folder + "/tokenizer.json: differs"), 0u) << refusal();
  saved.config.rope.rope_theta += 1;
  EXPECT_EQ(refusal().find(folder + "/config.json: differs"), 0u) << refusal();
  saved.config.rope.rope_theta -= 1;
  saved.state.side_files = {{"data.json", "{}"}};
  EXPECT_EQ(refusal(), folder + "/data.json: cannot open: No such file or directory");
}

TEST(Checkpoint, AFolderThatCannotBeListedIsNoFreshStart) {
  const TempDir dir;
  EXPECT_FALSE(find_checkpoint(dir / "missing"));
  const std::string file = dir.write("run", "").string();
  EXPECT_EQ(error_of([&] { find_checkpoint(file); }, ExitCode::kNoResources),
            file + ": cannot list: Not a directory");
}

TEST(Prune, KeepsTheLastOnesTheBestAndNeverFewerThanTwoGoodOnes) {
  const TempDir run;
  for (int64_t step = 1; step <= 5; ++step) save_checkpoint(run.path(), Saved(step).state);
  fs::create_directory(run.path() / "step-00000009.tmp");
  fs::remove(run.path() / "step-00000005" / "manifest.json");  // damaged: does not count
  prune_checkpoints(run.path(), 2, 1);
  EXPECT_EQ(folders(run.path()), (std::vector<std::string>{"step-00000001", "step-00000003",
                                                           "step-00000004", "step-00000005"}));
}

// Every write, rename, sync and deletion is a moment to be killed at: 50 children save step after
// step. Each is killed somewhere in the save after its first, however fast the machine is.
TEST(Checkpoint, SurvivesBeingKilledAtAnyMoment) {
  const TempDir run;
  Saved odd(1), even(2);
  save_checkpoint(run.path(), odd.state);
  int64_t last = 1;
  for (int kill_number = 0; kill_number < 50; ++kill_number) {
    int saved[2];
    ASSERT_EQ(::pipe(saved), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      for (int64_t step = last + 1;; ++step) {
        TrainState& state = step % 2 == 1 ? odd.state : even.state;
        state.step = step;
        const double begin = seconds_now();
        save_checkpoint(run.path(), state);
        prune_checkpoints(run.path(), 2, std::nullopt);
        const double seconds = seconds_now() - begin;
        if (::write(saved[1], &seconds, sizeof seconds) < 0) ::_exit(1);
      }
    }
    ::close(saved[1]);
    double seconds = 0;
    ASSERT_EQ(::read(saved[0], &seconds, sizeof seconds), static_cast<ssize_t>(sizeof seconds));
    ::usleep(static_cast<useconds_t>(
        1.2e6 * seconds * random_uniform({.seed = 5}, static_cast<uint64_t>(kill_number))));
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    ::close(saved[0]);
    const auto found = find_checkpoint(run.path());
    ASSERT_TRUE(found);
    EXPECT_GT(found->step, last);
    last = found->step;
    std::vector<float> master(odd.master.size()), m(master.size()), v(master.size());
    load_optimizer(found->folder, odd.table, master, m, v);
    expect_same_bits(master, last % 2 == 1 ? odd.master : even.master);
  }
  prune_checkpoints(run.path(), 2, std::nullopt);
  for (const std::string& name : folders(run.path()))
    EXPECT_EQ(name.find(".tmp"), std::string::npos) << name;
}

// The disk is full at every possible byte of the largest file (RLIMIT_FSIZE stands for it): exit
// code 3, the old one stays.
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
