// What a run refuses, and what it ends with.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>

#include "formats/safetensors.h"
#include "tests/train/tiny_run.h"
#include "text/character_tokenizer.h"
#include "train/data.h"
#include "train/shards.h"
#include "train/tokenizer_files.h"

namespace fathom {
namespace {

TEST(Run, AChangedRecipeIsNotResumedAndAnOldRunNotOverwritten) {
  const TempDir run;
  Watch watch;
  run_training(tiny(), options_for(run, false), watch);
  EXPECT_NE(error_text(
                ExitCode::kBadInput,
                [&] { run_training(tiny({"optimizer.kind=muon"}), options_for(run, true), watch); })
                .find("first difference: 'kind = \"adamw\"' there, 'kind = \"muon\"' here"),
            std::string::npos);
  EXPECT_NE(
      error_text(ExitCode::kBadInput, [&] { run_training(tiny(), options_for(run, false), watch); })
          .find("holds a run already (step 12)"),
      std::string::npos);
  EXPECT_NE(
      error_text(ExitCode::kBadInput,
                 [&] { run_training(tiny({"optimizer.clip=0.5"}), options_for(run, true), watch); })
          .find("first difference: 'clip = 1.0' there, 'clip = 0.5' here"),
      std::string::npos);
}

// A NaN in a weight makes every gradient one: five steps are skipped, then the run ends, and names
// the tensor rather than save it.
TEST(Run, ANanInAWeightEndsWithCodeFour) {
  const TempDir first, second;
  Watch watch;
  run_training(tiny(), options_for(first, false), watch);
  const fs::path file = first.path() / "model" / "model.safetensors";
  const Safetensors tensors = Safetensors::open(file);
  const auto offset =
      tensors.find("model.layers.1.self_attn.o_proj.weight")->data - tensors.file().bytes().data();
  std::fstream(file, std::ios::in | std::ios::out | std::ios::binary)
      .seekp(offset + 20)
      .write("\xc0\x7f", 2);
  Watch failing;
  const std::string message = error_text(ExitCode::kDiverged, [&] {
    run_training(parse_recipe(from_model(first.path()), "again.toml"), options_for(second, false),
                 failing);
  });
  EXPECT_EQ(message,
            "checkpoint: tensor model.layers.1.self_attn.o_proj.weight: element 10 is nan, "
            "expected finite weights (nothing was saved)");
  EXPECT_EQ(failing.losses.size(), 5u);
}

TEST(Run, AFullDiskIsAWarningThreeTimesAndThenCodeThree) {
  const TempDir run;
  const pid_t child = ::fork();
  if (child == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit size{100000, 100000};  // metrics fit, a checkpoint does not
    ::setrlimit(RLIMIT_FSIZE, &size);
    Watch watch;
    try {
      run_training(tiny({"checkpoint.every=2"}), options_for(run, false), watch);
    } catch (const Error& e) {
      ::_exit(static_cast<int>(e.code()) * 10 + static_cast<int>(watch.notes.size()));
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 32);  // code 3, after two warnings
}

TEST(Run, ATokenizerWithMoreTokensThanTheModelIsRefused) {
  const TempDir first, second, tokenizer;
  Watch watch;
  run_training(tiny(), options_for(first, false), watch);
  auto json = nlohmann::json::parse(character_tokenizer_json());
  auto token = json["added_tokens"].back();
  token["id"] = 106;
  token["content"] = "<extra>";
  json["added_tokens"].push_back(token);
  tokenizer.write("tokenizer.json", json.dump());
  tokenizer.write("tokenizer_config.json", character_tokenizer_config_json());
  const std::vector<std::string> overrides = {"tokenizer.path=" + tokenizer.path().string()};
  const std::string message = error_text(ExitCode::kBadInput, [&] {
    run_training(parse_recipe(from_model(first.path()), "more.toml", overrides),
                 options_for(second, false), watch);
  });
  EXPECT_EQ(message, "tiny: tokenizer: 107 tokens, expected at most the model's vocab_size 106");
  EXPECT_TRUE(fs::is_empty(second.path()));
}

TEST(Run, AnUnreadableShardIsNamedAndNothingWritten) {
  const TempDir data, run;
  const TokenizerFiles files = read_tokenizer_files("characters");
  const Tokenizer tokenizer = files.load("characters");
  ShardWriter writer(data.path(), files.fingerprint(), 200);
  for (int d = 0; d < 60; ++d)
    writer.add(text_document(tokenizer, fmt::format("{} and {}", d, d + 1)).tokens);
  writer.finish();
  std::string text = kTiny;
  const std::string tasks = "tasks = { arithmetic = 1.0 }";
  text.replace(text.find(tasks), tasks.size(), "path = \"" + data.path().string() + "\"");
  const std::vector<std::string> overrides = {"data.kind=shards"};
  fs::remove(data.path() / "shard-00001.safetensors");
  fs::create_directory(data.path() / "shard-00001.safetensors");  // there, but not to be read
  Watch watch;
  EXPECT_NE(error_text(ExitCode::kBadInput,
                       [&] {
                         run_training(parse_recipe(text, "tiny.toml", overrides),
                                      options_for(run, false), watch);
                       })
                .find("shard-00001.safetensors: "),
            std::string::npos);
  EXPECT_TRUE(fs::is_empty(run.path()));
}

TEST(Run, MisfitsAreNamed) {
  const TempDir run;
  Watch watch;
  const auto refusal = [&](std::vector<std::string> overrides) {
    return error_text(ExitCode::kBadInput, [&] {
      run_training(tiny(std::move(overrides)), options_for(run, false), watch);
    });
  };
  EXPECT_NE(refusal({"data.sequence_length=512"})
                .find("data.sequence_length: found 512, expected at most the model's "
                      "max_position_embeddings 256"),
            std::string::npos);
  EXPECT_NE(refusal({"model.vocab_size=50"})
                .find("model.vocab_size: found 50, expected at least the tokenizer's 106"),
            std::string::npos);
  EXPECT_NE(refusal({"tokenizer.path=/no/such"}).find("/no/such/tokenizer.json: cannot open"),
            std::string::npos);
  EXPECT_NE(refusal({"optimizer.groups=[{ match = \"q_prj\" }]"})
                .find("optimizer.groups: match 'q_prj': no parameter of this model"),
            std::string::npos);
  EXPECT_NE(refusal({"moe.device_balance_alpha=0.05"})
                .find("moe.device_balance_alpha: found 0.05 with n_group 1, expected a router with "
                      "groups of experts"),
            std::string::npos);
  EXPECT_NE(refusal({"moe.communication_balance_alpha=0.02", "model.n_group=2",
                     "model.scoring_func=softmax", "model.topk_method=greedy",
                     "model.num_nextn_predict_layers=0"})
                .find("moe.communication_balance_alpha: found 0.02 with topk_method greedy"),
            std::string::npos);
  EXPECT_NE(refusal({"evaluation.task=countdown", "evaluation.max_tokens=250"})
                .find("tiny: evaluation.max_tokens: found 250, expected at most 2"),
            std::string::npos);
  EXPECT_TRUE(watch.losses.empty());
  EXPECT_NE(refusal({"model.num_attention_heads=0"}).find("num_attention_heads"),
            std::string::npos);
}

TEST(Run, AnEvaluationThatFailsCostsNoStep) {
  const TempDir run;
  struct Failing : Watch {
    void validated(int64_t, double) override { fail_resource("no memory for the evaluation"); }
  } failing;
  error_text(ExitCode::kNoResources,
             [&] { run_training(tiny(), options_for(run, false), failing); });
  Watch watch;
  EXPECT_TRUE(run_training(tiny(), options_for(run, true), watch).finished);
  EXPECT_EQ(watch.facts.first_step, 12);
  EXPECT_TRUE(fs::exists(run.path() / "model" / "model.safetensors"));
}

TEST(Run, MemoryIsRefusedWithTheFiguresBeforeItIsTaken) {
  const TempDir run;
  Watch watch;
  const std::string message = error_text(ExitCode::kNoResources, [&] {
    run_training(tiny({"train.tokens_per_step=200000000", "train.tokens=1000000000"}),
                 options_for(run, false), watch);
  });
  EXPECT_NE(message.find("MB for a step"), std::string::npos) << message;
}

}  // namespace
}  // namespace fathom
