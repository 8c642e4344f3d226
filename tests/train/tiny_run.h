// Runs of a recipe that take a moment, and what they say.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "tests/base/test_files.h"
#include "train/run.h"

namespace fathom {

namespace fs = std::filesystem;

template <class Body>
std::string error_text(ExitCode code, Body body) {
  return error_of(body, code);
}

// A model of 30 thousand parameters that takes a millisecond a step.
inline constexpr const char* kTiny = R"(name = "tiny"
[model]
architecture = "deepseek_v3"
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
intermediate_size = 48
max_position_embeddings = 256
rms_norm_eps = 1e-6
q_lora_rank = 16
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 8
n_routed_experts = 4
n_shared_experts = 1
num_experts_per_tok = 2
moe_intermediate_size = 16
first_k_dense_replace = 1
n_group = 1
topk_group = 1
topk_method = "noaux_tc"
scoring_func = "sigmoid"
norm_topk_prob = true
routed_scaling_factor = 1.0
num_nextn_predict_layers = 1
[tokenizer]
path = "characters"
[data]
kind = "texts"
tasks = { arithmetic = 1.0 }
sequence_length = 128
[train]
tokens = 6000
tokens_per_step = 512
[schedule]
lr = 3e-3
warmup_steps = 3
)";

inline Recipe tiny(std::vector<std::string> overrides = {}) {
  return parse_recipe(kTiny, "tiny.toml", overrides);
}

inline TrainingOptions options_for(const TempDir& folder, bool resume) {
  TrainingOptions options;
  options.folder = folder.path();
  options.resume = resume;
  options.measure_roofs = false;
  return options;
}

struct Watch : RunObserver {
  void started(const RunFacts& facts_) override { facts = facts_; }
  void step(const StepLine& line) override {
    losses.push_back(line.loss);
    lines.push_back(line);
  }
  void note(const std::string& text) override { notes.push_back(text); }
  void validated(int64_t, double) override { ++validations; }
  void sampled(int64_t step, const std::string& prompt, const std::string& completion) override {
    samples.push_back({step, prompt, completion});
  }
  bool stop_requested() override {
    return stop_after >= 0 && static_cast<int64_t>(losses.size()) >= stop_after;
  }
  RunFacts facts;
  std::vector<double> losses;
  std::vector<StepLine> lines;
  std::vector<std::string> notes;
  int validations = 0;
  struct Sample {
    int64_t step;
    std::string prompt, completion;
  };
  std::vector<Sample> samples;
  int64_t stop_after = -1;
};

// The recipe that goes on from a finished run's model.
inline std::string from_model(const fs::path& run, const std::string& more = "") {
  std::string recipe(kTiny);
  const size_t begin = recipe.find("[model]"), end = recipe.find("[data]");
  return recipe.replace(begin, end - begin,
                        "[model]\npath = \"" + (run / "model").string() + "\"\n" + more);
}

}  // namespace fathom
