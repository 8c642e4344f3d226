// GGUF files made of model folders: read back, they are the same model.
#include "train/export.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "base/file.h"
#include "kernels/quantize.h"
#include "tests/base/test_files.h"
#include "tests/model/golden.h"
#include "tests/reference/expect_close.h"
#include "text/character_tokenizer.h"
#include "text/chat_template.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using reference::expect_close;
using reference::expect_same_bits;

// A recorded model with a tokenizer beside it.
struct Folder {
  explicit Folder(const std::string& name) {
    for (const char* file : {"config.json", "model.safetensors"}) fs::copy_file(golden_path("models/" + name + "/" + file), folder / file);
    folder.write("tokenizer.json", character_tokenizer_json());
    folder.write("tokenizer_config.json", character_tokenizer_config_json());
  }
  fs::path exported(ExportOptions options) const {
    const fs::path out = folder / "out.gguf";
    export_gguf(Checkpoint::open(folder.path()), out, options);
    return out;
  }
  TempDir folder;
};

std::vector<float> logits_of(const Model& model, const std::string& name) {
  Context ctx(2);
  return feed_logits(model, ctx, golden_ids(name), {96}, MlaForm::kAbsorbed);
}

class Export : public testing::TestWithParam<std::string> {};

// MLA keeps every bit; so does Qwen2. Llama's rows of q and k are permuted, and their dot products add up in another order.
TEST_P(Export, F32ReadsBackAsTheSameModel) {
  const Folder folder(GetParam());
  const Model before = Model::load(folder.folder.path()), after = Model::load(folder.exported({DType::kF32, true}));
  EXPECT_EQ(after.has_mtp(), before.has_mtp());
  EXPECT_EQ(after.config().architecture, before.config().architecture);
  const std::vector<float> expected = logits_of(before, GetParam()), actual = logits_of(after, GetParam());
  if (GetParam() != "llama3") return expect_same_bits(actual, expected);
  double largest = 0;
  for (const float value : expected) largest = std::max<double>(largest, std::abs(value));
  expect_close(actual, expected, 2e-5 * largest);
}

TEST_P(Export, Bf16IsTheModelWithRoundedMatrices) {
  const Folder folder(GetParam());
  const Model model = Model::load(folder.exported({DType::kBF16, false}));
  EXPECT_FALSE(model.has_mtp());
  EXPECT_EQ(model.weights().embed_tokens.weight.dtype, DType::kBF16);
  EXPECT_EQ(model.config().num_nextn_predict_layers, 0);
  Context ctx(2, detect_isa(), Precision::kF32);
  const std::vector<float> actual = feed_logits(model, ctx, golden_ids(GetParam()), {96}, MlaForm::kAbsorbed);
  const std::vector<float> expected = golden_values(GetParam(), "logits_bf16_weights");
  double largest = 0;
  for (const float value : expected) largest = std::max<double>(largest, std::abs(value));
  // Recorded with every weight rounded; ours keeps router and norms in f32, which the file must.
  size_t equal = 0, rows = 0;
  const auto vocab = static_cast<size_t>(model.config().vocab_size);
  for (size_t r = 0; r * vocab < expected.size(); ++r, ++rows) {
    const auto a = actual.begin() + static_cast<std::ptrdiff_t>(r * vocab), e = expected.begin() + static_cast<std::ptrdiff_t>(r * vocab);
    const auto width = static_cast<std::ptrdiff_t>(vocab);
    equal += std::max_element(a, a + width) - a == std::max_element(e, e + width) - e ? 1 : 0;
  }
  EXPECT_GE(equal * 100, rows * 85) << equal << " of " << rows << " likeliest tokens agree";
}

INSTANTIATE_TEST_SUITE_P(All, Export, testing::Values("v3", "moonlight", "v2", "v2-lite", "qwen2", "llama3"), [](const auto& parameter) {
  std::string name = parameter.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(ExportTokenizer, ComesAlong) {
  const Folder folder("v3");
  const Checkpoint file = Checkpoint::open(folder.exported({DType::kF32, true}));
  const Tokenizer before = Tokenizer::from_checkpoint(Checkpoint::open(folder.folder.path())), after = Tokenizer::from_checkpoint(file);
  const std::string text = "Use 3, 7 and 25 to make 46.\n<think>";
  EXPECT_EQ(after.encode(text, false), before.encode(text, false));
  EXPECT_EQ(after.encode(text, true), before.encode(text, true));
  EXPECT_EQ(after.bos_id(), before.bos_id());
  EXPECT_EQ(after.eos_ids(), before.eos_ids());
  EXPECT_EQ(after.add_bos(), before.add_bos());
  EXPECT_EQ(detect_chat_format(after), detect_chat_format(before));
}

TEST(ExportTokenizer, IsMissedByNameAndNothingIsWritten) {
  const Folder folder("qwen2");
  fs::remove(folder.folder / "tokenizer.json");
  const std::string message = error_of([&] { folder.exported({DType::kF32, true}); });
  EXPECT_NE(message.find("tokenizer.json: missing"), std::string::npos) << message;
  EXPECT_FALSE(fs::exists(folder.folder / "out.gguf"));
}

// Half a step of the block's scale, and the rounding of the scale to f16.
TEST(QuantizeRow, Q8IsWithinHalfAStep) {
  std::vector<float> x(96), back(96);
  for (size_t i = 0; i < x.size(); ++i) x[i] = i < 32 ? 0.0f : static_cast<float>(std::sin(static_cast<double>(i)) * std::pow(10, static_cast<double>(i / 32)));
  std::vector<std::byte> row(3 * 34);
  quantize_row(DType::kQ8_0, x.data(), 96, row.data());
  dequantize_row(detect_isa(), DType::kQ8_0, row.data(), 96, back.data());
  for (size_t begin = 0; begin < 96; begin += 32) {
    float largest = 0;
    for (size_t i = begin; i < begin + 32; ++i) largest = std::max(largest, std::abs(x[i]));
    for (size_t i = begin; i < begin + 32; ++i) EXPECT_LE(std::abs(back[i] - x[i]), largest / 127 * 0.5 * 1.001 + largest * 0x1p-11) << i;
  }
}

}  // namespace
}  // namespace fathom
