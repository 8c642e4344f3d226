// The gradient of whole models: against gradients recorded from an independent implementation, and
// the bits that micro-batches, threads, recomputation and inference must not change.
#include "model/gradient.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/random.h"
#include "engine/sampler.h"
#include "kernels/cross_entropy.h"
#include "kernels/softmax.h"
#include "model/parameters.h"
#include "tests/base/test_name.h"
#include "tests/model/golden.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/model_ref.h"
#include "tests/reference/ops_backward_ref.h"
#include "tests/reference/test_rows.h"

namespace fathom {
namespace {

using reference::expect_same_bits;

struct Recorded : RecordedBatch {
  explicit Recorded(const std::string& model) : RecordedBatch(model) {
    objective.targets = static_cast<int64_t>(tokens.size() - lengths.size());
    objective.mtp_targets = mtp_target_count(batch());
    objective.documents = std::ssize(lengths);
    objective.mtp_loss_weight = settings["mtp_weight"];
    objective.balance_alpha.sequence = settings["balance_alpha"];
    total = settings["total"];
    gradients = folder + "/grads_" + kind + ".safetensors";
  }
  Objective objective;
  double total = 0;
  std::string gradients;  // file
};

// A model of f32 weights in memory and a place for its gradients.
struct Training {
  explicit Training(const std::string& name)
      : config(Model::load(golden_path("models/" + name)).config()),
        table(parameter_table(config)),
        master(static_cast<size_t>(table.total)),
        gradients(static_cast<size_t>(table.total)),
        model(make(name)),
        views(map_gradients(config, table, gradients)) {}

  Model make(const std::string& name) {
    const Model loaded = Model::load(golden_path("models/" + name));
    copy_weights(config, table, loaded.weights(), master);
    return Model(config, map_weights(config, table, master, {}));
  }

  StepLosses run(Context& ctx, const TrainBatch& batch, const Objective& objective) {
    return pass(ctx, batch, objective, &views);
  }
  // Losses only.
  StepLosses look(Context& ctx, const TrainBatch& batch, const Objective& objective) {
    return pass(ctx, batch, objective, nullptr);
  }
  StepLosses pass(Context& ctx, const TrainBatch& batch, const Objective& objective,
                  const ModelGradients* into) {
    StepLosses losses;
    losses.expert_tokens.assign(static_cast<size_t>(moe_layers(model) * config.n_routed_experts),
                                0);
    add_gradients(ctx, model, batch, objective, into, losses);
    return losses;
  }

  ModelConfig config;
  ParameterTable table;
  std::vector<float> master, gradients;
  Model model;
  ModelGradients views;
};

class GoldenGradient : public testing::TestWithParam<std::string> {};

TEST_P(GoldenGradient, IsTheIndependentImplementationsOnEveryInstructionSet) {
  const Recorded r(GetParam());
  const Safetensors expected = Safetensors::open(r.gradients);
  for (const Isa isa : reference::instruction_sets()) {
    Training training(GetParam());
    Context ctx(2, isa);
    const StepLosses losses = training.run(ctx, r.batch(), r.objective);
    EXPECT_NEAR(losses.total(r.objective), r.total, 1e-5 * r.total);
    size_t compared = 0;
    for (const Parameter& p : training.table.parameters) {
      const float* actual = training.gradients.data() + p.offset;
      const TensorInfo* tensor = expected.find(p.name);
      double error = 0, norm = 0;
      for (int64_t i = 0; i < p.count; ++i) {
        float value = 0;
        if (tensor != nullptr) __builtin_memcpy(&value, tensor->data + i * 4, 4);
        error += std::pow(actual[i] - value, 2);
        norm += std::pow(value, 2);
      }
      if (tensor == nullptr) {
        EXPECT_EQ(error, 0) << p.name << ": the loss does not reach it";
        continue;
      }
      ++compared;
      EXPECT_TRUE(error <= 1e-8 * norm) << p.name << ": relative error " << std::sqrt(error / norm);
    }
    EXPECT_EQ(compared, expected.tensors().size());
  }
}

TEST_P(GoldenGradient, ThreadsAndRecomputationDoNotChangeOneBit) {
  const Recorded r(GetParam());
  Training first(GetParam()), second(GetParam());
  Context one(1), three(3);
  Objective objective = r.objective;
  const StepLosses a = first.run(one, r.batch(), objective);
  objective.recompute = true;
  const StepLosses b = second.run(three, r.batch(), objective);
  EXPECT_EQ(a.total(objective), b.total(objective));
  EXPECT_EQ(a.expert_tokens, b.expert_tokens);
  expect_same_bits(first.gradients, second.gradients);
}

// What RL stands on: the sampler's prefill and the trainer's forward pass are one computation.
TEST_P(GoldenGradient, TheTrainersForwardPassHasTheBitsOfPrefill) {
  const Recorded r(GetParam());
  Training training(GetParam());
  Context ctx(2);
  Objective objective = r.objective;
  objective.mtp_loss_weight = 0;
  int64_t begin = 0;
  for (const int64_t length : r.lengths) {
    const auto first = static_cast<size_t>(begin), count = static_cast<size_t>(length);
    const std::vector<int32_t> ids(r.tokens.begin() + begin, r.tokens.begin() + begin + length);
    std::vector<float> logits =
        feed_logits(training.model, ctx, ids, {7, 1, 20}, MlaForm::kExpanded);
    const int64_t vocab = training.config.vocab_size;
    const auto targets = std::span(r.targets).subspan(first, count);
    const CrossEntropy prefill =
        softmax_cross_entropy(ctx, targets, 1.0f, {logits.data(), length, vocab, vocab});
    const int64_t lengths[] = {length};
    EXPECT_EQ(training.look(ctx, {ids, lengths, targets}, objective).cross_entropy, prefill.loss);
    begin += length;
  }
}

// Cross-entropy as a function of log-probabilities; keeps what it saw.
struct LikelihoodObjective : TokenObjective {
  void differentiate(int64_t first, std::span<const float> log_prob, std::span<const float> entropy,
                     std::span<float> d_log_prob, std::span<float> d_entropy) override {
    EXPECT_EQ(first, std::ssize(log_probs));
    log_probs.insert(log_probs.end(), log_prob.begin(), log_prob.end());
    entropies.insert(entropies.end(), entropy.begin(), entropy.end());
    std::fill(d_log_prob.begin(), d_log_prob.end(), -weight);
    std::fill(d_entropy.begin(), d_entropy.end(), 0.0f);
  }
  float weight = 0;
  std::vector<float> log_probs, entropies;
};

TEST_P(GoldenGradient, APolicyGradientOfLikelihoodIsThatOfCrossEntropy) {
  const Recorded r(GetParam());
  Training expected(GetParam()), actual(GetParam());
  Context ctx(2);
  const StepLosses a = expected.run(ctx, r.batch(), r.objective);
  LikelihoodObjective likelihood;
  likelihood.weight = 1 / static_cast<float>(r.objective.targets);
  Objective objective = r.objective;
  objective.tokens = &likelihood;
  const StepLosses b = actual.run(ctx, r.batch(), objective);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_NEAR(a.cross_entropy, b.cross_entropy, 1e-5 * a.cross_entropy);
  for (const float h : likelihood.entropies)
    EXPECT_TRUE(h >= 0 && h <= std::log(static_cast<float>(expected.config.vocab_size)) + 1e-5f)
        << h;
  for (const Parameter& p : expected.table.parameters) {
    double error = 0, norm = 0;
    for (int64_t i = p.offset; i < p.offset + p.count; ++i) {
      const auto at = static_cast<size_t>(i);
      error += std::pow(expected.gradients[at] - actual.gradients[at], 2);
      norm += std::pow(expected.gradients[at], 2);
    }
    EXPECT_TRUE(error <= 1e-10 * norm) << p.name << ": relative error " << std::sqrt(error / norm);
  }
}

// A weight of its own for each row's entropy; log-probabilities have none.
struct EntropyObjective : TokenObjective {
  static float weight(int64_t row) { return 0.01f * static_cast<float>(row % 7 - 2); }
  void differentiate(int64_t first, std::span<const float>, std::span<const float> entropy,
                     std::span<float> d_log_prob, std::span<float> d_entropy) override {
    std::fill(d_log_prob.begin(), d_log_prob.end(), 0.0f);
    for (size_t i = 0; i < entropy.size(); ++i)
      d_entropy[i] = weight(first + static_cast<int64_t>(i));
  }
};

// The same of the double-precision twin.
double entropy_of_twin(const Model& model, const RecordedBatch& r) {
  double sum = 0;
  int64_t row = 0;
  for (const int64_t length : r.lengths) {
    const auto ids =
        std::span(r.tokens).subspan(static_cast<size_t>(row), static_cast<size_t>(length));
    const std::vector<double> logits = reference::model_logits(model, ids, Precision::kF32);
    const size_t vocab = logits.size() / ids.size();
    for (size_t t = 0; t < ids.size(); ++t, ++row) {
      const int32_t target = r.targets[static_cast<size_t>(row)];
      if (target < 0) continue;
      const reference::Doubles one(logits.begin() + static_cast<int64_t>(t * vocab),
                                   logits.begin() + static_cast<int64_t>((t + 1) * vocab));
      sum += EntropyObjective::weight(row) * reference::log_prob_entropy_value(one, target).second;
    }
  }
  return sum;
}

// Every tensor moves along its own gradient, by a millionth of its length (a step that flips no
// expert) and with a sign of its own: the twin's difference is the sum over tensors of |gradient|
// times the way. The way is taken from the rounded weights, so what is left is the error of the
// gradient in f32.
TEST_P(GoldenGradient, OfTheEntropyIsTheTwinsCentralDifference) {
  const Recorded r(GetParam());
  Training training(GetParam());
  Context ctx(2);
  EntropyObjective entropy;
  Objective objective = r.objective;
  objective.mtp_loss_weight = 0;
  objective.balance_alpha = {};
  objective.tokens = &entropy;
  training.run(ctx, r.batch(), objective);
  const std::vector<float> center = training.master;
  for (uint64_t direction = 0; direction < 2; ++direction) {
    std::vector<float> ahead = center, behind = center;
    double expected = 0, terms = 0;
    for (const Parameter& p : training.table.parameters) {
      double gradient = 0, length = 0;
      for (int64_t i = p.offset; i < p.offset + p.count; ++i) {
        gradient += std::pow(training.gradients[static_cast<size_t>(i)], 2);
        length += std::pow(center[static_cast<size_t>(i)], 2);
      }
      if (gradient == 0) continue;
      const double sign = mix_bits(static_cast<uint64_t>(p.offset) + direction) % 2 == 0 ? 1 : -1;
      const double step = sign * 1e-6 * std::sqrt(length / gradient);
      for (auto i = static_cast<size_t>(p.offset); i < static_cast<size_t>(p.offset + p.count);
           ++i) {
        const double g = training.gradients[i];
        ahead[i] = static_cast<float>(center[i] + step * g);
        behind[i] = static_cast<float>(center[i] - step * g);
        const double term = g * (static_cast<double>(ahead[i]) - behind[i]);
        expected += term, terms += std::abs(term);
      }
    }
    training.master = ahead;
    double difference = entropy_of_twin(training.model, r);
    training.master = behind;
    difference -= entropy_of_twin(training.model, r);
    EXPECT_GT(terms, 0);
    EXPECT_NEAR(difference, expected, 1e-4 * terms);
  }
}

// No mismatch between who samples and who learns: at every position a token is drawn and reported
// by the sampler, token by token through the cache; the trainer's log-probability of that token, in
// a packed batch, is the same number.
TEST_P(GoldenGradient, TheTrainersLogProbabilitiesAreTheSamplers) {
  const Recorded r(GetParam());
  Training training(GetParam());
  Context ctx(2);
  const int64_t vocab = training.config.vocab_size;
  std::vector<int32_t> drawn;
  std::vector<float> reported;
  auto next = r.tokens.begin();
  for (const int64_t length : r.lengths) {
    const std::vector<int32_t> ids(next, next + length);
    next += length;
    std::vector<float> logits = feed_logits(training.model, ctx, ids, {1}, MlaForm::kExpanded),
                       sums(ids.size());
    log_sum_exp(ctx, {logits.data(), length, vocab, vocab}, sums);
    Sampler sampler({.temperature = 1, .seed = 7, .top_logprobs = 0}, ids);
    for (size_t t = 0; t < ids.size(); ++t) {
      const std::span row =
          std::span(logits).subspan(t * static_cast<size_t>(vocab), static_cast<size_t>(vocab));
      const auto token = sampler.sample(row, static_cast<int64_t>(t) + 1, sums[t]);
      ASSERT_TRUE(token);
      drawn.push_back(token->token);
      reported.push_back(token->logprob);
    }
  }
  LikelihoodObjective seen;
  Objective objective = r.objective;
  objective.mtp_loss_weight = 0;
  objective.tokens = &seen;
  training.look(ctx, {r.tokens, r.lengths, drawn}, objective);
  expect_same_bits(seen.log_probs, reported);
}

TEST_P(GoldenGradient, MicroBatchesAddUpToTheStep) {
  const Recorded r(GetParam());
  Training whole(GetParam()), parts(GetParam());
  Context ctx(2);
  Objective objective = r.objective;
  objective.balance_alpha = {.sequence = 0.01, .device = 0.02, .communication = 0.03};
  const StepLosses expected = whole.run(ctx, r.batch(), objective);
  StepLosses sum;
  sum.expert_tokens.assign(expected.expert_tokens.size(), 0);
  size_t begin = 0;
  for (const int64_t& length : r.lengths) {
    const auto count = static_cast<size_t>(length);
    const TrainBatch part{std::span(r.tokens).subspan(begin, count),
                          {&length, 1},
                          std::span(r.targets).subspan(begin, count)};
    add_gradients(ctx, parts.model, part, objective, &parts.views, sum);
    begin += count;
  }
  EXPECT_EQ(sum.expert_tokens, expected.expert_tokens);
  EXPECT_NEAR(sum.total(objective), expected.total(objective), 1e-12);
  // A sum of up to 96 products is cut in three: each part rounds at most 96 times.
  for (const Parameter& p : whole.table.parameters) {
    double largest = 0, difference = 0;
    for (int64_t i = p.offset; i < p.offset + p.count; ++i) {
      const auto at = static_cast<size_t>(i);
      largest = std::max<double>(largest, std::abs(whole.gradients[at]));
      difference =
          std::max<double>(difference, std::abs(whole.gradients[at] - parts.gradients[at]));
    }
    EXPECT_TRUE(difference <= 96 * reference::kUnit * largest) << p.name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, GoldenGradient,
                         testing::Values("v3", "moonlight", "v2", "v2-lite", "qwen2", "llama3"),
                         kNamedByParameter);

}  // namespace
}  // namespace fathom
