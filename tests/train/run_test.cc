// Whole runs from a recipe: stopped, resumed, failing; and that training teaches.
#include "train/run.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "formats/checkpoint.h"
#include "formats/safetensors.h"
#include "model/lora.h"
#include "model/model.h"
#include "tests/base/count_allocations.h"
#include "tests/base/test_files.h"
#include "tests/train/tiny_run.h"
#include "text/character_tokenizer.h"
#include "train/data.h"
#include "train/metrics.h"
#include "train/quantize.h"
#include "train/shards.h"
#include "train/tokenizer_files.h"
#include "train/train_state.h"

namespace fathom {
namespace {

std::string optimizer_bytes(const fs::path& run) {
  return read_file(find_checkpoint(run)->folder / "optimizer.safetensors", 1 << 26);
}

TEST(Run, EndsWithAModelFolderMetricsAndACheckpoint) {
  const TempDir run;
  Watch watch;
  const RunResult result = run_training(tiny(), options_for(run, false), watch);
  EXPECT_TRUE(result.finished);
  EXPECT_EQ(result.steps, 12);
  EXPECT_EQ(watch.losses.size(), 12u);
  EXPECT_LT(watch.losses.back(), watch.losses.front());
  EXPECT_EQ(watch.validations, 1);
  const Model model = Model::load(run.path() / "model");
  EXPECT_TRUE(model.has_mtp());
  std::ifstream lines(run.path() / "metrics.jsonl");
  int64_t trained = 0;
  for (std::string line; std::getline(lines, line);) {
    const auto value = nlohmann::json::parse(line);
    trained += value["kind"] == "step" ? 1 : 0;
    EXPECT_TRUE(value["kind"] != "step" || value["loss"].is_number()) << line;
  }
  EXPECT_EQ(trained, 12);
}

// Each evaluation without a task shows one: on the observer and in the metrics. Looking changes
// nothing.
TEST(Run, ASampleIsWrittenNowAndThen) {
  const TempDir first, second;
  Watch watch, none;
  run_training(tiny({"evaluation.every=5", "evaluation.max_tokens=20"}), options_for(first, false),
               watch);
  run_training(tiny(), options_for(second, false), none);
  EXPECT_EQ(watch.losses, none.losses);
  ASSERT_EQ(watch.samples.size(), 3u);  // steps 5, 10 and the last, 12
  EXPECT_EQ(none.samples.size(), 1u);
  EXPECT_EQ(watch.samples[1].step, 10);
  EXPECT_EQ(watch.samples[2].completion.substr(0, 20), none.samples[0].completion.substr(0, 20));
  for (const Watch::Sample& s : watch.samples) {
    EXPECT_GE(s.prompt.size(), 10u);
    EXPECT_FALSE(s.completion.empty());
    EXPECT_LE(s.completion.size(), 100u);
  }
  EXPECT_NE(watch.samples[0].prompt, watch.samples[1].prompt);
  const RunHistory history = read_metrics(first.path());
  ASSERT_EQ(history.samples.size(), 3u);
  EXPECT_EQ(history.samples[1].prompt, watch.samples[1].prompt);
  EXPECT_EQ(history.samples[1].completion, watch.samples[1].completion);
  EXPECT_FALSE(history.samples[1].correct);
}

// In fine-tuning the question is what it goes on from.
TEST(Run, OfConversationsASampleIsAnAnswer) {
  const TempDir run;
  Watch watch;
  run_training(tiny({"data.kind=conversations", "data.tasks={ digit_sum = 1.0 }"}),
               options_for(run, false), watch);
  ASSERT_EQ(watch.samples.size(), 1u);
  EXPECT_TRUE(watch.samples[0].prompt.ends_with("<｜Assistant｜><think>\n"))
      << watch.samples[0].prompt;
}

void expect_same_when_resumed(const std::vector<std::string>& overrides) {
  const TempDir whole, parts;
  Watch watch;
  run_training(tiny(overrides), options_for(whole, false), watch);
  std::vector<double> losses;
  for (const int64_t stop : {4, 3, -1}) {
    Watch part;
    part.stop_after = stop;
    const RunResult result = run_training(tiny(overrides), options_for(parts, true), part);
    EXPECT_EQ(result.finished, stop < 0);
    losses.insert(losses.end(), part.losses.begin(), part.losses.end());
  }
  EXPECT_EQ(losses, watch.losses);
  EXPECT_LT(losses.back(), losses.front());
  EXPECT_TRUE(optimizer_bytes(parts.path()) == optimizer_bytes(whole.path()));
  EXPECT_TRUE(read_file(parts.path() / "model" / "model.safetensors", 1 << 26) ==
              read_file(whole.path() / "model" / "model.safetensors", 1 << 26));
}

TEST(Run, ResumedRunsHaveTheBitsOfOneThatWasNeverStopped) {
  expect_same_when_resumed({"threads=1"});
}

TEST(Run, SoHaveResumedRunsOfMuon) {
  expect_same_when_resumed(
      {"threads=1", "optimizer.kind=muon",
       "optimizer.groups=[{ match = \"experts|norm\", lr_scale = 0.5, weight_decay = 0.01 }]"});
}

TEST(Run, ThreadsDoNotChangeTheCurve) {
  std::vector<std::vector<double>> curves;
  for (const char* threads : {"threads=1", "threads=2", "threads=3"}) {
    const TempDir run;
    Watch watch;
    run_training(tiny({threads}), options_for(run, false), watch);
    curves.push_back(watch.losses);
  }
  EXPECT_EQ(curves[0], curves[1]);
  EXPECT_EQ(curves[0], curves[2]);
}

// Micro-batches of a few documents against one batch: the same mean gradient, summed in another
// order. After one step of AdamW, which makes rounding errors whole steps where a gradient is
// nearly 0, the second loss agrees to 1e-3.
TEST(Run, MicroBatchesAreTheSameStepToRounding) {
  std::vector<std::vector<double>> curves;
  for (const char* micro : {"train.micro_batch_tokens=512", "train.micro_batch_tokens=128"}) {
    const TempDir run;
    Watch watch;
    run_training(tiny({micro, "train.precision=f32", "train.tokens=1024"}), options_for(run, false),
                 watch);
    curves.push_back(watch.losses);
  }
  EXPECT_NEAR(curves[0][0], curves[1][0], 1e-6);
  EXPECT_NEAR(curves[0][1], curves[1][1], 1e-3);
}

std::vector<double> curve(const fs::path& run) {
  std::vector<double> losses;
  for (const StepMetrics& step : read_metrics(run).steps) {
    EXPECT_EQ(step.step, std::ssize(losses) + 1);
    losses.push_back(step.loss);
  }
  return losses;
}

bool left_in_a_save(const fs::path& run) {
  for (const auto& entry : fs::directory_iterator(run)) {
    if (entry.path().extension() == ".tmp") return true;
  }
  return false;
}

// 50 kills that all hit a running training, at random moments of up to half of what it takes; it
// saves after each step, so many hit a save. A child that comes to its end is no kill: its run is
// compared and another begun.
TEST(Run, KilledAtAnyMomentItGoesOnWithTheSameCurve) {
  const TempDir whole, folder;
  const std::vector<std::string> overrides = {"threads=1", "checkpoint.every=1",
                                              "train.tokens=3000"};
  const double begin = seconds_now();
  Watch watch;
  run_training(tiny(overrides), options_for(whole, false), watch);
  const double seconds = seconds_now() - begin;
  const std::vector<double> expected = curve(whole.path());
  EXPECT_EQ(expected, watch.losses);
  TrainingOptions options = options_for(folder, true);
  int kills = 0, saves = 0, ends = 0;
  for (uint64_t turn = 0; kills < 50 || ends == 0; ++turn) {
    const fs::path run = options.folder = folder.path() / std::to_string(ends);
    const pid_t child = ::fork();
    if (child == 0) {
      Watch none;
      run_training(tiny(overrides), options, none);
      ::_exit(0);
    }
    if (kills < 50) {  // after that it comes to its end
      ::usleep(static_cast<useconds_t>(0.5e6 * seconds * random_uniform({.seed = 9}, turn)));
      ::kill(child, SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    if (WIFSIGNALED(status)) {
      ++kills;
      saves += fs::exists(run) && left_in_a_save(run) ? 1 : 0;
      if (const auto found = find_checkpoint(run)) {
        EXPECT_TRUE(found->damaged.empty());
      }
      continue;
    }
    ASSERT_EQ(WEXITSTATUS(status), 0);
    EXPECT_EQ(curve(run), expected) << "after " << kills << " kills";
    EXPECT_TRUE(optimizer_bytes(run) == optimizer_bytes(whole.path()));
    ++ends;
  }
  EXPECT_GT(saves, 0);
}

// enough for a few adapters to show
const std::vector<std::string> kFaster = {"train.tokens=15000", "schedule.lr=2e-2"};

TEST(Run, ALoraRunEndsWithTheMergedModelAndItsAdapter) {
  const TempDir first, second;
  Watch watch, tuned;
  run_training(tiny(), options_for(first, false), watch);
  run_training(
      parse_recipe(from_model(first.path(), "[lora]\nrank = 4\nalpha = 8\ntargets = [\"all\"]\n"),
                   "lora.toml", kFaster),
      options_for(second, false), tuned);
  EXPECT_LT(tuned.losses.back(), tuned.losses.front() - 0.01);
  const Model base = Model::load(first.path() / "model"),
              merged = Model::load(second.path() / "model");
  ASSERT_TRUE(merged.has_mtp());
  const WeightView& before = base.weights().layers[1].mla->o_proj.weight;
  const WeightView& after = merged.weights().layers[1].mla->o_proj.weight;
  EXPECT_NE(std::memcmp(before.data, after.data,
                        static_cast<size_t>(before.rows * row_bytes(before.dtype, before.cols))),
            0);
  EXPECT_TRUE(fs::exists(second.path() / "adapter" / "adapter_model.safetensors"));
  const auto config =
      nlohmann::json::parse(read_file(second.path() / "adapter" / "adapter_config.json", 1 << 20));
  EXPECT_EQ(config["r"], 4);
  EXPECT_EQ(config["target_modules"][0], "model.layers.0.self_attn.q_a_proj");
  EXPECT_FALSE(fs::exists(second.path() / "model" / "adapter_config.json"));
}

// V3's: the MTP loss counts less towards the end, and the router's bias rests.
TEST(Run, TheMtpWeightAndTheBiasRateHaveASchedule) {
  const TempDir first, second;
  Watch watch;
  run_training(
      tiny({"mtp.late_loss_weight=0.1", "mtp.late_from=0.5", "moe.bias_update_until=0.25"}),
      options_for(first, false), watch);
  ASSERT_EQ(watch.lines.size(), 12u);
  for (const StepLine& line : watch.lines) {
    EXPECT_NEAR(
        line.loss,
        line.cross_entropy + (line.step <= 6 ? 0.3 : 0.1) * line.mtp_cross_entropy + line.balance,
        1e-9)
        << line.step;
  }
  run_training(tiny({"moe.bias_update_until=0"}), options_for(second, false), watch);
  const auto bias = [](const TempDir& run) {
    const Model model = Model::load(run.path() / "model");
    float most = 0;
    for (const float b : model.weights().layers[1].moe->e_score_correction_bias)
      most = std::max(most, std::abs(b));
    return most;
  };
  EXPECT_NEAR(bias(first), 0.003f, 1e-6);  // three steps of 0.001
  EXPECT_EQ(bias(second), 0);
}

// QLoRA: the frozen base is a file of 8-bit blocks, whose tokenizer must be named.
TEST(Run, ALoraRunOnAGgufBaseEndsWithTheMergedModel) {
  const TempDir first, second;
  Watch watch, tuned;
  run_training(tiny(), options_for(first, false), watch);
  const fs::path gguf = first.path() / "base.gguf";
  const GgufSource source(Checkpoint::open(first.path() / "model"), {});
  Context two(2);
  write_gguf(two, source, gguf, {.types = choose_types(source, find_mix("Q8_0"), {})});
  std::string text = from_model(first.path(), "[lora]\nrank = 4\nalpha = 8\ntargets = [\"all\"]\n");
  const std::string folder = (first.path() / "model").string();
  text.replace(text.find(folder), folder.size(), gguf.string());
  EXPECT_NE(
      error_text(
          ExitCode::kBadInput,
          [&] { run_training(parse_recipe(text, "q.toml"), options_for(second, false), tuned); })
          .find("tokenizer.path: missing"),
      std::string::npos);
  std::vector<std::string> overrides = kFaster;
  overrides.push_back("tokenizer.path=" + folder);
  run_training(parse_recipe(text, "q.toml", overrides), options_for(second, false), tuned);
  EXPECT_LT(tuned.losses.front(), watch.losses.front() - 0.5);  // it starts as the base
  EXPECT_LT(tuned.losses.back(), tuned.losses.front() - 0.01);
  EXPECT_TRUE(Model::load(second.path() / "model").has_mtp());
}

// The base lies in its file; nothing of the run is as large as its numbers in f32, the merged model
// at the end included.
TEST(Run, ALoraRunPlansForTheBaseAsItLiesAndTakesNoCopyOfIt) {
  const TempDir first, second;
  Watch watch;
  const std::vector<std::string> wide = {"model.hidden_size=256", "model.intermediate_size=4096",
                                         "train.tokens=512", "train.tokens_per_step=512",
                                         "train.micro_batch_tokens=128"};
  run_training(tiny(wide), options_for(first, false), watch);
  EXPECT_EQ(watch.facts.frozen_bytes, 0u);
  const std::vector<std::string> short_run = {"train.tokens=512", "train.tokens_per_step=512",
                                              "train.micro_batch_tokens=128",
                                              "train.recompute=true"};
  const Recipe recipe =
      parse_recipe(from_model(first.path(), "[lora]\nrank = 1\ntargets = [\"o_proj\"]\n"),
                   "again.toml", short_run);
  struct FromTheLastStep : Watch {
    void step(const StepLine& line) override {
      Watch::step(line);
      largest_allocation = 0;
    }
  } tuned;
  run_training(recipe, options_for(second, false), tuned);
  const size_t largest = largest_allocation;
  const Checkpoint base = Checkpoint::open(first.path() / "model");
  uint64_t files = 0, numbers = 0;
  for (const TensorInfo* tensor : base.tensors()) {
    files += tensor->bytes;
    uint64_t count = 1;
    for (const int64_t d : tensor->shape) count *= static_cast<uint64_t>(d);
    numbers += count * sizeof(float);
  }
  EXPECT_EQ(tuned.facts.frozen_bytes, files);
  const ModelConfig config = load_config(base);
  EXPECT_EQ(tuned.facts.state_bytes,
            static_cast<uint64_t>(18 * lora_table(config, *recipe.lora).total));
  EXPECT_LT(largest, numbers / 3);
  EXPECT_GT(numbers, uint64_t{10} << 20);
}

TEST(Run, ABaseWithoutItsDeclaredMtpLayerIsRefused) {
  const TempDir first, second;
  Watch watch;
  run_training(tiny(), options_for(first, false), watch);
  const fs::path file = first.path() / "model" / "model.safetensors";
  {
    const Safetensors whole = Safetensors::open(file);
    std::vector<TensorToWrite> main;
    for (const TensorInfo& t : whole.tensors()) {
      if (!t.name.starts_with("model.layers.2."))
        main.push_back({t.name, t.dtype, t.shape, {t.data, t.bytes}});
    }
    write_safetensors(file, main);
  }
  for (const char* lora : {"", "[lora]\nrank = 4\ntargets = [\"all\"]\n"}) {
    const std::string message = error_text(ExitCode::kBadInput, [&] {
      run_training(parse_recipe(from_model(first.path(), lora), "again.toml"),
                   options_for(second, false), watch);
    });
    EXPECT_NE(message.find("model.layers.2.eh_proj.weight: missing"), std::string::npos) << message;
  }
}

TEST(Run, V2sDeviceAndCommunicationLossesArePartOfTheLossAndFall) {
  const std::vector<std::string> v2 = {"model.architecture=deepseek_v2",
                                       "model.scoring_func=softmax",
                                       "model.topk_method=group_limited_greedy",
                                       "model.n_group=2",
                                       "model.norm_topk_prob=false",
                                       "model.num_nextn_predict_layers=0",
                                       "moe.sequence_balance_alpha=0"};
  const auto lines_of = [&](const char* device, const char* communication) {
    const TempDir run;
    Watch watch;
    std::vector<std::string> overrides = v2;
    overrides.insert(overrides.end(), {device, communication});
    run_training(tiny(overrides), options_for(run, false), watch);
    for (const StepLine& line : watch.lines)
      EXPECT_NEAR(line.loss, line.cross_entropy + line.balance, 1e-9);
    return watch.lines;
  };
  const auto none = lines_of("moe.device_balance_alpha=0", "moe.communication_balance_alpha=0"),
             device = lines_of("moe.device_balance_alpha=1", "moe.communication_balance_alpha=0"),
             sent = lines_of("moe.device_balance_alpha=0", "moe.communication_balance_alpha=1");
  EXPECT_EQ(none.front().balance, 0);
  for (const auto& lines : {device, sent}) {
    EXPECT_GT(lines.front().balance,
              1);  // 1 is perfect balance of two groups of which one is chosen
    EXPECT_LT(lines.back().balance, lines.front().balance);
    EXPECT_GT(lines.back().balance, 0.9);
  }
}

TEST(Run, TheBestCheckpointIsKeptAndAResumeKnowsIt) {
  const TempDir run;
  Watch watch;
  // A rate that makes the model worse: its best is an early step, long out of the last two.
  const std::vector<std::string> overrides = {"schedule.kind=constant", "schedule.lr=1",
                                              "schedule.warmup_steps=0", "evaluation.every=1",
                                              "checkpoint.every=1"};
  watch.stop_after = 8;
  run_training(tiny(overrides), options_for(run, false), watch);
  const auto state = nlohmann::json::parse(find_checkpoint(run.path())->state_json);
  const int64_t best = state["best_step"];
  EXPECT_LT(best, 6);
  EXPECT_TRUE(fs::exists(run.path() / fmt::format("step-{:08}", best)));
  Watch rest;
  run_training(tiny(overrides), options_for(run, true), rest);
  const auto later = nlohmann::json::parse(find_checkpoint(run.path())->state_json);
  EXPECT_GE(later["best_score"].get<double>(), state["best_score"].get<double>());
  EXPECT_TRUE(
      fs::exists(run.path() / fmt::format("step-{:08}", later["best_step"].get<int64_t>())));
}

// Which problems it has answered by then is chance; all of them belong to a score.
TEST(Run, AnEvaluationThatIsStoppedChoosesNoBest) {
  const auto best_of = [](int64_t stop_after) {
    const TempDir run;
    Watch watch;
    watch.stop_after = stop_after;
    const std::vector<std::string> overrides = {"evaluation.every=4", "evaluation.task=arithmetic",
                                                "evaluation.problems=2", "evaluation.max_tokens=8",
                                                "checkpoint.every=5"};
    run_training(tiny(overrides), options_for(run, false), watch);
    const auto state = nlohmann::json::parse(find_checkpoint(run.path())->state_json);
    return state.value("best_step", int64_t{-1});
  };
  EXPECT_EQ(best_of(5), 4);
  EXPECT_EQ(best_of(4), -1);
}

TEST(Run, AnotherTokenizerIsNotResumed) {
  const TempDir run, tokenizer;
  const std::string config = character_tokenizer_config_json();
  tokenizer.write("tokenizer.json", character_tokenizer_json());
  tokenizer.write("tokenizer_config.json", config);
  Watch watch;
  watch.stop_after = 3;
  const Recipe recipe = tiny({"tokenizer.path=" + tokenizer.path().string()});
  run_training(recipe, options_for(run, false), watch);
  std::string changed = config;
  changed.replace(changed.find("\"add_bos_token\": true"), 21, "\"add_bos_token\": false");
  tokenizer.write("tokenizer_config.json", changed);
  const std::string message =
      error_text(ExitCode::kBadInput, [&] { run_training(recipe, options_for(run, true), watch); });
  EXPECT_NE(message.find("tokenizer_config.json: differs from this run's at byte"),
            std::string::npos)
      << message;
}

TEST(Run, ShardsAreResumedBitForBitAndChangedOnesRefused) {
  const TempDir data, whole, parts;
  const TokenizerFiles files = read_tokenizer_files("characters");
  const Tokenizer tokenizer = files.load("characters");
  const auto write = [&](const fs::path& folder, int documents) {
    ShardWriter writer(folder, files.fingerprint(), 2000);
    for (int d = 0; d < documents; ++d)
      writer.add(
          text_document(tokenizer, fmt::format("{} and {} are {}", d, d + 1, 2 * d + 1)).tokens);
    writer.finish();
  };
  write(data.path() / "a", 400);
  std::string text = kTiny;
  const std::string tasks = "tasks = { arithmetic = 1.0 }";
  text.replace(text.find(tasks), tasks.size(), "path = \"" + (data.path() / "a").string() + "\"");
  const Recipe recipe =
      parse_recipe(text, "tiny.toml", std::vector<std::string>{"data.kind=shards"});
  Watch watch;
  run_training(recipe, options_for(whole, false), watch);
  EXPECT_LT(watch.losses.back(), watch.losses.front());
  Watch part;
  part.stop_after = 5;
  run_training(recipe, options_for(parts, false), part);
  part.stop_after = -1;
  run_training(recipe, options_for(parts, true), part);
  EXPECT_EQ(part.losses, watch.losses);
  EXPECT_TRUE(optimizer_bytes(parts.path()) == optimizer_bytes(whole.path()));
  fs::remove_all(data.path() / "a");
  write(data.path() / "a", 401);
  EXPECT_NE(
      error_text(ExitCode::kBadInput, [&] { run_training(recipe, options_for(parts, true), part); })
          .find("data.path has changed"),
      std::string::npos);
}

}  // namespace
}  // namespace fathom
