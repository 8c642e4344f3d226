#include "model/weights.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <limits>

#include "base/file.h"
#include "model/model.h"
#include "model/tensor_names.h"
#include "tests/model/golden.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

class Weights : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) /
              ("fathom-weights-" +
               std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::create_directories(folder_);
    fs::copy_file(golden_path("models/v3/config.json"), folder_ / "config.json",
                  fs::copy_options::overwrite_existing);
    source_ = Safetensors::open(golden_path("models/v3/model.safetensors"));
    for (const TensorInfo& t : source_.tensors())
      tensors_.push_back({t.name, t.dtype, t.shape, {t.data, t.bytes}});
  }
  void TearDown() override { fs::remove_all(folder_); }

  TensorToWrite& tensor(const std::string& name) {
    return *std::find_if(tensors_.begin(), tensors_.end(),
                         [&](const auto& t) { return t.name == name; });
  }
  void remove_if(const std::function<bool(const std::string&)>& gone) {
    std::erase_if(tensors_, [&](const TensorToWrite& t) { return gone(t.name); });
  }
  std::string load_error() {
    write_safetensors(folder_ / "model.safetensors", tensors_);
    try {
      Model::load(folder_);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  }

  fs::path folder_;
  Safetensors source_;
  std::vector<TensorToWrite> tensors_;
};

TEST_F(Weights, AMissingTensorIsNamedWithItsShape) {
  remove_if([](const std::string& n) { return n == "model.layers.1.self_attn.kv_b_proj.weight"; });
  EXPECT_EQ(load_error(), folder_.string() +
                              ": tensor 'model.layers.1.self_attn.kv_b_proj.weight': missing, "
                              "expected shape [128, 32]");
}

TEST_F(Weights, AWrongShapeIsNamedWithBothShapes) {
  tensor("model.norm.weight").shape = {8, 8};
  EXPECT_NE(load_error().find("tensor 'model.norm.weight': shape [8, 8], expected [64]"),
            std::string::npos)
      << load_error();
}

TEST_F(Weights, ATensorTheModelDoesNotHaveIsRefused) {
  static const float kOne = 1;
  tensors_.push_back({"model.layers.0.self_attn.q_norm.weight",
                      DType::kF32,
                      {1},
                      std::as_bytes(std::span(&kOne, 1))});
  EXPECT_NE(load_error().find(
                "'model.layers.0.self_attn.q_norm.weight': not a tensor of DeepseekV3ForCausalLM"),
            std::string::npos)
      << load_error();
}

TEST_F(Weights, AnIntegerWeightIsRefused) {
  tensor("lm_head.weight").dtype = DType::kI32;
  EXPECT_NE(load_error().find(
                "tensor 'lm_head.weight': type I32, expected a floating-point or quantised type"),
            std::string::npos)
      << load_error();
}

TEST_F(Weights, ADeclaredMtpLayerMayBeLeftOutWhole) {
  remove_if([](const std::string& n) { return n.starts_with("model.layers.3."); });
  EXPECT_EQ(load_error(), "accepted");
  EXPECT_FALSE(Model::load(folder_).has_mtp());
}

TEST_F(Weights, HalfAnMtpLayerIsRefused) {
  remove_if([](const std::string& n) { return n == "model.layers.3.hnorm.weight"; });
  EXPECT_NE(load_error().find("tensor 'model.layers.3.hnorm.weight': missing"), std::string::npos)
      << load_error();
}

TEST_F(Weights, CheckFiniteNamesTensorAndElement) {
  const TensorToWrite& norm = tensor("model.norm.weight");
  std::vector<float> values(64);
  std::memcpy(values.data(), norm.data.data(), norm.data.size());
  values[17] = std::numeric_limits<float>::quiet_NaN();
  tensor("model.norm.weight").data = std::as_bytes(std::span(values));
  EXPECT_EQ(load_error(), "accepted");
  try {
    check_finite(Checkpoint::open(folder_));
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("tensor 'model.norm.weight': element 17 is nan"),
              std::string::npos)
        << e.what();
  }
  EXPECT_NO_THROW(check_finite(Checkpoint::open(golden_path("models/v3-fp8"))));
}

TEST(TensorNames, FollowTheTableOfTheFormat) {
  EXPECT_EQ(gguf_tensor_name("model.embed_tokens.weight"), "token_embd.weight");
  EXPECT_EQ(gguf_tensor_name("model.layers.17.self_attn.kv_a_proj_with_mqa.weight"),
            "blk.17.attn_kv_a_mqa.weight");
  EXPECT_EQ(gguf_tensor_name("model.layers.3.mlp.gate.e_score_correction_bias"),
            "blk.3.exp_probs_b.bias");
  EXPECT_EQ(gguf_tensor_name("model.layers.3.mlp.experts.down_proj.weight"),
            "blk.3.ffn_down_exps.weight");
  EXPECT_DEATH(gguf_tensor_name("model.layers.3.nothing"), "nothing");
}

TEST(Model, MemoryRebuiltAtLoadIsSmall) {
  // Transposed k halves of kv_b: the only thing kept twice.
  const Model model = Model::load(golden_path("models/v3"));
  const ModelConfig& c = model.config();
  EXPECT_EQ(
      model.weights().owned_bytes,
      static_cast<size_t>(4 * c.num_attention_heads * c.qk_nope_head_dim * c.kv_lora_rank * 4));
}

}  // namespace
}  // namespace fathom
