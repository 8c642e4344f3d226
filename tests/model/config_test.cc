#include "model/config.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/file.h"
#include "tests/model/golden.h"

namespace fathom {
namespace {

using Json = nlohmann::json;

Json golden_config(const std::string& model) {
  return Json::parse(read_file(golden_path("models/" + model + "/config.json"), 1 << 20));
}

std::string error_of(const Json& config) {
  try {
    parse_config(config.dump(), "config.json");
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::kBadInput);
    return e.what();
  }
  return "accepted";
}

TEST(Config, WrittenConfigReadsBackTheSame) {
  for (const std::string& model : golden_models()) {
    const ModelConfig c = parse_config(golden_config(model).dump(), model);
    const std::string written = write_config(c);
    EXPECT_EQ(write_config(parse_config(written, model)), written) << model;
  }
}

TEST(Config, ReadsWhatTheFileSays) {
  const ModelConfig c = parse_config(golden_config("v3").dump(), "v3");
  EXPECT_EQ(c.architecture, Architecture::kDeepseekV3);
  EXPECT_EQ(c.q_lora_rank, 48);
  EXPECT_EQ(c.router.n_group, 4);
  EXPECT_EQ(c.router.topk_method, TopkMethod::kNoauxTc);
  EXPECT_EQ(c.num_nextn_predict_layers, 1);
  EXPECT_EQ(c.cache_width(), 40);
  EXPECT_FALSE(c.is_moe_layer(0));
  EXPECT_TRUE(c.is_moe_layer(1));
  EXPECT_EQ(c.rope.layout, RopeLayout::kInterleaved);
  const ModelConfig q = parse_config(golden_config("qwen2").dump(), "qwen2");
  EXPECT_TRUE(q.attention_bias);
  EXPECT_EQ(q.rope.layout, RopeLayout::kHalfSplit);
  EXPECT_EQ(q.head_dim, 16);
}

TEST(Config, AcceptsTheSpellingOfTransformers5) {
  Json j = golden_config("llama3");
  j["rope_parameters"] = j["rope_scaling"];
  j["rope_parameters"]["rope_theta"] = j["rope_theta"];
  j.erase("rope_scaling");
  j.erase("rope_theta");
  EXPECT_EQ(write_config(parse_config(j.dump(), "x")),
            write_config(parse_config(golden_config("llama3").dump(), "x")));
}

TEST(Config, AListOfEndTokensIsKept) {
  Json j = golden_config("llama3");
  j["eos_token_id"] = {1, 8, 9};
  EXPECT_EQ(parse_config(j.dump(), "x").eos_token_ids, (std::vector<int64_t>{1, 8, 9}));
}

struct Refusal {
  const char* name;
  const char* model;
  const char* patch;  // JSON merge patch: null removes
  const char* message;
};

class ConfigRefusal : public testing::TestWithParam<Refusal> {};

TEST_P(ConfigRefusal, NamesFileFieldFoundAndExpected) {
  Json j = golden_config(GetParam().model);
  j.merge_patch(Json::parse(GetParam().patch));
  EXPECT_EQ(error_of(j).substr(0, std::string(GetParam().message).size()), GetParam().message);
}

INSTANTIATE_TEST_SUITE_P(
    All, ConfigRefusal,
    testing::Values(
        Refusal{
            "class", "v3", R"({"architectures": ["GPT2LMHeadModel"]})",
            "config.json: architectures: found 'GPT2LMHeadModel', expected DeepseekV2ForCausalLM"},
        Refusal{"sparse", "v3", R"({"architectures": ["DeepseekV32ForCausalLM"]})",
                "config.json: architectures: DeepseekV32ForCausalLM uses sparse attention"},
        Refusal{"two_classes", "v3", R"({"architectures": ["A", "B"]})",
                "config.json: architectures: expected a list of one class name"},
        Refusal{"activation", "v3", R"({"hidden_act": "gelu"})",
                "config.json: hidden_act: found 'gelu', expected 'silu'"},
        Refusal{"scoring", "v3", R"({"scoring_func": "tanh"})",
                "config.json: scoring_func: found 'tanh', expected softmax or sigmoid"},
        Refusal{"topk", "v3", R"({"topk_method": "random"})",
                "config.json: topk_method: found 'random', expected greedy"},
        Refusal{"topk_of_other_score", "v3", R"({"topk_method": "greedy"})",
                "config.json: topk_method: expected noaux_tc with sigmoid"},
        Refusal{"rope_type", "v3", R"({"rope_scaling": {"type": "dynamic"}})",
                "config.json: rope_scaling: type: found 'dynamic', expected yarn or llama3"},
        Refusal{"yarn_on_llama", "llama3", R"({"rope_scaling": {"rope_type": "yarn"}})",
                "config.json: rope_scaling: type yarn"},
        Refusal{"odd_rope", "v3", R"({"qk_rope_head_dim": 7})",
                "config.json: rotary dimension: expected an even number"},
        Refusal{"kv_heads", "qwen2", R"({"num_key_value_heads": 3})",
                "config.json: num_attention_heads: expected a multiple of num_key_value_heads"},
        Refusal{"mla_kv_heads", "v3", R"({"num_key_value_heads": 2})",
                "config.json: num_key_value_heads: found 2, expected num_attention_heads 4"},
        Refusal{"groups", "v3", R"({"n_group": 3})",
                "config.json: n_routed_experts: expected a multiple of n_group"},
        Refusal{"too_few_in_groups", "v3", R"({"topk_group": 1, "num_experts_per_tok": 5})",
                "config.json: topk_group: the chosen groups hold fewer"},
        Refusal{"bias", "llama3", R"({"attention_bias": true})",
                "config.json: attention_bias: found true, expected false"},
        Refusal{"window", "qwen2", R"({"use_sliding_window": true})",
                "config.json: use_sliding_window: found true, expected false"},
        Refusal{"layout", "v3", R"({"rope_interleave": false})",
                "config.json: rope_interleave: found false, expected true"},
        Refusal{"partial", "llama3", R"({"partial_rotary_factor": 0.5})",
                "config.json: partial_rotary_factor: expected 1"},
        Refusal{"yarn_factor", "v3", R"({"rope_scaling": {"attention_factor": 1.5}})",
                "config.json: rope_scaling: attention_factor: not supported"},
        Refusal{"scale", "v3", R"({"routed_scaling_factor": 1e300})",
                "config.json: routed_scaling_factor: found 1e+300, expected a positive number"},
        Refusal{"quant", "v3-fp8", R"({"quantization_config": {"quant_method": "awq"}})",
                "config.json: quantization_config: quant_method: found 'awq', expected 'fp8'"},
        Refusal{"quant_dense", "qwen2", R"({"quantization_config": {"quant_method": "fp8"}})",
                "config.json: quantization_config: not supported for Qwen2ForCausalLM"},
        Refusal{"eps", "v3", R"({"rms_norm_eps": 0})",
                "config.json: rms_norm_eps: expected a number between 0 and 1"},
        Refusal{"eos", "v3", R"({"eos_token_id": 256})",
                "config.json: eos_token_id: expected token ids in [0, vocab_size)"},
        Refusal{"negative", "v3", R"({"hidden_size": -64})",
                "config.json: hidden_size: found -64, expected"},
        Refusal{"huge", "v3", R"({"num_hidden_layers": 1025})",
                "config.json: num_hidden_layers: found 1025, expected"},
        Refusal{"fraction", "v3", R"({"hidden_size": 64.5})",
                "config.json: hidden_size: found 64.5, expected"},
        Refusal{"text", "v3", R"({"hidden_size": "64"})", "config.json: hidden_size: found "},
        Refusal{"missing", "v3", R"({"kv_lora_rank": null})", "config.json: kv_lora_rank: "},
        Refusal{"theta", "v3", R"({"rope_theta": 0})",
                "config.json: rope_theta: found 0, expected a positive number"}),
    [](const auto& test) { return std::string(test.param.name); });

}  // namespace
}  // namespace fathom
