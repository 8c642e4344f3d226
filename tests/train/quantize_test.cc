// Models written in fewer bits: types by tensor, fallbacks, overrides, what is copied, what is
// refused, and that threads do not matter.
#include "train/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/file.h"
#include "kernels/quantize.h"
#include "tests/base/test_files.h"
#include "tests/formats/gguf_builder.h"
#include "tests/model/golden.h"
#include "tests/reference/expect_close.h"
#include "text/character_tokenizer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

GgufSource golden_source(const std::string& name, const TempDir& folder) {
  for (const char* file : {"config.json", "model.safetensors"})
    fs::copy_file(golden_path("models/" + name + "/" + file), folder / file,
                  fs::copy_options::overwrite_existing);
  folder.write("tokenizer.json", character_tokenizer_json());
  folder.write("tokenizer_config.json", character_tokenizer_config_json());
  return GgufSource(Checkpoint::open(folder.path()), {true, "golden"});
}

GgufSource golden_gguf(const std::string& name) {
  return GgufSource(Checkpoint::open(golden_path("gguf/" + name)), {});
}

std::map<std::string, TypeChoice> types_of(const GgufSource& source, const std::string& mix,
                                           const std::vector<std::string>& overrides = {}) {
  std::vector<TypeOverride> parsed;
  for (const std::string& text : overrides) parsed.push_back(parse_override(text));
  const std::vector<TypeChoice> choices = choose_types(source, find_mix(mix), parsed);
  std::map<std::string, TypeChoice> types;
  for (size_t i = 0; i < choices.size(); ++i) types[source.tensors()[i].name] = choices[i];
  return types;
}

std::vector<StoredTensor> write(const GgufSource& source, const std::string& mix,
                                const fs::path& out, int threads = 2,
                                const Importance* importance = nullptr) {
  Context ctx(threads);
  return write_gguf(ctx, source, out,
                    {find_mix(mix).file_type, choose_types(source, find_mix(mix), {}), importance});
}

void expect_part(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text;
}

TEST(QuantizeMix, DenseModelsGiveValuesDownProjectionsAndHeadMoreBits) {
  const auto types = types_of(golden_gguf("qwen2-256-Q8_0.gguf"), "q4_k_m");
  EXPECT_EQ(types.at("blk.0.attn_q.weight").type, DType::kQ4_K);
  EXPECT_EQ(types.at("blk.0.attn_v.weight").type, DType::kQ6_K);
  EXPECT_EQ(types.at("blk.0.ffn_gate.weight").type, DType::kQ4_K);
  EXPECT_EQ(types.at("blk.0.ffn_down.weight").type, DType::kQ6_K);
  EXPECT_EQ(types.at("blk.0.attn_norm.weight").type, DType::kF32);
  EXPECT_EQ(types.at("blk.0.attn_q.bias").type, DType::kF32);
}

TEST(QuantizeMix, ModelsOfExpertsKeepAttentionAndSharedExpertsHigher) {
  const auto types = types_of(golden_gguf("v2-lite-256-Q4_K_M.gguf"), "Q4_K_M");
  for (const auto& [name, choice] : types) {
    SCOPED_TRACE(name);
    const auto has = [&name = name](const char* part) {  // clang 14 captures no binding
      return name.find(part) != name.npos;
    };
    if (has("norm") || has("ffn_gate_inp") || has("exp_probs_b")) {
      EXPECT_EQ(choice.type, DType::kF32);
    } else if (has("_shexp") || has("attn_")) {
      EXPECT_EQ(choice.wanted, DType::kQ6_K);
    } else if (has("ffn_gate_exps")) {
      EXPECT_EQ(choice.type, DType::kQ4_K);
    }
  }
  EXPECT_EQ(types_of(golden_gguf("v2-lite-256-Q4_K_M.gguf"), "MXFP4")
                .at("blk.1.ffn_gate_exps.weight")
                .type,
            DType::kMXFP4);
}

TEST(QuantizeMix, ShortRowsFallBackAndSaySo) {
  const TempDir folder;
  const GgufSource source = golden_source("v3", folder);
  for (const GgufTensor& t : source.tensors()) {
    const TypeChoice choice = types_of(source, "Q4_K_M").at(t.name);
    EXPECT_EQ(t.cols() % dtype_info(choice.type).block_elements, 0) << t.name;
    if (!t.is_matrix() || choice.wanted == DType::kF32) continue;
    if (t.cols() % 32 != 0) {
      EXPECT_EQ(choice.type, DType::kF16) << t.name;
    } else if (t.cols() % 256 != 0) {
      EXPECT_EQ(choice.type, choice.wanted == DType::kQ4_K ? DType::kQ5_0 : DType::kQ8_0) << t.name;
    }
  }
}

TEST(QuantizeMix, OverridesCountFromTheLastAndAreRefusedByName) {
  const GgufSource source = golden_gguf("qwen2-256-Q8_0.gguf");
  const auto types =
      types_of(source, "Q4_0", {"*=q8_0", "*.attn_*=Q5_1", "blk.?.ffn_up.weight=F16"});
  EXPECT_EQ(types.at("blk.0.attn_q.weight").type, DType::kQ5_1);
  EXPECT_EQ(types.at("blk.0.ffn_gate.weight").type, DType::kQ8_0);
  EXPECT_EQ(types.at("blk.0.ffn_up.weight").type, DType::kF16);
  EXPECT_EQ(types.at("blk.0.attn_norm.weight").type, DType::kF32);
  expect_part(error_of([&] { types_of(source, "Q4_0", {"blk.99.*=Q8_0"}); }),
              "--tensor 'blk.99.*': matches no matrix");
  expect_part(error_of([&] { types_of(source, "Q4_0", {"x=Q9"}); }), "--tensor: found type 'Q9'");
  expect_part(error_of([&] { types_of(source, "Q4_0", {"Q8_0"}); }), "expected PATTERN=TYPE");
  expect_part(error_of([&] { types_of(source, "Q9_K"); }),
              "--type: found 'Q9_K', expected one of Q4_K_M");
  const TempDir folder;
  const GgufSource narrow = golden_source("v3", folder);
  expect_part(error_of([&] { types_of(narrow, "Q8_0", {"*attn_k_b*=Q6_K"}); }),
              "columns, expected a multiple of 256 for Q6_K (--tensor '*attn_k_b*')");
}

TEST(Quantize, EveryMixReadsBackAsTheSourceWithinItsError) {
  const TempDir folder;
  const GgufSource source = golden_gguf("v3-BF16.gguf");
  for (const QuantizeMix& mix : quantize_mixes()) {
    SCOPED_TRACE(mix.name);
    const fs::path out = folder / "out.gguf";
    const std::vector<StoredTensor> reports = write(source, std::string(mix.name), out);
    const Model model = Model::load(out);  // all or nothing: names, shapes, metadata
    EXPECT_TRUE(model.has_mtp());
    const Gguf gguf = Gguf::open(out);
    EXPECT_EQ(gguf.integer("general.file_type", 0, 99), mix.file_type);
    EXPECT_EQ(gguf.integer("general.quantization_version", 0, 99), 2);
    for (size_t i = 0; i < reports.size(); ++i) {
      const GgufTensor& t = source.tensors()[i];
      const TensorInfo* written = gguf.find(t.name);
      ASSERT_NE(written, nullptr);
      EXPECT_EQ(written->dtype, reports[i].type.type);
      EXPECT_EQ(written->bytes, reports[i].bytes);
      std::vector<float> x(static_cast<size_t>(t.cols())), y(x.size());
      double error = 0;
      for (int64_t r = 0; r < t.rows(); ++r) {
        t.read_row(Isa::kPortable, r, x.data());
        dequantize_row(Isa::kPortable, written->dtype,
                       written->data + r * row_bytes(written->dtype, t.cols()), t.cols(), y.data());
        for (size_t c = 0; c < x.size(); ++c)
          error += std::pow(static_cast<double>(x[c]) - static_cast<double>(y[c]), 2);
      }
      EXPECT_NEAR(error, reports[i].error, 1e-9 * error + 1e-30) << t.name;
      EXPECT_LE(std::sqrt(reports[i].error), 0.4 * std::sqrt(reports[i].norm)) << t.name;
    }
  }
}

TEST(Quantize, MetadataAndWhatHasItsTypeAlreadyAreCopied) {
  const TempDir folder;
  const fs::path from = golden_path("gguf/qwen2-256-Q4_0.gguf"), out = folder / "out.gguf";
  const GgufSource source(Checkpoint::open(from), {});
  write(source, "Q4_0", out);
  const Gguf before = Gguf::open(from), after = Gguf::open(out);
  for (const auto& [key, value] : before.metadata()) {
    SCOPED_TRACE(key);
    const auto found = after.metadata().find(key);
    if (key == "general.alignment") continue;
    ASSERT_NE(found, after.metadata().end());
    EXPECT_TRUE(std::equal(found->second.stored.begin(), found->second.stored.end(),
                           value.stored.begin(), value.stored.end()));
  }
  int copied = 0;
  for (const TensorInfo& t : before.tensors()) {
    const TensorInfo* written = after.find(t.name);
    ASSERT_NE(written, nullptr) << t.name;
    EXPECT_EQ(written->shape, t.shape);
    if (written->dtype != t.dtype) continue;
    EXPECT_TRUE(std::equal(t.data, t.data + t.bytes, written->data)) << t.name;
    ++copied;
  }
  EXPECT_GT(copied, 10);
}

TEST(Quantize, ThreadsChangeNothing) {
  const TempDir folder;
  const GgufSource source = golden_source("v3", folder);
  std::string first;
  for (const int threads : {1, 2, 3}) {
    const fs::path out = folder / "out.gguf";
    const std::vector<StoredTensor> reports = write(source, "Q3_K_M", out, threads);
    double error = 0;
    for (const StoredTensor& t : reports) error += t.error;
    const std::string bytes = read_file(out, 1 << 26) + std::to_string(error);
    if (first.empty()) first = bytes;
    EXPECT_TRUE(bytes == first) << threads;
  }
}

// One matrix of two rows of 32, this value at [1, 5].
std::string tiny_gguf(float value, uint32_t tensors = 1) {
  std::vector<float> x(64, 0.5f);
  x[37] = value;
  GgufBuilder file;
  file.str("general.architecture", "test");
  for (uint32_t i = 0; i < tensors; ++i)
    file.tensor("blk." + std::to_string(i) + ".ffn_up.weight", {32, 2}, 0,
                {reinterpret_cast<const char*>(x.data()), 256});
  return file.bytes();
}

TEST(Quantize, ValuesThatCannotBeStoredAreNamedAndNothingIsWritten) {
  const TempDir folder;
  const float infinity = std::numeric_limits<float>::infinity();
  for (const auto& [value, text] : {std::pair(NAN, "nan"), {infinity, "inf"}, {1e30f, "1e+30"}}) {
    folder.write("in.gguf", tiny_gguf(value));
    const GgufSource source(Checkpoint::open(folder / "in.gguf"), {});
    const std::string message = error_of([&] { write(source, "Q4_0", folder / "out.gguf"); });
    expect_part(message, "tensor 'blk.0.ffn_up.weight': row 1, column 5: found ");
    expect_part(message, text);
    EXPECT_FALSE(fs::exists(folder / "out.gguf"));
  }
}

TEST(Quantize, ImportanceIsUsedAndItsSizeChecked) {
  const TempDir folder;
  const GgufSource source = golden_gguf("v2-lite-256-Q4_K_M.gguf");
  const std::string name = "blk.1.ffn_gate_exps.weight";
  Importance importance;
  const Gguf gguf = Gguf::open(golden_path("gguf/v2-lite-256-Q4_K_M.gguf"));
  const TensorInfo* experts = gguf.find(name);
  std::vector<float>& w = importance[name];
  for (int64_t i = 0; i < experts->shape[0] * experts->shape[2]; ++i)
    w.push_back(i % 7 == 0 ? 100.0f : 0.01f);
  const auto plain = write(source, "Q2_K", folder / "plain.gguf");
  const auto weighted = write(source, "Q2_K", folder / "weighted.gguf", 2, &importance);
  for (size_t i = 0; i < plain.size(); ++i) {
    EXPECT_EQ(weighted[i].weighted, plain[i].name == name);
    if (plain[i].name == name) {
      EXPECT_GT(weighted[i].error, plain[i].error);  // less where it matters, more in all
    } else {
      EXPECT_EQ(weighted[i].error, plain[i].error);
    }
  }
  w.pop_back();
  expect_part(error_of([&] { write(source, "Q2_K", folder / "x.gguf", 2, &importance); }),
              "tensor 'blk.1.ffn_gate_exps.weight': importance of ");
}

}  // namespace
}  // namespace fathom
