// The forward pass: against the double-precision twin, the twin against vectors of an independent
// implementation, and the bit-for-bit properties every architecture promises. (`fathom selftest`,
// tested in tests/cli, compares with the recorded vectors themselves.)
#include "model/model.h"

#include <gtest/gtest.h>

#include <numeric>

#include "kernels/gemm.h"
#include "model/weight_tiles.h"
#include "tests/base/test_name.h"
#include "tests/model/golden.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/model_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_close;
using reference::expect_same_bits;

double largest(std::span<const double> values) {
  double m = 0;
  for (const double v : values) m = std::max(m, std::abs(v));
  return m;
}

class GoldenModel : public testing::TestWithParam<std::string> {
 protected:
  GoldenModel()
      : model_(Model::load(golden_path("models/" + GetParam()))), ids_(golden_ids(GetParam())) {}
  std::vector<MlaForm> forms() const {
    return model_.config().is_mla() ? std::vector{MlaForm::kExpanded, MlaForm::kAbsorbed}
                                    : std::vector{MlaForm::kExpanded};
  }
  Model model_;
  std::vector<int32_t> ids_;
};

// The twin is exact up to the f32 rounding of the recorded values and of the widened FP8 weights.
TEST_P(GoldenModel, TwinEqualsTheIndependentImplementation) {
  std::vector<double> hidden;
  const auto logits = reference::model_logits(model_, ids_, Precision::kF32, &hidden);
  const auto recorded = golden_values(GetParam(), "logits");
  expect_close(recorded, logits, 2e-7 * largest(logits));
  if (model_.has_mtp()) {
    const auto mtp = reference::mtp_logits(model_, ids_, Precision::kF32, hidden);
    expect_close(golden_values(GetParam(), "mtp_logits"), mtp, 2e-7 * largest(mtp));
  }
}

TEST_P(GoldenModel, LogitsAreTheTwinsOnEveryInstructionSet) {
  const auto expected = reference::model_logits(model_, ids_, Precision::kF32);
  for (const Isa isa : reference::instruction_sets()) {
    Context ctx(2, isa, Precision::kF32);
    for (const MlaForm form : forms()) {
      expect_close(feed_logits(model_, ctx, ids_, {96}, form), expected, 2e-5 * largest(expected));
    }
  }
}

TEST_P(GoldenModel, ChunksAndThreadsDoNotChangeOneBit) {
  for (const Isa isa : reference::instruction_sets()) {
    for (const MlaForm form : forms()) {
      for (const DType cache : {DType::kF32, DType::kBF16}) {
        Context one(1, isa);
        const auto whole = feed_logits(model_, one, ids_, {96}, form, cache);
        for (const int threads : {1, 2, 3}) {
          Context ctx(threads, isa);
          for (const std::vector<int64_t>& chunks :
               {std::vector<int64_t>{1}, {96}, {5, 1, 64, 2}, {65}}) {
            expect_same_bits(feed_logits(model_, ctx, ids_, chunks, form, cache), whole);
          }
        }
      }
    }
  }
}

TEST_P(GoldenModel, NeighboursDoNotChangeOneBit) {
  Context ctx(2);
  const ModelConfig& c = model_.config();
  for (const MlaForm form : forms()) {
    const auto alone = feed_logits(model_, ctx, ids_, {96}, form);
    // Three sequences in one batch, blocks dealt out alternately: the first and third are prefixes
    // of ours, the second is it reversed.
    std::vector<int32_t> reversed(ids_.rbegin(), ids_.rend());
    KvCache cache(model_, DType::kF32, 96 * 3 + 3 * 64);
    std::vector<int64_t> blocks[3];
    for (int64_t tokens : {64, 96}) {
      for (auto& b : blocks) ASSERT_TRUE(cache.reserve(b, tokens));
    }
    std::vector<int32_t> tokens(ids_.begin(), ids_.begin() + 70);
    tokens.insert(tokens.end(), reversed.begin(), reversed.end());
    tokens.insert(tokens.end(), ids_.begin(), ids_.end());
    const SequenceRows sequences[] = {{70, 0, blocks[0]}, {96, 0, blocks[1]}, {96, 0, blocks[2]}};
    std::vector<int32_t> wanted;
    for (int32_t i = 0; i < 70; ++i) wanted.push_back(i);
    for (int32_t i = 0; i < 96; ++i) wanted.push_back(166 + i);
    std::vector<float> logits(wanted.size() * static_cast<size_t>(c.vocab_size));
    const auto rows = static_cast<int64_t>(wanted.size());
    model_.forward_infer(ctx, {tokens, sequences, wanted, &cache.view(), form},
                         {logits.data(), rows, c.vocab_size, c.vocab_size});
    const auto split = static_cast<size_t>(70 * c.vocab_size);
    expect_same_bits(std::span(logits).first(split), std::span(alone).first(split));
    expect_same_bits(std::span(logits).subspan(split), alone);
  }
}

// Rows without logits do not run through the last layer: nobody sees a difference, later rows that
// attend to them included, also where a batch has both forms.
TEST_P(GoldenModel, LogitsAreTheSameBitsWhicheverRowsWantThem) {
  Context ctx(2);
  const ModelConfig& c = model_.config();
  const int64_t vocab = c.vocab_size;
  const std::vector<MlaForm> mixed = {forms().front(), forms().back()};
  const auto run = [&](const std::vector<std::vector<int32_t>>& wanted) {
    KvCache cache(model_, DType::kBF16, 128);
    std::vector<int64_t> blocks;
    EXPECT_TRUE(cache.reserve(blocks, 96));
    std::vector<std::vector<float>> of_position(96);
    const std::pair<int64_t, int64_t> chunks[] = {{0, 60}, {60, 36}};
    for (size_t chunk = 0; chunk < 2; ++chunk) {
      const auto [begin, count] = chunks[chunk];
      const int64_t border = count / 2;
      const SequenceRows sequences[] = {{border, begin, blocks},
                                        {count - border, begin + border, blocks}};
      const auto rows = std::ssize(wanted[chunk]);
      std::vector<float> logits(static_cast<size_t>(rows * vocab));
      const auto tokens =
          std::span(ids_).subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
      model_.forward_infer(ctx, {tokens, sequences, wanted[chunk], &cache.view(), mixed[0], mixed},
                           {logits.data(), rows, vocab, vocab});
      for (int64_t i = 0; i < rows; ++i) {
        const auto from = logits.begin() + i * vocab;
        of_position[static_cast<size_t>(begin + wanted[chunk][static_cast<size_t>(i)])].assign(
            from, from + vocab);
      }
    }
    return of_position;
  };
  const auto range = [](int32_t count) {
    std::vector<int32_t> all(static_cast<size_t>(count));
    std::iota(all.begin(), all.end(), 0);
    return all;
  };
  const auto all = run({range(60), range(36)});
  for (const auto& wanted : {std::vector<std::vector<int32_t>>{{}, {35}},
                             {{59}, {}},
                             {{0, 1, 7, 29, 30, 31, 58}, {3, 4, 17, 18, 20, 35}}}) {
    const auto some = run(wanted);
    for (size_t chunk = 0; chunk < 2; ++chunk) {
      for (const int32_t row : wanted[chunk]) {
        const size_t position = 60 * chunk + static_cast<size_t>(row);
        expect_same_bits(some[position], all[position]);
      }
    }
  }
}

TEST_P(GoldenModel, ExpandedAndAbsorbedAgreeWithinTheBound) {
  if (!model_.config().is_mla()) return;  // one form only
  Context ctx(1, detect_isa(), Precision::kF32);
  const auto expanded = feed_logits(model_, ctx, ids_, {96}, MlaForm::kExpanded);
  const auto absorbed = feed_logits(model_, ctx, ids_, {96}, MlaForm::kAbsorbed);
  double scale = 0;
  for (const float v : expanded) scale = std::max(scale, std::abs(static_cast<double>(v)));
  expect_close(absorbed, expanded, 2 * 2e-5 * scale);
  EXPECT_NE(absorbed, expanded) << "the two forms should be different sums";
}

INSTANTIATE_TEST_SUITE_P(All, GoldenModel, testing::ValuesIn(golden_models()), kNamedByParameter);

class Bf16Model : public testing::TestWithParam<std::string> {
 protected:
  static std::string path() {
    return golden_path(GetParam() == "v3-fp8" ? "models/v3-fp8" : "gguf/" + GetParam() + ".gguf");
  }
  static std::vector<int32_t> ids() {
    const std::string& name = GetParam();
    return golden_ids(name == "v3-BF16" ? "v3" : name == "v3-fp8" ? name : "llama3");
  }
};

// kernels/gemm.h: BF16 and FP8 weights see x rounded to bf16. A twin that rounds at the same places
// differs only where an f32 rounding error carries x over a bf16 rounding border: probability about
// 2^-15 an element, and then by one ulp, up to 2^-7 of one term of a sum of 64 to 256. Ten such
// terms together stay below 10 * 2^-7 / sqrt(64) of the sum.
TEST_P(Bf16Model, NativeArithmeticIsTheTwinsWithRoundedInputs) {
  const Model model = Model::load(path());
  const auto ids = this->ids();
  const auto expected = reference::model_logits(model, ids, Precision::kNative);
  const auto exact = reference::model_logits(model, ids, Precision::kF32);
  for (const Isa isa : reference::instruction_sets()) {
    Context ctx(2, isa);
    const auto logits = feed_logits(model, ctx, ids, {96}, MlaForm::kExpanded);
    expect_close(logits, expected, 10 * 0x1p-7 / 8 * largest(expected));
    // The test sees rounding at all: the exact twin is much further away, at the middle position
    // (an expert that flips moves all that follow).
    std::vector<double> to_rounded, to_exact;
    for (size_t i = 0; i < logits.size(); ++i) {
      if (i % static_cast<size_t>(model.config().vocab_size) == 0) {
        to_rounded.push_back(0);
        to_exact.push_back(0);
      }
      to_rounded.back() += std::pow(logits[i] - expected[i], 2);
      to_exact.back() += std::pow(logits[i] - exact[i], 2);
    }
    const auto middle = [](std::vector<double>& of) {
      std::nth_element(of.begin(), of.begin() + std::ssize(of) / 2, of.end());
      return of[of.size() / 2];
    };
    EXPECT_LT(middle(to_rounded) * 10000, middle(to_exact));
  }
}

TEST_P(Bf16Model, F32PrecisionKeepsTheExactTwinsLogits) {
  const Model model = Model::load(path());
  const auto ids = this->ids();
  const auto exact = reference::model_logits(model, ids, Precision::kF32);
  Context ctx(2, detect_isa(), Precision::kF32);
  for (const MlaForm form : {MlaForm::kExpanded, MlaForm::kAbsorbed}) {
    expect_close(feed_logits(model, ctx, ids, {96}, form), exact, 2e-5 * largest(exact));
  }
}

// Every format at once, stacked experts, a tied head, both forms of attention.
TEST(Tiles, ChangeNoBitOfTheLogitsAndAreAllOrNothing) {
  for (const char* name : {"qwen2-256-Q3_K_M", "qwen2-256-Q5_K_M", "v2-lite-256-Q4_K_M",
                           "v2-lite-256-Q2_K-kv_b", "v2-lite-256-MXFP4"}) {
    SCOPED_TRACE(name);
    const auto path = golden_path(fmt::format("gguf/{}.gguf", name));
    Model rows = Model::load(path), tiled = Model::load(path);
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < 40; ++i)
      ids.push_back(i * 7 % static_cast<int32_t>(rows.config().vocab_size));
    Context ctx(2);
    EXPECT_THROW(tiled.make_tiles(ctx, [](uint64_t) { throw std::runtime_error("stop"); }),
                 std::runtime_error);
    EXPECT_EQ(tiled.weights().lm_head.weight.tiles, nullptr);
    uint64_t done = 0;
    tiled.make_tiles(ctx, [&](uint64_t bytes) { done = bytes; });
    EXPECT_EQ(done, tiled.tile_bytes());
    EXPECT_GT(done, 0u);
    for (const MlaForm form : {MlaForm::kExpanded, MlaForm::kAbsorbed}) {
      if (form == MlaForm::kAbsorbed && !rows.config().is_mla()) continue;
      for (const std::vector<int64_t>& chunks : {std::vector<int64_t>{1}, {40}, {5, 20}}) {
        expect_same_bits(feed_logits(tiled, ctx, ids, chunks, form),
                         feed_logits(rows, ctx, ids, chunks, form));
      }
    }
  }
}

// The values of kv_b_proj, which the absorbed form multiplies with head by head, are in tiles once;
// but for heads that begin amid one.
TEST(Tiles, TheValuesOfKvBAreAPartOfItsTiles) {
  const auto path = golden_path("gguf/v2-lite-256-Q2_K-kv_b.gguf");
  Model model = Model::load(path);
  const ModelConfig& c = model.config();
  Context ctx(2);
  model.make_tiles(ctx);
  for (const BlockWeights& block : model.weights().layers) {
    for (int64_t head = 0; head < c.num_attention_heads; ++head) {
      const int64_t row = head * (c.qk_nope_head_dim + c.v_head_dim) + c.qk_nope_head_dim;
      const std::byte* const tiles = block.mla->absorbed.v_up[static_cast<size_t>(head)].tiles;
      EXPECT_NE(tiles, nullptr);
      EXPECT_EQ(tiles, block.mla->kv_b_proj.weight.slice(row, c.v_head_dim).tiles);
    }
  }
  const Checkpoint checkpoint = Checkpoint::open(path);
  ModelWeights weights = load_weights(checkpoint, c);
  const uint64_t all = bytes_of_tiles(weights, c);
  EXPECT_EQ(all, model.tile_bytes());
  MlaWeights& mla = *weights.layers[0].mla;
  mla.absorbed.v_up.clear();
  EXPECT_EQ(bytes_of_tiles(weights, c), all);
  const WeightView amid = mla.kv_b_proj.weight.slice(8, 32);
  mla.absorbed.v_up.push_back(amid);
  EXPECT_EQ(bytes_of_tiles(weights, c), all + static_cast<uint64_t>(bytes_of_tiles(amid)));
}

TEST(GgufMtp, IsTheRecordedOne) {
  const Model model = Model::load(golden_path("gguf/v3-BF16.gguf"));
  ASSERT_TRUE(model.has_mtp());
  const auto ids = golden_ids("v3");
  const ModelConfig& c = model.config();
  Context ctx(2, detect_isa(), Precision::kF32);
  Feeder feeder(model, ctx, 96, DType::kF32, MlaForm::kAbsorbed);
  std::vector<float> logits(static_cast<size_t>(96 * c.vocab_size)),
      hidden(static_cast<size_t>(96 * c.hidden_size)), mtp(static_cast<size_t>(95 * c.vocab_size));
  Rows hidden_rows{hidden.data(), 96, c.hidden_size, c.hidden_size};
  feeder.feed(ids, {logits.data(), 96, c.vocab_size, c.vocab_size}, &hidden_rows);
  feeder.feed_mtp(std::span(ids).subspan(1), hidden_rows.slice(0, 95),
                  {mtp.data(), 95, c.vocab_size, c.vocab_size});
  const Safetensors golden = Safetensors::open(golden_path("gguf/golden.safetensors"));
  std::vector<float> recorded(mtp.size());
  __builtin_memcpy(recorded.data(), golden.find("v3-BF16.mtp_logits")->data, recorded.size() * 4);
  double scale = 0;
  for (const float v : recorded) scale = std::max(scale, std::abs(static_cast<double>(v)));
  expect_close(mtp, recorded, 2e-5 * scale);
}

INSTANTIATE_TEST_SUITE_P(All, Bf16Model, testing::Values("v3-BF16", "v3-fp8", "llama3-BF16"),
                         kNamedByParameter);

}  // namespace
}  // namespace fathom
