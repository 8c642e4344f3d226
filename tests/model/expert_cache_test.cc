// A model whose experts do not fit computes what it computes when they do, bit for bit, and a disk
// that fails is an error that names file and tensor.
#include "model/expert_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "tests/base/test_files.h"
#include "tests/base/test_name.h"
#include "tests/model/golden.h"
#include "tests/reference/expect_close.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using reference::expect_same_bits;

ExpertLayout layout_of(const Model& model) {
  return expert_layout(model.checkpoint(), model.config()).value();
}

// Cache sizes in slots: the least, some, all.
std::vector<int64_t> sizes_for(const ExpertLayout& layout) {
  return {layout.least_slots, layout.least_slots + 3, layout.experts / 2, layout.experts};
}

Model streamed(const fs::path& path, int64_t slots) {
  Model model = Model::load(path);
  model.stream_experts(static_cast<uint64_t>(slots) * layout_of(model).slot_bytes);
  return model;
}

class Streamed : public testing::TestWithParam<std::string> {};

TEST_P(Streamed, LogitsAreThoseOfAModelThatFitsToTheBit) {
  const fs::path path = GetParam() == "bundled" ? golden_path("../../bundled/countdown-12m.gguf")
                                                : golden_path("models/" + GetParam());
  const Model whole = Model::load(path);
  std::vector<int32_t> ids(96);
  for (size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<int32_t>(i * 37 % static_cast<size_t>(whole.config().vocab_size));
  Context ctx(2);
  const auto expected = feed_logits(whole, ctx, ids, {64, 1}, MlaForm::kAbsorbed);
  const ExpertLayout layout = layout_of(whole);
  for (const int64_t slots : sizes_for(layout)) {
    const Model model = streamed(path, slots);
    ASSERT_EQ(model.expert_cache()->slots(), std::min(slots, layout.experts));
    expect_same_bits(feed_logits(model, ctx, ids, {64, 1}, MlaForm::kAbsorbed), expected);
    const ExpertCacheStats stats = model.expert_cache()->stats();
    if (2 * slots >= layout.experts) {
      EXPECT_GT(stats.hits, 0) << slots;
    }
    EXPECT_GT(stats.misses, 0) << slots;
    EXPECT_GT(stats.read_bytes, 0u) << slots;
    if (slots >= layout.experts) {
      EXPECT_LE(stats.misses, layout.experts);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Streamed,
                         testing::Values("v3", "moonlight", "v2", "v2-lite", "v3-fp8", "bundled"),
                         kNamedByParameter);

TEST(ExpertLayout, AddsUpToTheTensorsOfTheFiles) {
  const Model model = Model::load(golden_path("models/v3"));
  uint64_t bytes = 0;
  for (const TensorInfo* tensor : model.checkpoint().tensors()) {
    if (tensor->name.find(".experts.") != std::string::npos) bytes += tensor->bytes;
  }
  const ExpertLayout layout = layout_of(model);
  EXPECT_EQ(layout.bytes, bytes);
  EXPECT_GE(layout.slot_bytes * static_cast<uint64_t>(layout.experts), bytes);
  EXPECT_FALSE(expert_layout(Checkpoint::open(golden_path("models/qwen2")),
                             load_config(Checkpoint::open(golden_path("models/qwen2")))));
}

TEST(ExpertReads, AreMeasured) {
  const Model model = Model::load(golden_path("../../bundled/countdown-12m.gguf"));
  EXPECT_GT(measure_expert_reads(model.checkpoint(), model.config(), 0.02), 0);
}

// The experts of one layer of the bundled model, one row each, as they come; they are the file's.
int64_t rows_that_come(ExpertCache& cache, const Model& whole, int64_t layer) {
  const MoeWeights& moe = *whole.weights().layers[static_cast<size_t>(layer)].moe;
  std::vector<int64_t> offsets(static_cast<size_t>(whole.config().n_routed_experts) + 1);
  for (size_t e = 0; e < offsets.size(); ++e) offsets[e] = static_cast<int64_t>(e);
  cache.begin(layer, offsets, moe.gate_proj, moe.up_proj, moe.down_proj);
  int64_t rows = 0;
  while (const auto wave = cache.next()) {
    EXPECT_EQ(wave->row, rows);
    for (int64_t e = wave->row; e < wave->row + wave->rows; ++e) {
      const auto i = static_cast<size_t>(e);
      const WeightView &got = wave->down_proj->weight[i], &expected = moe.down_proj.weight[i];
      EXPECT_EQ(std::memcmp(got.data, expected.data,
                            static_cast<size_t>(got.rows * row_bytes(got.dtype, got.cols))),
                0)
          << e;
    }
    rows += wave->rows;
  }
  return rows;
}

TEST(ExpertCache, AFileThatShrinksIsAnErrorThatNamesItAndTheTensorAndIsOverWhenItIsBack) {
  const fs::path original = golden_path("../../bundled/countdown-12m.gguf");
  const TempDir folder;
  const fs::path path = folder / "model.gguf";
  fs::copy_file(original, path);
  const Model whole = Model::load(original), damaged = Model::load(path);
  const ExpertLayout layout = layout_of(damaged);
  // room for more than one layer, so that what was not read would still lie there
  ExpertCache cache(damaged.checkpoint(), damaged.config(), 40 * layout.slot_bytes);
  const std::string bytes = read_file(path, 1 << 24);
  const TensorInfo* tensor = damaged.checkpoint().find("blk.1.ffn_down_exps.weight");
  const auto begin =
      static_cast<uint64_t>(tensor->data - damaged.checkpoint().file(*tensor).bytes().data());
  fs::resize_file(path, begin);
  const std::string text = error_of([&] { rows_that_come(cache, whole, 1); });
  EXPECT_TRUE(text.starts_with(path.string() + ": ends at byte")) << text;
  EXPECT_NE(text.find("(tensor 'blk.1."), text.npos) << text;
  error_of([&] { rows_that_come(cache, whole, 2); });
  std::ofstream(path, std::ios::binary) << bytes;
  EXPECT_EQ(rows_that_come(cache, whole, 1), damaged.config().n_routed_experts);
  EXPECT_EQ(rows_that_come(cache, whole, 1), damaged.config().n_routed_experts);
}

}  // namespace
}  // namespace fathom
