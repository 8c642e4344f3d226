// Recipes: what is refused, in which words, and that the resolved recipe is the recipe.
#include "train/recipe.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "model/config.h"

namespace fathom {
namespace {

const std::string kGood = R"(name = "try"
[model]
architecture = "deepseek_v3"
hidden_size = 64
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 4
intermediate_size = 96
max_position_embeddings = 256
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 8
[tokenizer]
path = "characters"
[data]
kind = "texts"
tasks = { digit_sum = 1.0 }
sequence_length = 128
[train]
tokens = 100000
tokens_per_step = 4096
[schedule]
lr = 1e-3
)";

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

std::string refusal(const std::string& toml, std::vector<std::string> overrides = {}) {
  try {
    parse_recipe(toml, "r.toml", overrides);
    return "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadInput);
    return e.what();
  }
}

TEST(Recipe, FillsInDefaultsAndItsTextIsItself) {
  const Recipe r = parse_recipe(kGood, "r.toml");
  EXPECT_EQ(r.name, "try");
  EXPECT_EQ(r.train.steps(), 25);
  EXPECT_EQ(r.train.micro_batch_tokens, 4096);
  EXPECT_EQ(r.optimizer.beta2, 0.95);
  EXPECT_EQ(r.mtp_loss_weight, 0.3);
  EXPECT_FALSE(r.lora);
  const Recipe again = parse_recipe(r.text, "again.toml");
  EXPECT_EQ(again.text, r.text);
  EXPECT_EQ(again.config_json, r.config_json);
}

TEST(Recipe, OverridesAreTheSameKeys) {
  const std::vector<std::string> overrides = {
      "train.tokens=500",   "name=other name",      "schedule.kind=wsd",
      "optimizer.clip=0.5", "train.recompute=true", "data.tasks={ countdown = 2 }"};
  const Recipe r = parse_recipe(kGood, "r.toml", overrides);
  EXPECT_EQ(r.train.tokens, 500);
  EXPECT_EQ(r.name, "other name");
  EXPECT_EQ(r.schedule.kind, ScheduleKind::kWsd);
  EXPECT_EQ(r.optimizer.clip, 0.5);
  EXPECT_TRUE(r.train.recompute);
  EXPECT_EQ(r.data.tasks.size(), 2u);
}

TEST(Recipe, GroupsAndMuonAreWrittenBack) {
  EXPECT_NE(parse_recipe(kGood, "r.toml").text.find("kind = \"adamw\"\n"), std::string::npos);
  EXPECT_NE(parse_recipe(kGood, "r.toml").text.find("muon_momentum = 0.95\n"), std::string::npos);
  EXPECT_NE(parse_recipe(kGood, "r.toml").text.find("groups = []\n"), std::string::npos);
  const std::string lines =
      "[optimizer]\nkind = \"muon\"\nmuon_momentum = 0.9\ngroups = [{ match = "
      "\"embed_tokens|lm_head\", lr_scale = 0.5, "
      "weight_decay = 0 }, { match = \"norm\" }]\n";
  const Recipe r = parse_recipe(kGood + lines, "r.toml");
  EXPECT_EQ(r.optimizer.kind, OptimizerKind::kMuon);
  EXPECT_EQ(r.optimizer.muon_momentum, 0.9);
  ASSERT_EQ(r.optimizer.groups.size(), 2u);
  EXPECT_EQ(r.optimizer.groups[0].match, (std::vector<std::string>{"embed_tokens", "lm_head"}));
  EXPECT_EQ(r.optimizer.groups[0].lr_scale, 0.5);
  EXPECT_EQ(r.optimizer.groups[0].weight_decay, 0.0);
  EXPECT_EQ(r.optimizer.groups[1].lr_scale, 1);
  EXPECT_FALSE(r.optimizer.groups[1].weight_decay);
  EXPECT_NE(r.text.find("groups = [{ match = \"embed_tokens|lm_head\", lr_scale = 0.5, "
                        "weight_decay = 0.0 }, { match = \"norm\", lr_scale = 1.0 }]\n"),
            std::string::npos)
      << r.text;
  EXPECT_EQ(parse_recipe(r.text, "again").text, r.text);
  const std::vector<std::string> overrides = {
      "optimizer.groups=[{ match = \"mlp\", lr_scale = 2 }]"};
  EXPECT_EQ(parse_recipe(kGood + lines, "r.toml", overrides).optimizer.groups[0].match[0], "mlp");
  EXPECT_EQ(refusal(kGood, {"optimizer.groups=[{ match = \"mlp\", lr_scale = 2000 }]"}),
            "command line: optimizer.groups.lr_scale: found 2000, expected 0 to 1000");
}

struct Case {
  const char *from, *to, *message;
};

TEST(Recipe, RefusesWithFileLineAndKey) {
  const Case kCases[] = {
      {"name = \"try\"", "", "r.toml: name: missing"},
      {"name = \"try\"", "name = 3", "r.toml:1: name: found an integer, expected a string"},
      {"name = \"try\"", "name = \"try\"\nsed = 4",
       "r.toml:2: sed: found a key that is not known, expected perhaps 'seed'"},
      {"name = \"try\"", "name = \"try\"\nseed = -1",
       "r.toml:2: seed: found -1, expected 0 to 9223372036854775807"},
      {"name = \"try\"", "name = \"try\"\nthreads = 5000",
       "r.toml:2: threads: found 5000, expected 0 to 4096"},
      {"name = \"try\"", "name = \"try\"\nzzzzzzzzzzzz = 1",
       "zzzzzzzzzzzz: found a key that is not known, expected one of"},
      {"[model]", "[modle]",
       "r.toml:2: modle: found a key that is not known, expected perhaps 'model'"},
      {"[model]", "model = 5\n[moe]", "r.toml:2: model: found an integer, expected a table"},
      {"architecture = \"deepseek_v3\"", "", "r.toml: model.architecture: missing"},
      {"\"deepseek_v3\"", "\"deepseek_v5\"",
       "r.toml:3: model.architecture: found 'deepseek_v5', expected one of deepseek_v3, "
       "deepseek_v2, qwen2, llama"},
      {"hidden_size = 64", "hidden_sise = 64",
       "r.toml:4: model.hidden_sise: found a key that is not known, expected perhaps "
       "'hidden_size'"},
      {"hidden_size = 64", "vocab_size = -5",
       "r.toml:4: model.vocab_size: found -5, expected 0 to 16777216"},
      {"hidden_size = 64", "hidden_size = [64]",
       "r.toml:4: model.hidden_size: found an array, expected a number, string, boolean or table"},
      {"hidden_size = 64", "rope_scaling = { a = { b = 1 } }",
       "model.rope_scaling: found a table in a table, expected plain values"},
      {"hidden_size = 64", "hidden_size = 2024-01-01", "model.hidden_size: found a date"},
      {"path = \"characters\"", "", "r.toml: tokenizer.path: missing"},
      {"path = \"characters\"", "path = true",
       "tokenizer.path: found a boolean, expected a string"},
      {"path = \"characters\"", "path = \"characters\"\nkind = \"bpe\"",
       "tokenizer.kind: found a key that is not known"},
      {"kind = \"texts\"", "", "r.toml: data.kind: missing"},
      {"kind = \"texts\"", "kind = \"text\"",
       "data.kind: found 'text', expected one of texts, conversations, shards, messages"},
      {"kind = \"texts\"", "kind = \"shards\"", "r.toml: data.path: missing"},
      {"kind = \"texts\"", "kind = \"messages\"\npath = \"x\"",
       "data.tasks: found a key that is not known"},
      {"tasks = { digit_sum = 1.0 }", "", "r.toml: data.tasks: missing"},
      {"{ digit_sum = 1.0 }", "\"digit_sum\"",
       "data.tasks: found a string, expected a table such as { countdown = 1.0 }"},
      {"{ digit_sum = 1.0 }", "{ sudoku = 1.0 }",
       "data.tasks: found 'sudoku', expected one of countdown, digit_sum"},
      {"{ digit_sum = 1.0 }", "{ digit_sum = 0 }",
       "data.tasks: found an integer for 'digit_sum', expected a weight above 0"},
      {"{ digit_sum = 1.0 }", "{ digit_sum = inf }", "expected a weight above 0"},
      {"{ digit_sum = 1.0 }", "{ }", "data.tasks: found no task, expected at least one"},
      {"kind = \"texts\"", "kind = \"texts\"\nthought_share = 0.1",
       "data.thought_share: found a key that is not known"},
      {"kind = \"texts\"", "kind = \"conversations\"\nthought_share = 1.5",
       "data.thought_share: found 1.5, expected 0 to 1"},
      {"sequence_length = 128", "", "r.toml: data.sequence_length: missing"},
      {"sequence_length = 128", "sequence_length = 1",
       "data.sequence_length: found 1, expected 2 to 1048576"},
      {"sequence_length = 128", "sequence_length = 128.5",
       "data.sequence_length: found a number, expected an integer"},
      {"tokens = 100000", "", "r.toml: train.tokens: missing"},
      {"tokens = 100000", "tokens = 0", "train.tokens: found 0, expected 1 to"},
      {"tokens = 100000", "tokens = \"many\"", "train.tokens: found a string, expected an integer"},
      {"tokens_per_step = 4096", "tokens_per_step = 100",
       "train.tokens_per_step: found 100, expected 128 to"},
      {"tokens_per_step = 4096", "tokens_per_step = 4096\nmicro_batch_tokens = 64",
       "train.micro_batch_tokens: found 64, expected 128 to"},
      {"tokens_per_step = 4096", "tokens_per_step = 4096\nprecision = \"fp16\"",
       "train.precision: found 'fp16', expected one of bf16, f32"},
      {"tokens_per_step = 4096", "tokens_per_step = 4096\nrecompute = 1",
       "train.recompute: found an integer, expected true or false"},
      {"lr = 1e-3", "", "r.toml: schedule.lr: missing"},
      {"lr = 1e-3", "lr = nan", "schedule.lr: found nan, expected 0 to 10"},
      {"lr = 1e-3", "lr = 1e-3\nkind = \"cosin\"",
       "schedule.kind: found 'cosin', expected one of constant, cosine, linear, wsd, v3, v2"},
      {"lr = 1e-3", "lr = 1e-3\nwarmup_steps = -2", "schedule.warmup_steps: found -2"},
      {"lr = 1e-3", "lr = 1e-3\nfinal_lr_factor = 2",
       "schedule.final_lr_factor: found 2, expected 0 to 1"},
      {"[schedule]", "[optimizer]\nkind = \"sgd\"\n[schedule]",
       "optimizer.kind: found 'sgd', expected one of adamw, muon"},
      {"[schedule]", "[optimizer]\nmuon_momentum = 1\n[schedule]",
       "optimizer.muon_momentum: found 1, expected 0 to 0.9999"},
      {"[schedule]", "[optimizer]\nmoun_momentum = 0.9\n[schedule]",
       "optimizer.moun_momentum: found a key that is not known, expected perhaps 'muon_momentum'"},
      {"[schedule]", "[optimizer]\ngroups = \"norm\"\n[schedule]",
       "r.toml:24: optimizer.groups: found a string, expected an array of tables"},
      {"[schedule]", "[optimizer]\ngroups = [3]\n[schedule]",
       "r.toml:24: optimizer.groups: found an integer, expected a table"},
      {"[schedule]", "[optimizer]\ngroups = [{ lr_scale = 2 }]\n[schedule]",
       "r.toml: optimizer.groups.match: missing"},
      {"[schedule]", "[optimizer]\ngroups = [{ match = [\"norm\"] }]\n[schedule]",
       "optimizer.groups.match: found an array, expected a string"},
      {"[schedule]", "[optimizer]\ngroups = [{ match = \"\" }]\n[schedule]",
       "optimizer.groups.match: found '', expected parts of names such as 'embed_tokens|lm_head'"},
      {"[schedule]", "[optimizer]\ngroups = [{ match = \"norm|\" }]\n[schedule]",
       "optimizer.groups.match: found 'norm|', expected parts of names"},
      {"[schedule]", "[optimizer]\ngroups = [{ match = \"norm\", lr = 2 }]\n[schedule]",
       "optimizer.groups.lr: found a key that is not known, expected one of lr_scale, match, "
       "weight_decay"},
      {"[schedule]", "[optimizer]\ngroups = [{ match = \"norm\", lr_scale = -1 }]\n[schedule]",
       "optimizer.groups.lr_scale: found -1, expected 0 to 1000"},
      {"[schedule]", "[[optimizer.groups]]\nmatch = \"norm\"\nweight_decay = 11\n[schedule]",
       "r.toml:25: optimizer.groups.weight_decay: found 11, expected 0 to 10"},
      {"[schedule]", "[optimizer]\nbeta1 = 1\n[schedule]",
       "optimizer.beta1: found 1, expected 0 to 0.9999"},
      {"[schedule]", "[optimizer]\nweight_decay = -0.1\n[schedule]",
       "optimizer.weight_decay: found -0.1, expected 0 to 10"},
      {"[schedule]", "[moe]\nbias_update_rate = 2\n[schedule]",
       "moe.bias_update_rate: found 2, expected 0 to 1"},
      {"[schedule]", "[moe]\ndevice_balance_alpha = -1\n[schedule]",
       "moe.device_balance_alpha: found -1, expected 0 to 1000000"},
      {"[schedule]", "[moe]\ncomunication_balance_alpha = 0.02\n[schedule]",
       "moe.comunication_balance_alpha: found a key that is not known, expected perhaps "
       "'communication_balance_alpha'"},
      {"[schedule]", "[mtp]\nlos_weight = 0.1\n[schedule]",
       "mtp.los_weight: found a key that is not known, expected perhaps 'loss_weight'"},
      {"[schedule]", "[lora]\nrank = 4\ntargets = [\"q_proj\"]\n[schedule]",
       "lora: found without model.path, expected a model to adapt"},
      {"[schedule]", "[evaluation]\ntask = \"chess\"\n[schedule]",
       "r.toml:24: evaluation.task: found 'chess', expected one of countdown"},
      {"[schedule]", "[evaluation]\ntemperature = 0\n[schedule]",
       "evaluation.temperature: found 0, expected 0.01 to 10"},
      {"[schedule]", "[checkpoint]\nkeep = 1\n[schedule]",
       "checkpoint.keep: found 1, expected 2 to 1000"},
      {"[schedule]", "[schedule", "r.toml:23: "},
      {"name = \"try\"", "name = \"try\"\nname = \"again\"", "r.toml:2: "},
  };
  for (const Case& c : kCases) {
    const std::string message = refusal(replaced(kGood, c.from, c.to));
    EXPECT_NE(message.find(c.message), std::string::npos)
        << message << "\n  expected: " << c.message;
    EXPECT_TRUE(message.starts_with("r.toml") || message.starts_with("try:")) << message;
  }
  EXPECT_GE(std::size(kCases), 40u);
}

TEST(Recipe, OverridesAreRefusedAsTheCommandLines) {
  EXPECT_NE(
      refusal(kGood, {"train.tokens"}).find("command line: 'train.tokens': expected KEY=VALUE"),
      std::string::npos);
  EXPECT_NE(refusal(kGood, {"=3"}).find("expected KEY=VALUE"), std::string::npos);
  EXPECT_EQ(refusal(kGood, {"train.tokens=x"}),
            "command line: train.tokens: found a string, expected an integer");
  EXPECT_EQ(refusal(kGood, {"train.token=5"}),
            "command line: train.token: found a key that is not known, expected perhaps 'tokens'");
  EXPECT_EQ(refusal(kGood, {"train=5"}), "command line: train: found an integer, expected a table");
  EXPECT_NE(refusal(kGood, {"a..b=1"}).find("command line: 'a..b=1': "), std::string::npos);
}

TEST(Recipe, ModelPathNeedsNoTokenizerAndAllowsLora) {
  std::string text = kGood;
  const size_t begin = text.find("[model]"), end = text.find("[data]");
  text.replace(
      begin, end - begin,
      "[model]\npath = \"m\"\n[lora]\nrank = 4\nalpha = 8\ntargets = [\"self_attn\", \"mlp\"]\n");
  const Recipe r = parse_recipe(text, "r.toml");
  EXPECT_EQ(r.model_path, "m");
  ASSERT_TRUE(r.lora);
  EXPECT_EQ(r.lora->targets, (std::vector<std::string>{"self_attn", "mlp"}));
  EXPECT_EQ(parse_recipe(r.text, "again").text, r.text);
  EXPECT_EQ(r.tokenizer, "");
  EXPECT_EQ(parse_recipe(text + "[tokenizer]\npath = \"characters\"\n", "r.toml").tokenizer,
            "characters");
  EXPECT_NE(refusal(replaced(text, "targets = [\"self_attn\", \"mlp\"]", "targets = [3]"))
                .find("lora.targets: found an integer, expected a string"),
            std::string::npos);
}

}  // namespace
}  // namespace fathom
