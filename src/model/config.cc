#include "model/config.h"

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "formats/json.h"

namespace fathom {
namespace {

constexpr Limits kLimits;
constexpr auto kMaxWidth = static_cast<int64_t>(kLimits.width);
constexpr auto kMaxHeads = static_cast<int64_t>(kLimits.heads);
constexpr auto kMaxShared = static_cast<int64_t>(kLimits.shared_experts);
constexpr auto kMaxPositions = static_cast<int64_t>(kLimits.positions);

struct ArchitectureName {
  Architecture architecture;
  std::string_view hf_class;
};
constexpr ArchitectureName kArchitectures[] = {
    {Architecture::kDeepseekV2, "DeepseekV2ForCausalLM"},
    {Architecture::kDeepseekV3, "DeepseekV3ForCausalLM"},
    {Architecture::kQwen2, "Qwen2ForCausalLM"},
    {Architecture::kLlama, "LlamaForCausalLM"},
};

Architecture parse_architecture(const JsonObject& json) {
  const nlohmann::json& list = json.value("architectures");
  if (!list.is_array() || list.size() != 1 || !list[0].is_string()) {
    fail("{}: architectures: expected a list of one class name", json.place());
  }
  const auto& name = list[0].get_ref<const std::string&>();
  for (const auto& known : kArchitectures) {
    if (name == known.hf_class) return known.architecture;
  }
  if (name == "DeepseekV32ForCausalLM" || name == "DeepseekV4ForCausalLM") {
    fail("{}: architectures: {} uses sparse attention, which this version does not run",
         json.place(), name);
  }
  fail(
      "{}: architectures: found {}, expected DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, "
      "Qwen2ForCausalLM or LlamaForCausalLM",
      json.place(), quoted(name));
}

void expect_string(const JsonObject& json, std::string_view key, std::string_view expected) {
  const auto found = json.optional_string(key);
  if (found && *found != expected)
    fail("{}: {}: found {}, expected '{}'", json.place(), key, quoted(*found), expected);
}

void expect_false(const JsonObject& json, std::string_view key) {
  if (json.optional_boolean(key).value_or(false))
    fail("{}: {}: found true, expected false (not supported)", json.place(), key);
}

double positive(const JsonObject& json, std::string_view key, double fallback) {
  const double value = json.optional_number(key).value_or(fallback);
  if (!(value > 0) || !std::isfinite(value))
    fail("{}: {}: found {}, expected a positive number", json.place(), key, value);
  return value;
}

void parse_rope(const JsonObject& json, RopeConfig& rope) {
  // transformers 5 moved rope_theta and rope_scaling into rope_parameters.
  const auto parameters = json.optional_object("rope_parameters");
  const auto scaling = parameters ? parameters : json.optional_object("rope_scaling");
  rope.rope_theta = positive(parameters && parameters->has("rope_theta") ? *parameters : json,
                             "rope_theta", 10000);
  if (!scaling) return;
  std::optional<std::string> type = scaling->optional_string("rope_type");
  if (!type) type = scaling->optional_string("type");
  if (!type) fail("{}: rope_scaling: type is missing", json.place());
  if (*type == "default") return;
  if (*type != "yarn" && *type != "llama3") {
    fail("{}: rope_scaling: type: found {}, expected yarn or llama3", json.place(), quoted(*type));
  }
  rope.type = *type == "yarn" ? RopeScalingType::kYarn : RopeScalingType::kLlama3;
  scaling->number("factor");  // required
  rope.factor = positive(*scaling, "factor", 1);
  scaling->number("original_max_position_embeddings");
  rope.original_max_position_embeddings = positive(*scaling, "original_max_position_embeddings", 1);
  // Keys of the generic YaRN code that DeepSeek's does not have; they would change every angle.
  for (const char* key : {"attention_factor", "truncate"}) {
    if (scaling->has(key)) fail("{}: rope_scaling: {}: not supported", json.place(), key);
  }
  if (rope.type == RopeScalingType::kYarn) {
    rope.beta_fast = positive(*scaling, "beta_fast", 32);
    rope.beta_slow = positive(*scaling, "beta_slow", 1);
    rope.mscale = scaling->optional_number("mscale").value_or(1.0);
    rope.mscale_all_dim = scaling->optional_number("mscale_all_dim").value_or(0.0);
  } else {
    rope.low_freq_factor = positive(*scaling, "low_freq_factor", 1);
    rope.high_freq_factor = positive(*scaling, "high_freq_factor", 4);
    if (!(rope.high_freq_factor > rope.low_freq_factor)) {
      fail("{}: rope_scaling: high_freq_factor: found {}, expected more than low_freq_factor {}",
           json.place(), rope.high_freq_factor, rope.low_freq_factor);
    }
  }
}

float routed_scale(double value, std::string_view place) {
  if (!(value > 0 && value < 1e6))
    fail("{}: routed_scaling_factor: found {}, expected a positive number below 1e6", place, value);
  return static_cast<float>(value);
}

ScoringFunc parse_scoring_func(const JsonObject& json, bool v3) {
  const std::string name =
      json.optional_string("scoring_func").value_or(v3 ? "sigmoid" : "softmax");
  if (name == "softmax") return ScoringFunc::kSoftmax;
  if (name == "sigmoid") return ScoringFunc::kSigmoid;
  fail("{}: scoring_func: found {}, expected softmax or sigmoid", json.place(), quoted(name));
}

TopkMethod parse_topk_method(const JsonObject& json, bool v3) {
  const std::string name = json.optional_string("topk_method").value_or(v3 ? "noaux_tc" : "greedy");
  if (name == "greedy") return TopkMethod::kGreedy;
  if (name == "group_limited_greedy") return TopkMethod::kGroupLimitedGreedy;
  if (name == "noaux_tc") return TopkMethod::kNoauxTc;
  fail("{}: topk_method: found {}, expected greedy, group_limited_greedy or noaux_tc", json.place(),
       quoted(name));
}

// Checks that hold for every source of a config. `place` names the file.
void validate(const ModelConfig& c, std::string_view place) {
  const auto require = [&](bool ok, std::string_view what) {
    if (!ok) fail("{}: {}", place, what);
  };
  require(c.rms_norm_eps > 0 && c.rms_norm_eps < 1,
          "rms_norm_eps: expected a number between 0 and 1");
  require(c.rope_dim() % 2 == 0, "rotary dimension: expected an even number");
  require(c.rope.freq_divisors.empty() ||
              static_cast<int64_t>(c.rope.freq_divisors.size()) == c.rope_dim() / 2,
          "rope_freqs.weight: expected one divisor for each pair of rotary dimensions");
  if (!c.is_mla()) {
    require(c.num_attention_heads % c.num_key_value_heads == 0,
            "num_attention_heads: expected a multiple of num_key_value_heads");
  }
  if (c.n_routed_experts > 0) {
    const RouterRule& r = c.router;
    require(r.num_experts_per_tok <= c.n_routed_experts,
            "num_experts_per_tok: expected at most n_routed_experts");
    require(c.n_routed_experts % r.n_group == 0,
            "n_routed_experts: expected a multiple of n_group");
    require(r.topk_group <= r.n_group, "topk_group: expected at most n_group");
    require(r.topk_group * (c.n_routed_experts / r.n_group) >= r.num_experts_per_tok,
            "topk_group: the chosen groups hold fewer experts than num_experts_per_tok");
    require(
        (r.topk_method == TopkMethod::kNoauxTc) == (r.scoring_func == ScoringFunc::kSigmoid),
        "topk_method: expected noaux_tc with sigmoid, greedy or group_limited_greedy with softmax");
  }
  const auto in_vocabulary = [&](int64_t id) { return id >= -1 && id < c.vocab_size; };
  require(in_vocabulary(c.bos_token_id), "bos_token_id: expected an id below vocab_size");
  for (const int64_t id : c.eos_token_ids)
    require(in_vocabulary(id), "eos_token_id: expected ids below vocab_size");
}

}  // namespace

std::string_view architecture_name(Architecture architecture) {
  for (const auto& known : kArchitectures) {
    if (known.architecture == architecture) return known.hf_class;
  }
  return "?";
}

ModelConfig parse_config(std::string_view config_json, std::string_view place) {
  const nlohmann::json document = parse_json(config_json, place);
  const JsonObject json(document, std::string(place));
  ModelConfig c;
  c.architecture = parse_architecture(json);
  const bool v3 = c.architecture == Architecture::kDeepseekV3;
  const bool deepseek = v3 || c.architecture == Architecture::kDeepseekV2;

  expect_string(json, "hidden_act", "silu");
  c.vocab_size = json.integer("vocab_size", 1, static_cast<int64_t>(kLimits.vocabulary));
  c.hidden_size = json.integer("hidden_size", 1, kMaxWidth);
  c.num_hidden_layers = json.integer("num_hidden_layers", 1, static_cast<int64_t>(kLimits.layers));
  c.num_attention_heads = json.integer("num_attention_heads", 1, kMaxHeads);
  c.num_key_value_heads =
      json.optional_integer("num_key_value_heads", 1, kMaxHeads).value_or(c.num_attention_heads);
  c.intermediate_size = json.integer("intermediate_size", 1, kMaxWidth);
  c.max_position_embeddings = json.integer("max_position_embeddings", 1, kMaxPositions);
  c.rms_norm_eps = json.number("rms_norm_eps");
  c.initializer_range = json.optional_number("initializer_range").value_or(0.02);
  c.tie_word_embeddings = json.optional_boolean("tie_word_embeddings").value_or(false);
  expect_false(json, "attention_bias");
  expect_false(json, "mlp_bias");
  expect_false(json, "use_sliding_window");
  if (json.optional_number("partial_rotary_factor").value_or(1.0) != 1.0) {
    fail("{}: partial_rotary_factor: expected 1 (not supported)", json.place());
  }
  parse_rope(json, c.rope);

  const auto token_id = [&](const nlohmann::json& value, std::string_view key) {
    if (!value.is_number_integer() || value < 0 || value >= c.vocab_size) {
      fail("{}: {}: expected token ids in [0, vocab_size)", place, key);
    }
    return value.get<int64_t>();
  };
  if (json.has("bos_token_id"))
    c.bos_token_id = token_id(json.value("bos_token_id"), "bos_token_id");
  if (json.has("eos_token_id")) {
    const nlohmann::json& eos = json.value("eos_token_id");
    for (const auto& id : eos.is_array() ? eos : nlohmann::json::array({eos})) {
      c.eos_token_ids.push_back(token_id(id, "eos_token_id"));
    }
  }

  if (!deepseek) {
    if (c.hidden_size % c.num_attention_heads != 0 && !json.has("head_dim")) {
      fail("{}: hidden_size: found {}, expected a multiple of num_attention_heads {}", place,
           c.hidden_size, c.num_attention_heads);
    }
    c.head_dim = json.optional_integer("head_dim", 1, kMaxWidth)
                     .value_or(c.hidden_size / c.num_attention_heads);
    c.attention_bias = c.architecture == Architecture::kQwen2;
    c.rope.layout = RopeLayout::kHalfSplit;
    if (c.rope.type == RopeScalingType::kYarn)
      fail("{}: rope_scaling: type yarn: expected llama3 or none for {}", place,
           architecture_name(c.architecture));
    if (json.has("quantization_config"))
      fail("{}: quantization_config: not supported for {}", place,
           architecture_name(c.architecture));
    validate(c, place);
    return c;
  }

  if (c.rope.type == RopeScalingType::kLlama3)
    fail("{}: rope_scaling: type llama3: expected yarn or none", place);
  if (c.num_key_value_heads != c.num_attention_heads) {
    fail("{}: num_key_value_heads: found {}, expected num_attention_heads {} (MLA)", place,
         c.num_key_value_heads, c.num_attention_heads);
  }
  if (!json.optional_boolean("rope_interleave").value_or(true)) {
    fail("{}: rope_interleave: found false, expected true (DeepSeek's layout)", place);
  }
  c.q_lora_rank = json.optional_integer("q_lora_rank", 0, kMaxWidth).value_or(0);
  c.kv_lora_rank = json.integer("kv_lora_rank", 1, kMaxWidth);
  c.qk_nope_head_dim = json.integer("qk_nope_head_dim", 1, kMaxWidth);
  c.qk_rope_head_dim = json.integer("qk_rope_head_dim", 2, kMaxWidth);
  c.v_head_dim = json.integer("v_head_dim", 1, kMaxWidth);
  c.n_routed_experts =
      json.optional_integer("n_routed_experts", 0, static_cast<int64_t>(kLimits.experts))
          .value_or(0);
  if (c.n_routed_experts > 0) {
    c.n_shared_experts = json.optional_integer("n_shared_experts", 0, kMaxShared).value_or(0);
    c.moe_intermediate_size = json.integer("moe_intermediate_size", 1, kMaxWidth);
    c.first_k_dense_replace =
        json.optional_integer("first_k_dense_replace", 0, static_cast<int64_t>(kLimits.layers))
            .value_or(0);
    c.moe_layer_freq =
        json.optional_integer("moe_layer_freq", 1, static_cast<int64_t>(kLimits.layers))
            .value_or(1);
    RouterRule& r = c.router;
    r.scoring_func = parse_scoring_func(json, v3);
    r.topk_method = parse_topk_method(json, v3);
    r.n_routed_experts = static_cast<int>(c.n_routed_experts);
    r.num_experts_per_tok =
        static_cast<int>(json.integer("num_experts_per_tok", 1, c.n_routed_experts));
    r.n_group =
        static_cast<int>(json.optional_integer("n_group", 1, c.n_routed_experts).value_or(1));
    r.topk_group =
        static_cast<int>(json.optional_integer("topk_group", 1, c.n_routed_experts).value_or(1));
    r.norm_topk_prob = json.optional_boolean("norm_topk_prob").value_or(v3);
    r.routed_scaling_factor =
        routed_scale(json.optional_number("routed_scaling_factor").value_or(1.0), place);
  }
  c.num_nextn_predict_layers = json.optional_integer("num_nextn_predict_layers", 0, 1).value_or(0);
  if (c.num_nextn_predict_layers > 0 && !c.is_moe_layer(c.num_hidden_layers)) {
    fail("{}: num_nextn_predict_layers: expected a model with experts", place);
  }
  if (const auto quant = json.optional_object("quantization_config")) {
    expect_string(*quant, "quant_method", "fp8");
    expect_string(*quant, "fmt", "e4m3");
    if (quant->has("weight_block_size") &&
        quant->value("weight_block_size") != nlohmann::json::array({128, 128})) {
      fail("{}: quantization_config: weight_block_size: expected [128, 128]", place);
    }
  }
  validate(c, place);
  return c;
}

ModelConfig config_from_gguf(const Gguf& g) {
  const std::string& place = g.path();
  const std::string arch = g.string("general.architecture");
  ModelConfig c;
  if (arch == "deepseek2") {
    c.architecture = Architecture::kDeepseekV3;  // or V2: decided by the gating function below
  } else if (arch == "qwen2") {
    c.architecture = Architecture::kQwen2;
  } else if (arch == "llama") {
    c.architecture = Architecture::kLlama;
  } else {
    fail("{}: general.architecture: found {}, expected deepseek2, qwen2 or llama", place,
         quoted(arch));
  }
  const auto key = [&](std::string_view name) { return arch + "." + std::string(name); };
  const bool mla = arch == "deepseek2";
  if (const std::string* name = g.optional_string("general.name")) c.name = *name;

  const int64_t blocks = g.integer(key("block_count"), 1, static_cast<int64_t>(kLimits.layers));
  c.num_nextn_predict_layers = g.optional_integer(key("nextn_predict_layers"), 0, 1).value_or(0);
  c.num_hidden_layers = blocks - c.num_nextn_predict_layers;
  if (c.num_hidden_layers < 1)
    fail("{}: {}: expected more than nextn_predict_layers", place, key("block_count"));
  c.hidden_size = g.integer(key("embedding_length"), 1, kMaxWidth);
  c.intermediate_size = g.integer(key("feed_forward_length"), 1, kMaxWidth);
  c.max_position_embeddings = g.integer(key("context_length"), 1, kMaxPositions);
  c.num_attention_heads = g.integer(key("attention.head_count"), 1, kMaxHeads);
  c.rms_norm_eps = g.number(key("attention.layer_norm_rms_epsilon"));
  c.rope.rope_theta = g.optional_number(key("rope.freq_base")).value_or(10000);
  if (!(c.rope.rope_theta > 0))
    fail("{}: {}: expected a positive number", place, key("rope.freq_base"));
  const auto tokens = g.optional_strings("tokenizer.ggml.tokens");
  const auto vocab_size =
      g.optional_integer(key("vocab_size"), 1, static_cast<int64_t>(kLimits.vocabulary));
  if (!vocab_size && tokens == nullptr)
    fail("{}: {}: missing, and no tokenizer.ggml.tokens to count", place, key("vocab_size"));
  c.vocab_size = vocab_size ? *vocab_size : static_cast<int64_t>(tokens->size());
  const int64_t last_id = static_cast<int64_t>(kLimits.vocabulary);
  c.bos_token_id = g.optional_integer("tokenizer.ggml.bos_token_id", 0, last_id).value_or(-1);
  if (const auto eos = g.optional_integer("tokenizer.ggml.eos_token_id", 0, last_id))
    c.eos_token_ids.push_back(*eos);
  c.tie_word_embeddings = g.find("output.weight") == nullptr;  // GGUF's own definition of tied

  const std::string* scaling = g.optional_string(key("rope.scaling.type"));
  if (scaling != nullptr && *scaling != "none") {
    if (*scaling != "yarn" || !mla)
      fail("{}: {}: found {}, expected {}", place, key("rope.scaling.type"), quoted(*scaling),
           mla ? "yarn" : "none");
    c.rope.type = RopeScalingType::kYarn;
    c.rope.factor = g.number(key("rope.scaling.factor"));
    c.rope.original_max_position_embeddings = static_cast<double>(
        g.integer(key("rope.scaling.original_context_length"), 1, kMaxPositions));
    if (!(c.rope.factor > 0))
      fail("{}: {}: expected a positive number", place, key("rope.scaling.factor"));
    c.rope.beta_fast = g.optional_number(key("rope.scaling.yarn_beta_fast")).value_or(32);
    c.rope.beta_slow = g.optional_number(key("rope.scaling.yarn_beta_slow")).value_or(1);
    // The file stores 0.1 * mscale_all_dim; mscale equals it in every released model. Written as
    // f32, so ten times it is rounded back to the short decimal it came from (0.0707 -> 0.707).
    const double log_multiplier =
        g.optional_number(key("rope.scaling.yarn_log_multiplier")).value_or(0);
    c.rope.mscale = c.rope.mscale_all_dim = std::round(log_multiplier * 1e7) / 1e6;
  }

  if (!mla) {
    c.num_key_value_heads = g.optional_integer(key("attention.head_count_kv"), 1, kMaxHeads)
                                .value_or(c.num_attention_heads);
    const auto key_length = g.optional_integer(key("attention.key_length"), 1, kMaxWidth);
    if (!key_length && c.hidden_size % c.num_attention_heads != 0) {
      fail("{}: {}: found {}, expected a multiple of attention.head_count {}", place,
           key("embedding_length"), c.hidden_size, c.num_attention_heads);
    }
    c.head_dim = key_length.value_or(c.hidden_size / c.num_attention_heads);
    const int64_t rotary =
        g.optional_integer(key("rope.dimension_count"), 1, kMaxWidth).value_or(c.head_dim);
    if (rotary != c.head_dim)
      fail("{}: {}: found {}, expected the head size {}", place, key("rope.dimension_count"),
           rotary, c.head_dim);
    c.attention_bias = c.architecture == Architecture::kQwen2;
    // llama's q and k rows are permuted at conversion so that interleaved rotation is right;
    // qwen2's are not.
    c.rope.layout =
        c.architecture == Architecture::kLlama ? RopeLayout::kInterleaved : RopeLayout::kHalfSplit;
    if (const TensorInfo* divisors = g.find("rope_freqs.weight")) {
      if (divisors->dtype != DType::kF32 ||
          divisors->shape != std::vector<int64_t>{c.head_dim / 2}) {
        fail("{}: tensor rope_freqs.weight: expected F32 [{}]", place, c.head_dim / 2);
      }
      for (int64_t i = 0; i < c.head_dim / 2; ++i) {
        float value = 0;
        __builtin_memcpy(&value, divisors->data + i * 4, 4);
        if (!(value > 0))
          fail("{}: tensor rope_freqs.weight: element {}: found {}, expected a positive number",
               place, i, value);
        c.rope.freq_divisors.push_back(value);
      }
    }
    validate(c, place);
    return c;
  }

  c.num_key_value_heads = c.num_attention_heads;
  c.q_lora_rank = g.optional_integer(key("attention.q_lora_rank"), 0, kMaxWidth).value_or(0);
  c.kv_lora_rank = g.integer(key("attention.kv_lora_rank"), 1, kMaxWidth);
  c.qk_rope_head_dim = g.integer(key("rope.dimension_count"), 2, kMaxWidth);
  // New files give the per-head sizes in *_mla; in old ones key_length and value_length are them.
  const bool has_mla_keys = g.has(key("attention.key_length_mla"));
  const int64_t qk = g.integer(
      key(has_mla_keys ? "attention.key_length_mla" : "attention.key_length"), 1, kMaxWidth);
  c.v_head_dim = g.integer(
      key(has_mla_keys ? "attention.value_length_mla" : "attention.value_length"), 1, kMaxWidth);
  c.qk_nope_head_dim = qk - c.qk_rope_head_dim;
  if (c.qk_nope_head_dim < 1)
    fail("{}: {}: found {}, expected more than rope.dimension_count {}", place,
         key("attention.key_length"), qk, c.qk_rope_head_dim);
  c.n_routed_experts =
      g.optional_integer(key("expert_count"), 0, static_cast<int64_t>(kLimits.experts)).value_or(0);
  const int64_t gating = g.optional_integer(key("expert_gating_func"), 0, 16).value_or(1);
  if (gating != 1 && gating != 2)
    fail("{}: {}: found {}, expected 1 (softmax) or 2 (sigmoid)", place, key("expert_gating_func"),
         gating);
  c.architecture = gating == 2 ? Architecture::kDeepseekV3 : Architecture::kDeepseekV2;
  if (c.n_routed_experts > 0) {
    RouterRule& r = c.router;
    c.n_shared_experts = g.optional_integer(key("expert_shared_count"), 0, kMaxShared).value_or(0);
    c.moe_intermediate_size = g.integer(key("expert_feed_forward_length"), 1, kMaxWidth);
    c.first_k_dense_replace = g.optional_integer(key("leading_dense_block_count"), 0,
                                                 static_cast<int64_t>(kLimits.layers))
                                  .value_or(0);
    r.n_routed_experts = static_cast<int>(c.n_routed_experts);
    r.num_experts_per_tok =
        static_cast<int>(g.integer(key("expert_used_count"), 1, c.n_routed_experts));
    r.n_group = static_cast<int>(
        g.optional_integer(key("expert_group_count"), 1, c.n_routed_experts).value_or(1));
    r.topk_group = static_cast<int>(
        g.optional_integer(key("expert_group_used_count"), 1, c.n_routed_experts).value_or(1));
    r.scoring_func = gating == 2 ? ScoringFunc::kSigmoid : ScoringFunc::kSoftmax;
    r.topk_method = gating == 2     ? TopkMethod::kNoauxTc
                    : r.n_group > 1 ? TopkMethod::kGroupLimitedGreedy
                                    : TopkMethod::kGreedy;
    r.norm_topk_prob = g.optional_boolean(key("expert_weights_norm")).value_or(false);
    const double scale = g.optional_number(key("expert_weights_scale")).value_or(1.0);
    r.routed_scaling_factor = routed_scale(scale == 0 ? 1.0 : scale, place);
  }
  validate(c, place);
  return c;
}

ModelConfig load_config(const Checkpoint& checkpoint) {
  if (checkpoint.gguf() != nullptr) return config_from_gguf(*checkpoint.gguf());
  const auto text = checkpoint.side_file("config.json", kLimits.config_file_bytes);
  if (!text) fail("{}: config.json is missing beside the weights", checkpoint.path().string());
  const std::filesystem::path folder = checkpoint.kind() == Checkpoint::Kind::kFolder
                                           ? checkpoint.path()
                                           : checkpoint.path().parent_path();
  return parse_config(*text, (folder / "config.json").string());
}

std::string write_config(const ModelConfig& c) {
  nlohmann::ordered_json j;
  const bool v3 = c.architecture == Architecture::kDeepseekV3;
  j["architectures"] = {architecture_name(c.architecture)};
  j["model_type"] = v3                                            ? "deepseek_v3"
                    : c.architecture == Architecture::kDeepseekV2 ? "deepseek_v2"
                    : c.architecture == Architecture::kQwen2      ? "qwen2"
                                                                  : "llama";
  j["vocab_size"] = c.vocab_size;
  j["hidden_size"] = c.hidden_size;
  j["num_hidden_layers"] = c.num_hidden_layers;
  j["num_attention_heads"] = c.num_attention_heads;
  j["num_key_value_heads"] = c.num_key_value_heads;
  j["intermediate_size"] = c.intermediate_size;
  j["max_position_embeddings"] = c.max_position_embeddings;
  j["hidden_act"] = "silu";
  j["rms_norm_eps"] = c.rms_norm_eps;
  j["initializer_range"] = c.initializer_range;
  j["tie_word_embeddings"] = c.tie_word_embeddings;
  j["attention_bias"] = false;
  j["rope_theta"] = c.rope.rope_theta;
  if (c.rope.type == RopeScalingType::kYarn) {
    j["rope_scaling"] = {
        {"type", "yarn"},
        {"factor", c.rope.factor},
        {"beta_fast", c.rope.beta_fast},
        {"beta_slow", c.rope.beta_slow},
        {"mscale", c.rope.mscale},
        {"mscale_all_dim", c.rope.mscale_all_dim},
        {"original_max_position_embeddings", c.rope.original_max_position_embeddings}};
  } else if (c.rope.type == RopeScalingType::kLlama3) {
    j["rope_scaling"] = {
        {"rope_type", "llama3"},
        {"factor", c.rope.factor},
        {"low_freq_factor", c.rope.low_freq_factor},
        {"high_freq_factor", c.rope.high_freq_factor},
        {"original_max_position_embeddings", c.rope.original_max_position_embeddings}};
  } else {
    j["rope_scaling"] = nullptr;
  }
  if (c.bos_token_id >= 0) j["bos_token_id"] = c.bos_token_id;
  if (c.eos_token_ids.size() == 1) j["eos_token_id"] = c.eos_token_ids[0];
  if (c.eos_token_ids.size() > 1) j["eos_token_id"] = c.eos_token_ids;
  if (!c.is_mla()) {
    j["head_dim"] = c.head_dim;
    return j.dump(2) + "\n";
  }
  j["q_lora_rank"] =
      c.q_lora_rank > 0 ? nlohmann::ordered_json(c.q_lora_rank) : nlohmann::ordered_json(nullptr);
  j["kv_lora_rank"] = c.kv_lora_rank;
  j["qk_nope_head_dim"] = c.qk_nope_head_dim;
  j["qk_rope_head_dim"] = c.qk_rope_head_dim;
  j["v_head_dim"] = c.v_head_dim;
  if (c.n_routed_experts > 0) {
    const RouterRule& r = c.router;
    j["n_routed_experts"] = c.n_routed_experts;
    j["n_shared_experts"] = c.n_shared_experts;
    j["moe_intermediate_size"] = c.moe_intermediate_size;
    j["first_k_dense_replace"] = c.first_k_dense_replace;
    j["moe_layer_freq"] = c.moe_layer_freq;
    j["num_experts_per_tok"] = r.num_experts_per_tok;
    j["n_group"] = r.n_group;
    j["topk_group"] = r.topk_group;
    j["topk_method"] = r.topk_method == TopkMethod::kNoauxTc  ? "noaux_tc"
                       : r.topk_method == TopkMethod::kGreedy ? "greedy"
                                                              : "group_limited_greedy";
    j["scoring_func"] = r.scoring_func == ScoringFunc::kSigmoid ? "sigmoid" : "softmax";
    j["norm_topk_prob"] = r.norm_topk_prob;
    j["routed_scaling_factor"] = static_cast<double>(r.routed_scaling_factor);
  } else {
    j["n_routed_experts"] = nullptr;
  }
  j["num_nextn_predict_layers"] = c.num_nextn_predict_layers;
  return j.dump(2) + "\n";
}

}  // namespace fathom
