#include "train/recipe.h"

#define TOML_EXCEPTIONS 1
#include <toml++/toml.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "train/tasks.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;
constexpr uint64_t kLargestRecipe = 1 << 20;

std::string_view kind_of(const toml::node& node) {
  switch (node.type()) {
    case toml::node_type::table:
      return "a table";
    case toml::node_type::array:
      return "an array";
    case toml::node_type::string:
      return "a string";
    case toml::node_type::integer:
      return "an integer";
    case toml::node_type::floating_point:
      return "a number";
    case toml::node_type::boolean:
      return "a boolean";
    default:
      return "a date";
  }
}

// File and line. merge() copies values, and a copy has no place in a file.
std::string place_of(const toml::node& node, const std::string& file) {
  const auto line = node.source().begin.line;
  return line == 0 ? "command line" : fmt::format("{}:{}", file, line);
}

// Edit distance, for "did you mean".
size_t distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0]++;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, change});
    }
  }
  return row[b.size()];
}

std::string toml_string(const std::string& text) {
  // JSON's escapes are TOML's
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string toml_number(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}

// One table of the recipe. Every key that is asked for is written down, with its value, for the
// resolved text; what was never asked for is unknown.
class Section {
 public:
  Section(const toml::table* table, std::string name, const std::string& place, std::string& text)
      : table_(table), name_(std::move(name)), place_(place), text_(text) {
    if (!name_.empty()) text_ += fmt::format("\n[{}]\n", name_);
  }

  bool has(std::string_view key) {
    known_.insert(std::string(key));
    return table_ != nullptr && table_->contains(key);
  }

  int64_t integer(std::string_view key, std::optional<int64_t> fallback, int64_t low,
                  int64_t high) {
    const toml::node* node = find(key, fallback.has_value());
    int64_t value = fallback.value_or(0);
    if (node != nullptr) {
      if (!node->is_integer()) refuse(*node, key, kind_of(*node), "an integer");
      value = **node->as_integer();
    }
    if (value < low || value > high)
      refuse(node, key, fmt::format("{}", value), fmt::format("{} to {}", low, high));
    write(key, fmt::format("{}", value));
    return value;
  }

  double number(std::string_view key, std::optional<double> fallback, double low, double high) {
    const toml::node* node = find(key, fallback.has_value());
    double value = fallback.value_or(0);
    if (node != nullptr) {
      if (!node->is_number()) refuse(*node, key, kind_of(*node), "a number");
      value = *node->value<double>();
    }
    if (!(value >= low && value <= high)) {
      refuse(node, key, fmt::format("{}", value), fmt::format("{} to {}", low, high));
    }
    write(key, toml_number(value));
    return value;
  }

  bool boolean(std::string_view key, bool fallback) {
    const toml::node* node = find(key, true);
    if (node != nullptr && !node->is_boolean()) refuse(*node, key, kind_of(*node), "true or false");
    const bool value = node != nullptr ? **node->as_boolean() : fallback;
    write(key, value ? "true" : "false");
    return value;
  }

  std::string string(std::string_view key, std::optional<std::string> fallback) {
    const toml::node* node = find(key, fallback.has_value());
    if (node != nullptr && !node->is_string()) refuse(*node, key, kind_of(*node), "a string");
    const std::string value = node != nullptr ? **node->as_string() : fallback.value_or("");
    write(key, toml_string(value));
    return value;
  }

  size_t choice(std::string_view key, std::optional<std::string> fallback,
                std::span<const char* const> names) {
    const std::string value = string(key, std::move(fallback));
    for (size_t i = 0; i < names.size(); ++i) {
      if (value == names[i]) return i;
    }
    refuse(find(key, true), key, quoted(value), fmt::format("one of {}", fmt::join(names, ", ")));
  }

  // The name of a task, or "".
  std::string task(std::string_view key) {
    const std::string value = string(key, "");
    if (!value.empty()) expect_task(*find(key, true), key, value);
    return value;
  }

  std::vector<std::string> strings(std::string_view key) {
    const toml::node* node = find(key, false);
    if (!node->is_array()) refuse(*node, key, kind_of(*node), "an array of strings");
    std::vector<std::string> values;
    std::string text;
    for (const toml::node& element : *node->as_array()) {
      if (!element.is_string()) refuse(element, key, kind_of(element), "a string");
      values.push_back(**element.as_string());
      text += (text.empty() ? "" : ", ") + toml_string(values.back());
    }
    write(key, "[" + text + "]");
    return values;
  }

  // "a|b" as its parts.
  std::vector<std::string> parts(std::string_view key) {
    const std::string value = string(key, std::nullopt);
    std::vector<std::string> values;
    for (size_t begin = 0; begin <= value.size();) {
      const size_t end = std::min(value.find('|', begin), value.size());
      values.push_back(value.substr(begin, end - begin));
      if (values.back().empty())
        refuse(find(key, false), key, quoted(value),
               "parts of names such as 'embed_tokens|lm_head'");
      begin = end + 1;
    }
    return values;
  }

  // [{ ... }, ...]: read(section) takes the keys of each. Absent is empty.
  template <class Read>
  void tables(std::string_view key, Read read) {
    const toml::node* node = find(key, true);
    if (node != nullptr && !node->is_array())
      refuse(*node, key, kind_of(*node), "an array of tables");
    std::string text;
    for (size_t i = 0; node != nullptr && i < node->as_array()->size(); ++i) {
      const toml::node& element = *node->as_array()->get(i);
      if (!element.is_table()) refuse(element, key, kind_of(element), "a table");
      std::string lines;
      Section section(element.as_table(), full(key), place_, lines);
      lines.clear();  // its header; the table goes into one line
      read(section);
      section.expect_nothing_else();
      lines.pop_back();
      for (size_t at = 0; (at = lines.find('\n', at)) != std::string::npos;)
        lines.replace(at, 1, ", ");
      text += (text.empty() ? "{ " : ", { ") + lines + " }";
    }
    write(key, "[" + text + "]");
  }

  // { name = weight, ... }
  std::vector<std::pair<std::string, double>> weights(std::string_view key) {
    const toml::node* node = find(key, false);
    if (!node->is_table())
      refuse(*node, key, kind_of(*node), "a table such as { countdown = 1.0 }");
    std::vector<std::pair<std::string, double>> values;
    std::string text;
    for (const auto& [name, weight] : *node->as_table()) {
      const std::string task(name.str());
      expect_task(weight, key, task);
      const auto value = weight.value<double>();
      if (!value || !(*value > 0) || !std::isfinite(*value)) {
        refuse(weight, key, fmt::format("{} for {}", kind_of(weight), quoted(task)),
               "a weight above 0");
      }
      values.emplace_back(task, *value);
      text += fmt::format("{}{} = {}", text.empty() ? "" : ", ", task, toml_number(*value));
    }
    if (values.empty()) refuse(*node, key, "no task", "at least one");
    write(key, "{ " + text + " }");
    return values;
  }

  // A key of config.json, handed on as it is; config.cc checks it.
  void hand_on(std::string_view key, Json& config) {
    if (!has(key)) return;
    const toml::node& node = *table_->get(key);
    const Json value = to_json(node, key);
    config[std::string(key)] = value;
    write(key, node.is_table()            ? inline_table(value)
               : node.is_floating_point() ? toml_number(**node.as_floating_point())
                                          : value.dump());
  }

  // Anything that nobody asked for is a mistake of the writer's.
  void expect_nothing_else(std::span<const char* const> also = {}) const {
    if (table_ == nullptr) return;
    for (const auto& [key, node] : *table_) {
      const std::string name(key.str());
      if (known_.contains(name) || std::find(also.begin(), also.end(), name) != also.end())
        continue;
      std::vector<std::string> names(known_.begin(), known_.end());
      names.insert(names.end(), also.begin(), also.end());
      const auto nearest = std::min_element(
          names.begin(), names.end(),
          [&](const auto& a, const auto& b) { return distance(a, name) < distance(b, name); });
      refuse(node, name, "a key that is not known",
             nearest != names.end() && distance(*nearest, name) <= 3
                 ? fmt::format("perhaps {}", quoted(*nearest))
                 : fmt::format("one of {}", fmt::join(names, ", ")));
    }
  }

  [[noreturn]] void refuse(const toml::node& node, std::string_view key, std::string_view found,
                           std::string_view expected) const {
    refuse(&node, key, fmt::format("{}", found), expected);
  }
  template <class Found>
  [[noreturn]] void refuse(const toml::node* node, std::string_view key, const Found& found,
                           std::string_view expected) const {
    const std::string where = node == nullptr ? place_ : place_of(*node, place_);
    fail("{}: {}: found {}, expected {}", where, full(key), found, expected);
  }

 private:
  void expect_task(const toml::node& node, std::string_view key, const std::string& task) const {
    if (std::find(task_names().begin(), task_names().end(), task) != task_names().end()) return;
    refuse(node, key, fmt::format("{}", quoted(task)),
           fmt::format("one of {}", fmt::join(task_names(), ", ")));
  }
  std::string full(std::string_view key) const {
    return name_.empty() ? std::string(key) : fmt::format("{}.{}", name_, key);
  }
  const toml::node* find(std::string_view key, bool optional) {
    if (has(key)) return table_->get(key);
    if (!optional) fail("{}: {}: missing", place_, full(key));
    return nullptr;
  }
  void write(std::string_view key, const std::string& value) {
    text_ += fmt::format("{} = {}\n", key, value);
  }

  Json to_json(const toml::node& node, std::string_view key) const {
    if (node.is_integer()) return **node.as_integer();
    if (node.is_floating_point()) return **node.as_floating_point();
    if (node.is_boolean()) return **node.as_boolean();
    if (node.is_string()) return **node.as_string();
    if (!node.is_table()) refuse(node, key, kind_of(node), "a number, string, boolean or table");
    Json object = Json::object();
    for (const auto& [name, value] : *node.as_table()) {
      if (value.is_table()) refuse(value, key, "a table in a table", "plain values");
      object[std::string(name.str())] = to_json(value, key);
    }
    return object;
  }
  static std::string inline_table(const Json& object) {
    std::string text;
    for (const auto& [name, value] : object.items())
      text += fmt::format("{}{} = {}", text.empty() ? "" : ", ", name, value.dump());
    return "{ " + text + " }";
  }

  const toml::table* table_;
  std::string name_;
  const std::string& place_;
  std::string& text_;
  std::set<std::string> known_;
};

// Values of `from` replace or join those of `into`.
void merge(const toml::table& from, toml::table& into) {
  for (const auto& [key, node] : from) {
    toml::node* old = into.get(key);
    if (node.is_table() && old != nullptr && old->is_table()) {
      merge(*node.as_table(), *old->as_table());
    } else {
      node.visit([&, &name = key](const auto& value) { into.insert_or_assign(name, value); });
    }
  }
}

toml::table parse_override(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals == 0) {
    fail("command line: {}: expected KEY=VALUE, such as train.tokens=1000000", quoted(text));
  }
  const std::string key = text.substr(0, equals), value = text.substr(equals + 1);
  try {
    return toml::parse(key + " = " + value, std::string("command line"));
  } catch (const toml::parse_error&) {
  }
  try {  // a word that is no TOML value is a string: data.path=my/shards
    return toml::parse(key + " = " + toml_string(value), std::string("command line"));
  } catch (const toml::parse_error& e) {
    fail("command line: {}: {}", quoted(text), e.description());
  }
}

constexpr const char* kConfigKeys[] = {"hidden_size",
                                       "num_hidden_layers",
                                       "num_attention_heads",
                                       "num_key_value_heads",
                                       "intermediate_size",
                                       "max_position_embeddings",
                                       "rms_norm_eps",
                                       "initializer_range",
                                       "tie_word_embeddings",
                                       "attention_bias",
                                       "rope_theta",
                                       "rope_scaling",
                                       "head_dim",
                                       "q_lora_rank",
                                       "kv_lora_rank",
                                       "qk_nope_head_dim",
                                       "qk_rope_head_dim",
                                       "v_head_dim",
                                       "n_routed_experts",
                                       "n_shared_experts",
                                       "moe_intermediate_size",
                                       "first_k_dense_replace",
                                       "moe_layer_freq",
                                       "num_experts_per_tok",
                                       "n_group",
                                       "topk_group",
                                       "topk_method",
                                       "scoring_func",
                                       "norm_topk_prob",
                                       "routed_scaling_factor",
                                       "num_nextn_predict_layers"};

void read_model(Section& s, Recipe& r) {
  if (s.has("path")) {
    r.model_path = s.string("path", std::nullopt);
    return s.expect_nothing_else();
  }
  static constexpr const char* kNames[] = {"deepseek_v3", "deepseek_v2", "qwen2", "llama"};
  static constexpr const char* kClasses[] = {"DeepseekV3ForCausalLM", "DeepseekV2ForCausalLM",
                                             "Qwen2ForCausalLM", "LlamaForCausalLM"};
  const size_t which = s.choice("architecture", std::nullopt, kNames);
  Json config;
  config["architectures"] = {kClasses[which]};
  config["model_type"] = kNames[which];
  config["hidden_act"] = "silu";
  config["moe_layer_freq"] = 1;
  for (const char* key : kConfigKeys) s.hand_on(key, config);
  r.vocab_size = s.integer("vocab_size", 0, 0, 1 << 24);
  s.expect_nothing_else();
  r.config_json = config.dump();
}

void read_data(Section& s, Recipe& r) {
  static constexpr const char* kKinds[] = {"texts", "conversations", "shards", "messages"};
  r.data.kind = static_cast<DataKind>(s.choice("kind", std::nullopt, kKinds));
  if (r.data.kind == DataKind::kTexts || r.data.kind == DataKind::kConversations) {
    r.data.tasks = s.weights("tasks");
    if (r.data.kind == DataKind::kConversations)
      r.data.thought_share = s.number("thought_share", 1, 0, 1);
  } else {
    r.data.path = s.string("path", std::nullopt);
  }
  r.data.sequence_length = s.integer("sequence_length", std::nullopt, 2, 1 << 20);
  s.expect_nothing_else();
}

void read_train(Section& s, Recipe& r) {
  r.train.tokens = s.integer("tokens", std::nullopt, 1, int64_t{1} << 50);
  r.train.tokens_per_step =
      s.integer("tokens_per_step", std::nullopt, r.data.sequence_length, 1 << 28);
  r.train.micro_batch_tokens =
      s.integer("micro_batch_tokens", r.train.tokens_per_step, r.data.sequence_length, 1 << 28);
  static constexpr const char* kPrecisions[] = {"bf16", "f32"};
  r.train.f32 = s.choice("precision", "bf16", kPrecisions) == 1;
  r.train.recompute = s.boolean("recompute", false);
  s.expect_nothing_else();
}

void read_optimizer(Section& s, Recipe& r) {
  static constexpr const char* kKinds[] = {"adamw", "muon"};
  r.optimizer.kind = static_cast<OptimizerKind>(s.choice("kind", "adamw", kKinds));
  r.optimizer.beta1 = s.number("beta1", 0.9, 0, 0.9999);
  r.optimizer.beta2 = s.number("beta2", 0.95, 0, 0.99999);
  r.optimizer.eps = s.number("eps", 1e-8, 1e-30, 1);
  r.optimizer.muon_momentum = s.number("muon_momentum", 0.95, 0, 0.9999);
  r.optimizer.weight_decay = s.number("weight_decay", 0.1, 0, 10);
  r.optimizer.clip = s.number("clip", 1.0, 0, 1e9);
  s.tables("groups", [&](Section& g) {
    ParameterGroup& group = r.optimizer.groups.emplace_back();
    group.match = g.parts("match");
    group.lr_scale = g.number("lr_scale", 1.0, 0, 1000);
    // Without one it depends on the parameter: there is no default to write down.
    if (g.has("weight_decay")) group.weight_decay = g.number("weight_decay", std::nullopt, 0, 10);
  });
  s.expect_nothing_else();
}

void read_schedule(Section& s, Recipe& r) {
  static constexpr const char* kKinds[] = {"constant", "cosine", "linear", "wsd", "v3", "v2"};
  r.schedule.kind = static_cast<ScheduleKind>(s.choice("kind", "cosine", kKinds));
  r.schedule.lr = s.number("lr", std::nullopt, 0, 10);
  r.schedule.warmup_steps = s.integer("warmup_steps", 0, 0, int64_t{1} << 40);
  r.schedule.final_lr_factor = s.number("final_lr_factor", 0.1, 0, 1);
  r.schedule.decay_share = s.number("decay_share", 0.2, 0, 1);
  s.expect_nothing_else();
}

void read_evaluation(Section& s, Recipe& r) {
  Recipe::Evaluation& e = r.evaluation;
  e.every = s.integer("every", 0, 0, int64_t{1} << 40);
  e.validation_tokens = s.integer("validation_tokens", 16384, 1, 1 << 28);
  e.task = s.task("task");
  e.problems = s.integer("problems", 100, 1, 1 << 24);
  e.samples = s.integer("samples", 0, 0, 4096);
  e.temperature = s.number("temperature", 1.0, 0.01, 10);
  e.max_tokens = s.integer("max_tokens", 256, 1, 1 << 20);
  s.expect_nothing_else();
}

Recipe read(const toml::table& root, const std::string& place) {
  Recipe r;
  const auto table = [&](const char* name) -> const toml::table* {
    const toml::node* node = root.get(name);
    if (node != nullptr && !node->is_table())
      fail("{}: {}: found {}, expected a table", place_of(*node, place), name, kind_of(*node));
    return node == nullptr ? nullptr : node->as_table();
  };
  Section top(&root, "", place, r.text);
  r.name = top.string("name", std::nullopt);
  r.seed = static_cast<uint64_t>(top.integer("seed", 1, 0, INT64_MAX));
  r.threads = static_cast<int>(top.integer("threads", 0, 0, 4096));
  static constexpr const char* kSections[] = {"model",     "tokenizer",  "data",      "train",
                                              "optimizer", "schedule",   "moe",       "mtp",
                                              "lora",      "evaluation", "checkpoint"};
  top.expect_nothing_else(kSections);

  Section model(table("model"), "model", place, r.text);
  read_model(model, r);
  if (r.model_path.empty() || table("tokenizer") != nullptr) {
    Section s(table("tokenizer"), "tokenizer", place, r.text);
    r.tokenizer = s.string("path", std::nullopt);
    s.expect_nothing_else();
  }
  Section data(table("data"), "data", place, r.text);
  read_data(data, r);
  Section train(table("train"), "train", place, r.text);
  read_train(train, r);
  Section optimizer(table("optimizer"), "optimizer", place, r.text);
  read_optimizer(optimizer, r);
  Section schedule(table("schedule"), "schedule", place, r.text);
  read_schedule(schedule, r);
  Section moe(table("moe"), "moe", place, r.text);
  r.bias_update_rate = moe.number("bias_update_rate", 0.001, 0, 1);
  r.bias_update_until = moe.number("bias_update_until", 1, 0, 1);
  r.balance_alpha.sequence = moe.number("sequence_balance_alpha", 1e-4, 0, 1e6);
  r.balance_alpha.device = moe.number("device_balance_alpha", 0, 0, 1e6);
  r.balance_alpha.communication = moe.number("communication_balance_alpha", 0, 0, 1e6);
  moe.expect_nothing_else();
  Section mtp(table("mtp"), "mtp", place, r.text);
  r.mtp_loss_weight = mtp.number("loss_weight", 0.3, 0, 1e6);
  r.mtp_late_loss_weight = mtp.number("late_loss_weight", r.mtp_loss_weight, 0, 1e6);
  r.mtp_late_from = mtp.number("late_from", 1, 0, 1);
  mtp.expect_nothing_else();
  if (table("lora") != nullptr) {
    Section s(table("lora"), "lora", place, r.text);
    if (r.model_path.empty())
      fail("{}: lora: found without model.path, expected a model to adapt", place);
    r.lora.emplace();
    r.lora->rank = s.integer("rank", 16, 1, 4096);
    r.lora->alpha = s.number("alpha", 32, 1e-6, 1e6);
    r.lora->targets = s.strings("targets");
    s.expect_nothing_else();
  }
  Section evaluation(table("evaluation"), "evaluation", place, r.text);
  read_evaluation(evaluation, r);
  Section checkpoint(table("checkpoint"), "checkpoint", place, r.text);
  r.checkpoint.every = checkpoint.integer("every", 0, 0, int64_t{1} << 40);
  r.checkpoint.keep = checkpoint.integer("keep", 2, 2, 1000);
  checkpoint.expect_nothing_else();
  return r;
}

}  // namespace

Recipe parse_recipe(std::string_view text, const std::string& place,
                    std::span<const std::string> overrides) {
  toml::table root;
  try {
    root = toml::parse(text, place);
  } catch (const toml::parse_error& e) {
    fail("{}:{}: {}", place, e.source().begin.line, e.description());
  }
  for (const std::string& override : overrides) merge(parse_override(override), root);
  return read(root, place);
}

Recipe load_recipe(const std::filesystem::path& path, std::span<const std::string> overrides) {
  return parse_recipe(read_file(path, kLargestRecipe), path.string(), overrides);
}

}  // namespace fathom
