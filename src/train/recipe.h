// A recipe: everything a training run depends on, as TOML. Nothing is guessed: an unknown key, a
// missing one, a wrong type or a value out
// of range is refused with file, line and key. `key=value` overrides from the command line are the
// same keys ("train.tokens=1000000"). toml++ is included in recipe.cc and nowhere else.
//
// docs/training.md lists the keys; Recipe::text is the recipe with every default filled in, and
// parses to itself.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model/lora.h"
#include "train/optimizer.h"
#include "train/schedule.h"

namespace fathom {

enum class DataKind {
  kTexts,          // pre-training texts of tasks
  kConversations,  // question, thought and answer of tasks, through the chat format
  kShards,         // token shards
  kMessages,       // JSONL of chat messages
};

struct Recipe {
  std::string name;
  uint64_t seed = 1;
  int threads = 0;  // 0 = all cores

  // [model]: a checkpoint to start from, or a new model as config.json text without vocab_size
  // (which is the tokenizer's).
  std::string model_path;
  std::string config_json;
  int64_t vocab_size = 0;  // at least the tokenizer's; 0 = the tokenizer's

  // [tokenizer]: "characters", or the folder of one. With model.path optional: empty = the
  // checkpoint's own.
  std::string tokenizer;

  struct Data {
    DataKind kind = DataKind::kTexts;
    std::vector<std::pair<std::string, double>> tasks;  // name, weight
    std::string path;                                   // shards, messages
    double thought_share = 1;                           // of conversations
    int64_t sequence_length = 0;
  } data;

  struct Train {
    int64_t tokens = 0;  // of the whole run
    int64_t tokens_per_step = 0;
    int64_t micro_batch_tokens = 0;  // 0 = tokens_per_step
    bool f32 = false;
    bool recompute = false;
    int64_t steps() const { return (tokens + tokens_per_step - 1) / tokens_per_step; }
  } train;

  OptimizerOptions optimizer;
  Schedule schedule;
  // the bias rests after this share of the run
  double bias_update_rate = 0.001, bias_update_until = 1;
  BalanceAlpha balance_alpha{.sequence = 1e-4};
  // from this share of the run on
  double mtp_loss_weight = 0.3, mtp_late_loss_weight = 0.3, mtp_late_from = 1;
  std::optional<LoraOptions> lora;

  struct Evaluation {
    int64_t every = 0;  // steps; 0 = only at the end
    std::string task;   // empty = validation loss only
    int64_t problems = 100, samples = 0, max_tokens = 256, validation_tokens = 16384;
    double temperature = 1;
  } evaluation;

  struct Checkpoints {
    int64_t every = 0;  // steps; 0 = only at the end
    int64_t keep = 2;
  } checkpoint;

  std::string text;  // resolved, as TOML
};

// Throws Error "FILE:LINE: KEY: found X, expected Y".
Recipe parse_recipe(std::string_view toml, const std::string& place,
                    std::span<const std::string> overrides = {});
Recipe load_recipe(const std::filesystem::path& path, std::span<const std::string> overrides = {});

}  // namespace fathom
