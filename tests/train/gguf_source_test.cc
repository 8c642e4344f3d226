// GGUF files made of model folders: read back, they are the same model.
#include "train/gguf_source.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "kernels/quantize.h"
#include "tests/base/test_files.h"
#include "tests/base/test_name.h"
#include "tests/model/golden.h"
#include "tests/reference/expect_close.h"
#include "text/character_tokenizer.h"
#include "text/chat_template.h"
#include "train/quantize.h"
#include "train/train_state.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using reference::expect_close;
using reference::expect_same_bits;

struct ExportOptions {
  DType matrices;
  bool mtp;
};

// A recorded model with a tokenizer beside it.
struct Folder {
  explicit Folder(const std::string& name) {
    for (const char* file : {"config.json", "model.safetensors"})
      fs::copy_file(golden_path("models/" + name + "/" + file), folder / file);
    folder.write("tokenizer.json", character_tokenizer_json());
    folder.write("tokenizer_config.json", character_tokenizer_config_json());
  }
  fs::path exported(ExportOptions options) const {
    const fs::path out = folder / "out.gguf";
    Context ctx(2);
    const GgufSource source(Checkpoint::open(folder.path()), {options.mtp, "out"});
    const QuantizeMix& mix = find_mix(dtype_name(options.matrices));
    write_gguf(ctx, source, out, {mix.file_type, choose_types(source, mix, {})});
    return out;
  }
  TempDir folder;
};

// Of the weights alone: x is rounded nowhere.
std::vector<float> logits_of(const Model& model, const std::string& name) {
  Context ctx(2, detect_isa(), Precision::kF32);
  return feed_logits(model, ctx, golden_ids(name), {96}, MlaForm::kAbsorbed);
}

std::vector<float> mtp_logits(const Model& model, const std::string& name) {
  Context ctx(2);
  const std::vector<int32_t> ids = golden_ids(name);
  const int64_t tokens = std::ssize(ids), vocab = model.config().vocab_size,
                width = model.config().hidden_size;
  std::vector<float> logits(static_cast<size_t>(tokens * vocab)),
      hidden(static_cast<size_t>(tokens * width));
  Feeder feeder(model, ctx, tokens, DType::kF32, MlaForm::kAbsorbed);
  Rows states{hidden.data(), tokens, width, width};
  feeder.feed(ids, {logits.data(), tokens, vocab, vocab}, &states);
  logits.resize(static_cast<size_t>((tokens - 1) * vocab));
  feeder.feed_mtp(std::span(ids).subspan(1), {hidden.data(), tokens - 1, width, width},
                  {logits.data(), tokens - 1, vocab, vocab});
  return logits;
}

// Puts these weights into the folder, matrices in BF16.
void write_weights(const Folder& folder, const ParameterTable& table, std::span<const float> master,
                   const ModelConfig& config) {
  TrainState state;
  state.table = &table;
  state.master = master;
  state.config = &config;
  write_model_folder(folder.folder.path(), state);
}

std::vector<int64_t> likeliest(const std::vector<float>& logits, int64_t vocab) {
  std::vector<int64_t> ids;
  for (auto row = logits.begin(); row != logits.end(); row += vocab)
    ids.push_back(std::max_element(row, row + vocab) - row);
  return ids;
}

class Export : public testing::TestWithParam<std::string> {};

// MLA keeps every bit; so does Qwen2. FP8 weights run as BF16 do unless everything is f32. Llama's
// rows of q and k are permuted, and their dot products add up in another order.
TEST_P(Export, F32ReadsBackAsTheSameModel) {
  const Folder folder(GetParam());
  const Model before = Model::load(folder.folder.path()),
              after = Model::load(folder.exported({DType::kF32, true}));
  EXPECT_EQ(after.has_mtp(), before.has_mtp());
  EXPECT_EQ(after.config().architecture, before.config().architecture);
  const auto f32_logits = [](const Model& model) {
    Context ctx(2, detect_isa(), Precision::kF32);
    return feed_logits(model, ctx, golden_ids(GetParam()), {96}, MlaForm::kAbsorbed);
  };
  const std::vector<float> expected = f32_logits(before), actual = f32_logits(after);
  if (GetParam() != "llama3") {
    if (before.has_mtp() && GetParam() != "v3-fp8")
      expect_same_bits(mtp_logits(after, GetParam()), mtp_logits(before, GetParam()));
    return expect_same_bits(actual, expected);
  }
  double largest = 0;
  for (const float value : expected) largest = std::max<double>(largest, std::abs(value));
  expect_close(actual, expected, 2e-5 * largest);
}

// v3-fp8 has no recorded logits of rounded weights.
class ExportRecorded : public Export {};

TEST_P(ExportRecorded, Bf16IsTheModelWithRoundedMatrices) {
  const Folder folder(GetParam());
  const Model model = Model::load(folder.exported({DType::kBF16, false}));
  EXPECT_FALSE(model.has_mtp());
  EXPECT_EQ(model.weights().embed_tokens.weight.dtype, DType::kBF16);
  EXPECT_EQ(model.config().num_nextn_predict_layers, 0);
  Context ctx(2, detect_isa(), Precision::kF32);
  const std::vector<float> actual =
      feed_logits(model, ctx, golden_ids(GetParam()), {96}, MlaForm::kAbsorbed);
  const std::vector<float> expected = golden_values(GetParam(), "logits_bf16_weights");
  double largest = 0;
  for (const float value : expected) largest = std::max<double>(largest, std::abs(value));
  // Recorded with every weight rounded; ours keeps router and norms in f32, which the file must.
  size_t equal = 0, rows = 0;
  const auto vocab = static_cast<size_t>(model.config().vocab_size);
  for (size_t r = 0; r * vocab < expected.size(); ++r, ++rows) {
    const auto a = actual.begin() + static_cast<std::ptrdiff_t>(r * vocab),
               e = expected.begin() + static_cast<std::ptrdiff_t>(r * vocab);
    const auto width = static_cast<std::ptrdiff_t>(vocab);
    equal += std::max_element(a, a + width) - a == std::max_element(e, e + width) - e ? 1 : 0;
  }
  EXPECT_GE(equal * 100, rows * 85) << equal << " of " << rows << " likeliest tokens agree";
}

// A BF16 folder and its BF16 file: the same bits in both forms of attention, and from the MTP
// layer.
// Not Llama's: its rows of q and k are permuted, see above.
class ExportInOrder : public Export {};

TEST_P(ExportInOrder, Bf16OfABf16FolderHasItsBits) {
  const Folder source(GetParam());
  const Model model = Model::load(source.folder.path());
  const ParameterTable table = parameter_table(model.config());
  std::vector<float> master(static_cast<size_t>(table.total));
  copy_weights(model.config(), table, model.weights(), master);
  const Folder rounded(GetParam());
  write_weights(rounded, table, master, model.config());
  const Model before = Model::load(rounded.folder.path()),
              after = Model::load(rounded.exported({DType::kBF16, true}));
  Context ctx(2);
  for (const MlaForm form : {MlaForm::kExpanded, MlaForm::kAbsorbed}) {
    const auto ids = golden_ids(GetParam());
    expect_same_bits(feed_logits(after, ctx, ids, {96}, form),
                     feed_logits(before, ctx, ids, {96}, form));
  }
  ASSERT_EQ(after.has_mtp(), before.has_mtp());
  if (before.has_mtp())
    expect_same_bits(mtp_logits(after, GetParam()), mtp_logits(before, GetParam()));
}

TEST_P(Export, KeepsTheLikeliestTokens) {
  const Folder folder(GetParam());
  const Model before = Model::load(folder.folder.path());
  const auto expected = likeliest(logits_of(before, GetParam()), before.config().vocab_size);
  for (const auto& [dtype, least] :
       {std::pair(DType::kF32, 96), std::pair(DType::kF16, 95), std::pair(DType::kQ8_0, 85)}) {
    const Model after = Model::load(folder.exported({dtype, true}));
    const auto actual = likeliest(logits_of(after, GetParam()), after.config().vocab_size);
    int equal = 0;
    for (size_t i = 0; i < actual.size(); ++i) equal += actual[i] == expected[i] ? 1 : 0;
    // random models: near ties, and experts that flip
    EXPECT_GE(equal, least) << dtype_name(dtype);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Export, testing::ValuesIn(golden_models()), kNamedByParameter);
INSTANTIATE_TEST_SUITE_P(All, ExportRecorded,
                         testing::Values("v3", "moonlight", "v2", "v2-lite", "qwen2", "llama3"),
                         kNamedByParameter);
INSTANTIATE_TEST_SUITE_P(All, ExportInOrder,
                         testing::Values("v3", "moonlight", "v2", "v2-lite", "v3-fp8", "qwen2"),
                         kNamedByParameter);

// What GGUF has no key for is refused, not left out: the file would be another model.
struct Changed {
  Changed(const std::string& name,
          const std::vector<std::pair<std::string, nlohmann::json>>& fields)
      : folder(name) {
    auto config = nlohmann::json::parse(read_file(folder.folder / "config.json", 1 << 20));
    for (const auto& [pointer, value] : fields)
      config[nlohmann::json::json_pointer(pointer)] = value;
    folder.folder.write("config.json", config.dump());
  }
  Folder folder;
};

TEST(ExportConfig, WhatGgufCannotSayIsRefused) {
  const Changed mscale("v3", {{"/rope_scaling/mscale_all_dim", 0.5}});
  const std::string place = (mscale.folder.folder / "config.json").string();
  EXPECT_EQ(error_of([&] {
              mscale.folder.exported({DType::kF32, true});
            }),
            place +
                ": rope_scaling: mscale 1 and mscale_all_dim 0.5, expected the same (GGUF has one "
                "key for both)");
  EXPECT_FALSE(fs::exists(mscale.folder.folder / "out.gguf"));

  const Changed frequency("v2-lite", {{"/moe_layer_freq", 2}});
  const ModelConfig config = load_config(Checkpoint::open(frequency.folder.folder.path()));
  const ParameterTable table = parameter_table(config);
  const std::vector<float> zeros(static_cast<size_t>(table.total));
  write_weights(frequency.folder, table, zeros, config);
  EXPECT_EQ(error_of([&] {
              frequency.folder.exported({DType::kF32, true});
            }),
            (frequency.folder.folder / "config.json").string() +
                ": moe_layer_freq: found 2, expected 1 (GGUF has no key for it)");
}

// V2-Lite's greedy choice knows no groups, and a reader groups wherever the file has groups.
TEST(ExportConfig, GroupsThatTheRuleIgnoresStayOut) {
  const Changed grouped("v2-lite", {{"/n_group", 2}, {"/topk_group", 1}});
  const Model before = Model::load(grouped.folder.folder.path()),
              after = Model::load(grouped.folder.exported({DType::kF32, true}));
  EXPECT_EQ(after.config().router.topk_method, TopkMethod::kGreedy);
  expect_same_bits(logits_of(after, "v2-lite"), logits_of(before, "v2-lite"));
}

TEST(ExportConfig, QLoraRankZeroIsWritten) {
  const Folder folder("v2-lite");
  EXPECT_EQ(Gguf::open(folder.exported({DType::kF32, true}))
                .integer("deepseek2.attention.q_lora_rank", 0, 0),
            0);
}

TEST(ExportTokenizer, UpToThreeEndsComeAlongAndMoreAreRefused) {
  const Folder folder("llama3");
  folder.folder.write("generation_config.json", R"({"eos_token_id": [20, 21]})");
  const auto ends = [](const fs::path& path) {
    return Tokenizer::from_checkpoint(Checkpoint::open(path)).eos_ids();
  };
  EXPECT_EQ(ends(folder.folder.path()).size(), 3u);
  EXPECT_EQ(ends(folder.exported({DType::kF32, true})), ends(folder.folder.path()));
  folder.folder.write("generation_config.json", R"({"eos_token_id": [20, 21, 22]})");
  EXPECT_EQ(error_of([&] {
              folder.exported({DType::kF32, true});
            }),
            (folder.folder / "tokenizer.json").string() +
                ": 4 end tokens, expected at most 3 (GGUF has no more keys)");
}

TEST(ExportTokenizer, TheConfigsIdsCountWhereTheTokenizerNamesNone) {
  const Changed changed("qwen2", {{"/bos_token_id", 3}, {"/eos_token_id", 4}});
  fs::remove(changed.folder.folder / "tokenizer_config.json");
  const ModelConfig config =
      load_config(Checkpoint::open(changed.folder.exported({DType::kF32, true})));
  EXPECT_EQ(config.bos_token_id, 3);
  EXPECT_EQ(config.eos_token_ids, std::vector<int64_t>{4});
}

TEST(ExportTokenizer, NeedsNoAddedTokens) {
  const Folder folder("qwen2");
  auto file = nlohmann::json::parse(read_file(folder.folder / "tokenizer.json", 1 << 24));
  for (const auto& added : file["added_tokens"])
    file["model"]["vocab"][added["content"].get<std::string>()] = added["id"];
  file.erase("added_tokens");
  folder.folder.write("tokenizer.json", file.dump());
  fs::remove(folder.folder / "tokenizer_config.json");
  EXPECT_TRUE(fs::exists(folder.exported({DType::kF32, true})));
}

TEST(ExportTokenizer, ComesAlong) {
  const Folder folder("v3");
  const Checkpoint file = Checkpoint::open(folder.exported({DType::kF32, true}));
  const Tokenizer before = Tokenizer::from_checkpoint(Checkpoint::open(folder.folder.path())),
                  after = Tokenizer::from_checkpoint(file);
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

}  // namespace
}  // namespace fathom
