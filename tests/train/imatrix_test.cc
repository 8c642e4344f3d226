// Importance matrices: what is summed, how often, that watching changes nothing, and the file.
#include "train/imatrix.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "model/linear.h"
#include "tests/base/test_files.h"
#include "tests/formats/gguf_builder.h"
#include "tests/model/golden.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

Model golden(const std::string& name) { return Model::load(golden_path("models/" + name)); }

// Counts of a file, by tensor.
std::map<std::string, std::vector<float>> counts_of(const fs::path& file) {
  std::map<std::string, std::vector<float>> counts;
  const Gguf gguf = Gguf::open(file);
  for (const TensorInfo& t : gguf.tensors()) {
    if (!t.name.ends_with(".counts")) continue;
    std::vector<float>& values = counts[t.name.substr(0, t.name.size() - 7)];
    values.resize(t.bytes / 4);
    std::memcpy(values.data(), t.data, t.bytes);
  }
  return counts;
}

TEST(Imatrix, MeansAreThoseOfTheSquaresOfTheRowsALayerSaw) {
  const TempDir folder;
  const Model model = golden("qwen2");
  Context ctx(2);
  const Linear& up = model.weights().layers[0].mlp->up_proj;
  const int64_t cols = up.weight.cols;
  const reference::PaddedRows x(5, cols, 1), y(5, up.weight.rows, 2);
  std::vector<double> expected(static_cast<size_t>(cols));
  for (int64_t r = 0; r < 5; ++r) {
    for (int64_t c = 0; c < cols; ++c)
      expected[static_cast<size_t>(c)] += std::pow(static_cast<double>(x.view.row(r)[c]), 2) / 5;
  }
  {
    const ImportanceRecorder recorder(ctx, model);
    linear_forward(ctx, x.view.slice(0, 3), up, nullptr, y.view.slice(0, 3));
    linear_forward(ctx, x.view.slice(3, 2), up, nullptr, y.view.slice(3, 2));
    EXPECT_EQ(recorder.tensors(), 1);
    recorder.write(folder / "i.gguf", "text", 1, 5);
  }
  EXPECT_FALSE(ctx.input_observer());  // nobody watches any more
  const Importance importance = read_imatrix(folder / "i.gguf");
  ASSERT_EQ(importance.size(), 1u);
  // stored sums and their quotients are f32: three roundings of numbers of at most 1
  reference::expect_close(importance.at("blk.0.ffn_up.weight"), expected, 3 * reference::kUnit);
}

TEST(Imatrix, EveryLinearLayerIsSeenOncePerTokenAndExpertsAsOftenAsChosen) {
  for (const std::string name : {"v3", "v2-lite", "llama3"}) {
    SCOPED_TRACE(name);
    const TempDir folder;
    const Model model = golden(name);
    const ModelConfig& c = model.config();
    Context ctx(2);
    const std::vector<int32_t> ids = golden_ids(name);
    const auto tokens = static_cast<float>(ids.size());
    const std::vector<float> plain = feed_logits(model, ctx, ids, {40}, MlaForm::kAbsorbed);
    {
      const ImportanceRecorder recorder(ctx, model);
      reference::expect_same_bits(feed_logits(model, ctx, ids, {40}, MlaForm::kAbsorbed), plain);
      recorder.write(folder / "i.gguf", "text", 1, 96);
    }
    const auto counts = counts_of(folder / "i.gguf");
    for (const GgufTensor& t : gguf_tensors(model, false)) {
      SCOPED_TRACE(t.name);
      const bool multiplies = t.is_matrix() && t.name.find("ffn_gate_inp") == t.name.npos &&
                              (t.name != "token_embd.weight" || c.tie_word_embeddings);
      ASSERT_EQ(counts.contains(t.name), multiplies);
      if (!multiplies) continue;
      const std::vector<float>& seen = counts.at(t.name);
      ASSERT_EQ(std::ssize(seen), std::ssize(t.parts));
      const bool experts = t.name.find("_exps.") != t.name.npos;
      float sum = 0;
      for (const float n : seen) {
        sum += n;
        EXPECT_TRUE(experts || n == tokens) << n;
      }
      const auto chosen =
          static_cast<float>(experts ? c.router.num_experts_per_tok : std::ssize(seen));
      EXPECT_EQ(sum, tokens * chosen);
    }
    // one value per column and part, which is what write_gguf() asks for
    for (const auto& [tensor, values] : read_imatrix(folder / "i.gguf")) {
      EXPECT_EQ(values.size() % counts.at(tensor).size(), 0u);
      for (const float value : values) EXPECT_TRUE(value >= 0) << tensor;
    }
  }
}

TEST(Imatrix, OtherFilesAreRefusedByName) {
  const TempDir folder;
  const auto refusal = [&](GgufBuilder file) {
    folder.write("x.gguf", file.bytes());
    return error_of([&] { read_imatrix(folder / "x.gguf"); });
  };
  const auto imatrix = [] { return GgufBuilder().str("general.type", "imatrix"); };
  const auto floats = [](std::vector<float> values) {
    return std::string(reinterpret_cast<const char*>(values.data()), 4 * values.size());
  };
  const std::pair<GgufBuilder, const char*> cases[] = {
      {GgufBuilder().str("general.type", "model"), "'general.type': expected 'imatrix'"},
      {imatrix(), "no tensor ends in .in_sum2"},
      {imatrix().tensor("a.in_sum2", {2}, 0, floats({1, 2})), "tensor 'a.counts': missing"},
      {imatrix()
           .tensor("a.in_sum2", {2}, 0, floats({1, NAN}))
           .tensor("a.counts", {1}, 0, floats({1})),
       "tensor 'a.in_sum2': element 1: found nan"},
      {imatrix()
           .tensor("a.in_sum2", {2}, 0, floats({1, -1}))
           .tensor("a.counts", {1}, 0, floats({1})),
       "element 1: found -1"},
      {imatrix()
           .tensor("a.in_sum2", {3}, 0, floats({1, 2, 3}))
           .tensor("a.counts", {2}, 0, floats({1, 1})),
       "3 values for 2 counts"},
      {imatrix().tensor("a.in_sum2", {2}, 24, "xx").tensor("a.counts", {1}, 0, floats({1})),
       "type I8, expected F32"},
  };
  for (const auto& [file, text] : cases)
    EXPECT_NE(refusal(file).find(text), std::string::npos) << refusal(file) << text;
  const GgufBuilder good = imatrix()
                               .tensor("a.in_sum2", {2, 2}, 0, floats({2, 4, 5, 6}))
                               .tensor("a.counts", {1, 2}, 0, floats({2, 0}));
  folder.write("x.gguf", good.bytes());
  EXPECT_EQ(read_imatrix(folder / "x.gguf").at("a"), (std::vector<float>{1, 2, 0, 0}));
}

}  // namespace
}  // namespace fathom
