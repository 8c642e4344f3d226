#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>

#include "base/error.h"
#include "base/random.h"

namespace fathom {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double uniform(uint64_t stream, uint64_t i) {
  return random_uniform({.seed = 7, .sequence = stream}, i);
}

std::vector<float> random_logits(int64_t n, uint64_t stream, bool ties) {
  std::vector<float> logits;
  for (int64_t i = 0; i < n; ++i) {
    const double x = 12 * uniform(stream, static_cast<uint64_t>(i)) - 8;
    logits.push_back(static_cast<float>(ties ? std::round(x) : x));
  }
  return logits;
}

float log_sum_exp_of(const std::vector<float>& logits) {
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  return static_cast<float>(std::log(sum));
}

std::optional<SampledToken> sample(Sampler& sampler, std::vector<float> logits,
                                   int64_t position = 0) {
  const auto sampled = sampler.sample(logits, position, log_sum_exp_of(logits));
  if (sampled) sampler.remember(sampled->token);
  return sampled;
}

// The plain twin: normalised probabilities, a full sort, one filter after the other.
struct Twin {
  struct Item {
    int32_t id;
    double logit;
    long double p;
  };
  std::vector<Item> items;  // what the filters leave, normalised, in the order of the draw
  bool doubtful = false;    // a filter decided by less than rounding

  static void normalise(std::vector<Item>& items) {
    long double sum = 0;
    for (const Item& item : items) sum += item.p;
    for (Item& item : items) item.p /= sum;
  }
  bool close(long double a, long double b) { return doubtful |= std::fabs(a - b) < 1e-12L; }

  Twin(const SamplingParams& params, const std::vector<float>& logits,
       const std::vector<int32_t>& prompt, const std::vector<int32_t>& generated) {
    for (size_t i = 0; i < logits.size(); ++i) {
      float x = logits[i];
      const auto id = static_cast<int32_t>(i);
      for (const auto& [biased, bias] : params.logit_bias) {
        if (biased == id) x = static_cast<float>(static_cast<double>(x) + bias);
      }
      const auto count = std::count(generated.begin(), generated.end(), id);
      double y = x;
      if (count > 0 || std::count(prompt.begin(), prompt.end(), id) > 0) {
        y = y < 0 ? y * params.repetition_penalty : y / params.repetition_penalty;
      }
      if (count > 0) y -= params.presence_penalty;
      y -= params.frequency_penalty * static_cast<double>(count);
      items.push_back({id, static_cast<float>(y), 0});
    }
    const auto by_logit = [](const Item& a, const Item& b) { return a.logit > b.logit; };
    if (params.temperature == 0) {
      std::stable_sort(items.begin(), items.end(), by_logit);
      items.resize(1);
      items[0].p = 1;
      return;
    }
    double max = -INFINITY;
    for (const Item& item : items) max = std::max(max, item.logit);
    for (Item& item : items)
      item.p = std::exp(static_cast<long double>(item.logit - max) / params.temperature);
    normalise(items);
    if (params.top_k == 0 && params.top_p == 1 && params.min_p == 0) return;
    std::stable_sort(items.begin(), items.end(), by_logit);
    if (params.top_k > 0 && static_cast<size_t>(params.top_k) < items.size())
      items.resize(static_cast<size_t>(params.top_k));
    normalise(items);
    if (params.top_p < 1) {
      long double sum = 0;
      size_t count = 0;
      do {
        sum += items[count++].p;
        close(sum, params.top_p);
      } while (count < items.size() && sum < params.top_p);
      items.resize(count);
    }
    const long double least = params.min_p * items[0].p;
    std::erase_if(items, [&](const Item& item) {
      if (item.id != items[0].id) close(item.p, least);
      return item.p < least;
    });
    normalise(items);
  }

  int32_t draw(double u) {
    long double sum = 0;
    for (const Item& item : items) {
      sum += item.p;
      if (close(sum, u) || sum > u) return item.id;
    }
    return items.back().id;
  }
};

TEST(Sampler, EqualsThePlainTwinForEveryCombinationOfParameters) {
  int64_t compared = 0, doubtful = 0;
  uint64_t round = 0;
  for (const double temperature : {0.0, 0.3, 1.0, 2.5}) {
    for (const int top_k : {0, 1, 3, 40, 1000}) {
      for (const double top_p : {1.0, 0.95, 0.5, 1e-9, 0.0}) {
        for (const double min_p : {0.0, 0.02, 0.5, 1.0}) {
          for (const double repetition : {1.0, 1.3, 0.8}) {
            for (const double presence : {0.0, 0.7, -1.0}) {
              for (const double frequency : {0.0, 0.4}) {
                ++round;
                const auto n = std::array<int64_t, 5>{1, 2, 17, 100, 257}[round % 5];
                const auto last = static_cast<int32_t>(n - 1);
                SamplingParams params{temperature, top_k, top_p, min_p,     repetition, presence,
                                      frequency,   {},    round, round % 3, -1};
                if (round % 2 == 0) params.logit_bias = {{0, 2.5f}, {last, -100.0f}};
                const std::vector<int32_t> prompt = {0, last / 2, last / 2};
                std::vector<int32_t> generated;
                Sampler sampler(params, prompt);
                for (int64_t position = 3; position < 8; ++position) {
                  std::vector<float> logits = random_logits(
                      n, round * 10 + static_cast<uint64_t>(position), round % 3 == 0);
                  if (n > 2 && round % 4 == 0) logits[1] = -kInf;
                  Twin twin(params, logits, prompt, generated);
                  const int32_t expected = twin.draw(
                      random_uniform({params.seed, RandomPurpose::kSampling, params.choice},
                                     static_cast<uint64_t>(position)));
                  const auto sampled = sample(sampler, logits, position);
                  ASSERT_TRUE(sampled);
                  if (!twin.doubtful) {
                    ASSERT_EQ(sampled->token, expected)
                        << "n " << n << " T " << temperature << " k " << top_k << " p " << top_p
                        << " min_p " << min_p << " rep " << repetition << " presence " << presence
                        << " frequency " << frequency << " position " << position;
                  }
                  ++compared;
                  doubtful += twin.doubtful;
                  generated.push_back(sampled->token);
                }
              }
            }
          }
        }
      }
    }
  }
  EXPECT_EQ(compared, 4 * 5 * 5 * 4 * 3 * 3 * 2 * 5);
  EXPECT_LT(doubtful, compared / 20);  // ties make filters end exactly on a boundary
}

// 12 tokens, 40,000 draws; chi-square against probabilities worked out from the definition alone.
void expect_distribution(const SamplingParams& params, const std::vector<int32_t>& expected_left) {
  const std::vector<float> logits = {0.0f,  1.0f,  -1.0f, 2.0f,  0.5f,  1.5f,
                                     -2.0f, 0.25f, 1.75f, -0.5f, 2.25f, -3.0f};
  std::vector<double> p(logits.size(), 0.0);
  for (const int32_t id : expected_left) {
    p[static_cast<size_t>(id)] = std::exp(logits[static_cast<size_t>(id)] / params.temperature);
  }
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  constexpr int kDraws = 40'000;
  std::vector<int> found(logits.size(), 0);
  Sampler sampler(params, {});
  for (int position = 0; position < kDraws; ++position)
    ++found[static_cast<size_t>(sample(sampler, logits, position)->token)];
  double chi_square = 0;
  for (size_t i = 0; i < p.size(); ++i) {
    if (p[i] == 0) {
      EXPECT_EQ(found[i], 0) << "token " << i << " should have been filtered";
    } else {
      const double expected = p[i] / total * kDraws;
      chi_square += (found[i] - expected) * (found[i] - expected) / expected;
    }
  }
  // Wilson-Hilferty: the 1 - 1e-4 quantile for the degrees of freedom left.
  const double freedom = static_cast<double>(expected_left.size()) - 1;
  const double root = 1 - 2 / (9 * freedom) + 3.72 * std::sqrt(2 / (9 * freedom));
  EXPECT_LT(chi_square, freedom * root * root * root);
}

// Ids by logit: 10 (2.25), 3 (2), 8 (1.75), 5 (1.5), 1 (1), 4 (.5), 7 (.25), 0, 9, 2, 6, 11.
TEST(Sampler, DrawsTheDistributionOfItsFilters) {
  const std::vector<int32_t> all = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
  expect_distribution({.temperature = 1, .seed = 1}, all);
  expect_distribution({.temperature = 0.5, .seed = 2}, all);
  expect_distribution({.temperature = 3, .seed = 3}, all);
  expect_distribution({.temperature = 1, .top_k = 4, .seed = 4}, {10, 3, 8, 5});
  // At temperature 1 the sums of the ordered probabilities are .26, .46, .62, .74, .81, ...
  expect_distribution({.temperature = 1, .top_p = 0.7, .seed = 5}, {10, 3, 8, 5});
  expect_distribution({.temperature = 1, .top_p = 0.6, .seed = 6}, {10, 3, 8});
  // exp(-1) of the largest: logits from 1.25.
  expect_distribution({.temperature = 1, .min_p = std::exp(-1.0), .seed = 7}, {10, 3, 8, 5});
  expect_distribution({.temperature = 2, .min_p = std::exp(-1.0), .seed = 8},
                      {10, 3, 8, 5, 1, 4, 7});
  // Of the four that top_k leaves, the first two hold .62 and three .84.
  expect_distribution({.temperature = 1, .top_k = 4, .top_p = 0.7, .seed = 9}, {10, 3, 8});
  expect_distribution(
      {.temperature = 1, .top_k = 6, .top_p = 0.99, .min_p = std::exp(-0.6), .seed = 10},
      {10, 3, 8});
}

// A vocabulary of real size, where only a beginning is sorted, piece by piece.
TEST(Sampler, EqualsThePlainTwinOnALargeVocabulary) {
  int compared = 0;
  for (const SamplingParams& params :
       {SamplingParams{.temperature = 1}, SamplingParams{.temperature = 1, .top_k = 40},
        SamplingParams{.temperature = 1, .top_k = 3000, .top_p = 0.9},
        SamplingParams{.temperature = 0.6, .top_p = 0.95},
        SamplingParams{.temperature = 3, .top_p = 0.99},
        SamplingParams{.temperature = 1, .min_p = 0.01}}) {
    for (uint64_t round = 0; round < 3; ++round) {
      const std::vector<float> logits = random_logits(50'000, 40 + round, round == 1);
      SamplingParams keyed = params;
      keyed.seed = round;
      Twin twin(keyed, logits, {}, {});
      const int32_t expected = twin.draw(random_uniform({round, RandomPurpose::kSampling, 0}, 9));
      Sampler sampler(keyed, {});
      const auto sampled = sample(sampler, logits, 9);
      ASSERT_TRUE(sampled);
      if (twin.doubtful) continue;
      EXPECT_EQ(sampled->token, expected)
          << "T " << params.temperature << " k " << params.top_k << " p " << params.top_p;
      ++compared;
    }
  }
  EXPECT_GE(compared, 15);
}

TEST(Sampler, GreedyTakesTheLowestIdOfEqualLogits) {
  Sampler sampler({}, {});
  EXPECT_EQ(sample(sampler, {1, 3, 3, 2})->token, 1);
  EXPECT_EQ(sample(sampler, {-kInf, -kInf, -5})->token, 2);
  Sampler one({.temperature = 1, .top_k = 1}, {});
  for (int64_t position = 0; position < 50; ++position)
    EXPECT_EQ(sample(one, {1, 3, 3, 2}, position)->token, 1);
  Sampler two({.temperature = 1, .top_k = 2}, {});
  for (int64_t position = 0; position < 50; ++position)
    EXPECT_LT(sample(two, {3, 3, 3, 3}, position)->token, 2);
}

TEST(Sampler, RefusesLogitsThatAreNoDistribution) {
  for (const SamplingParams& params :
       {SamplingParams{}, SamplingParams{.temperature = 1},
        SamplingParams{.temperature = 1, .top_k = 2},
        SamplingParams{.temperature = 1, .top_p = 0.5, .top_logprobs = 3},
        SamplingParams{.min_p = 0.1, .repetition_penalty = 2, .logit_bias = {{1, 5.0f}}}}) {
    for (const std::vector<float>& bad : {std::vector<float>{1, kNan, 2},
                                          {kNan, 1, 2},
                                          {1, 2, kNan},
                                          {1, kInf, 2},
                                          {1, 2, kInf},
                                          {-kInf, -kInf, -kInf}}) {
      Sampler sampler(params, {});
      EXPECT_FALSE(sample(sampler, bad));
    }
    Sampler sampler(params, {});
    EXPECT_EQ(sample(sampler, {-kInf, -kInf, 3})->token, 2);
  }
}

TEST(Sampler, PenaltiesCountWhatTheirDefinitionSays) {
  // Repetition: prompt and generated alike, positive divided, negative multiplied. Both penalties
  // only for generated.
  Sampler repetition({.repetition_penalty = 2}, std::vector<int32_t>{1});
  EXPECT_EQ(sample(repetition, {1.5f, 2.5f})->token, 0);        // 2.5 / 2 < 1.5
  EXPECT_EQ(sample(repetition, {1.5f, 2.5f})->token, 1);        // both seen now: .75 < 1.25
  EXPECT_EQ(sample(repetition, {-1.5f, -1.6f, -2})->token, 2);  // -3, -3.2, -2
  Sampler presence({.presence_penalty = 1}, std::vector<int32_t>{1, 1});
  EXPECT_EQ(sample(presence, {1.5f, 2})->token, 1);  // the prompt does not count
  EXPECT_EQ(sample(presence, {1.5f, 2})->token, 0);  // 1 < 1.5
  EXPECT_EQ(sample(presence, {1.5f, 2})->token, 1);  // once each
  EXPECT_EQ(sample(presence, {1.5f, 2})->token, 1);  // and only once
  Sampler frequency({.frequency_penalty = 1}, {});
  std::vector<int32_t> tokens;
  for (int i = 0; i < 6; ++i) tokens.push_back(sample(frequency, {2.5f, 0.25f, 1})->token);
  // 2.5, 1.5, 1, .5, .25, 0: each use costs 1
  EXPECT_EQ(tokens, (std::vector<int32_t>{0, 0, 2, 0, 1, 2}));
  Sampler bias({.logit_bias = {{0, 3.0f}, {0, 3.0f}, {1, -100.0f}}}, {});
  EXPECT_EQ(sample(bias, {0, 50, 5})->token, 0);
}

TEST(Sampler, LogprobsAreThoseOfTheModelWhateverTheSampling) {
  const std::vector<float> logits = {0.5f, 2, -1, 2, -kInf, 1.25f};
  const float log_sum_exp = log_sum_exp_of(logits);
  for (const SamplingParams& params :
       {SamplingParams{.top_logprobs = 4},
        SamplingParams{.temperature = 1, .top_k = 2, .seed = 5, .top_logprobs = 4},
        SamplingParams{.temperature = 0.2,
        .repetition_penalty = 3,
        .presence_penalty = 2,
        .logit_bias = {{2, 9.0f}},
        .top_logprobs = 4}}) {
    Sampler sampler(params, std::vector<int32_t>{1, 2, 3});
    for (int64_t position = 0; position < 4; ++position) {
      std::vector<float> scratch = logits;
      const auto sampled = sampler.sample(scratch, position, log_sum_exp);
      ASSERT_TRUE(sampled);
      EXPECT_EQ(std::memcmp(scratch.data(), logits.data(), logits.size() * sizeof(float)), 0);
      EXPECT_EQ(
          sampled->logprob,
          static_cast<float>(static_cast<double>(logits[static_cast<size_t>(sampled->token)]) -
                             log_sum_exp));
      ASSERT_EQ(sampled->top_logprobs.size(), 4u);
      const int32_t order[] = {1, 3, 5, 0};
      for (size_t i = 0; i < 4; ++i) {
        EXPECT_EQ(sampled->top_logprobs[i].token, order[i]);
        EXPECT_EQ(sampled->top_logprobs[i].logprob,
                  static_cast<float>(static_cast<double>(logits[static_cast<size_t>(order[i])]) -
                                     log_sum_exp));
      }
    }
  }
  Sampler all({.top_logprobs = 20}, {});
  EXPECT_EQ(sample(all, logits)->top_logprobs.size(), logits.size());
  Sampler none({.top_logprobs = 0}, {});
  EXPECT_EQ(sample(none, logits)->top_logprobs.size(), 0u);
  EXPECT_EQ(sample(none, logits)->logprob, 2 - log_sum_exp);
}

TEST(Sampler, ADrawDependsOnSeedChoiceAndPositionOnly) {
  const std::vector<float> logits = random_logits(200, 3, false);
  const auto draws = [&](uint64_t seed, uint64_t choice, int64_t from) {
    Sampler sampler({.temperature = 2, .seed = seed, .choice = choice}, {});
    std::vector<int32_t> tokens;
    for (int64_t position = from; position < 40; ++position)
      tokens.push_back(sample(sampler, logits, position)->token);
    return tokens;
  };
  const std::vector<int32_t> tokens = draws(1, 0, 0);
  EXPECT_EQ(draws(1, 0, 0), tokens);
  EXPECT_EQ(draws(1, 0, 20), std::vector<int32_t>(tokens.begin() + 20, tokens.end()));
  EXPECT_NE(draws(2, 0, 0), tokens);
  EXPECT_NE(draws(1, 1, 0), tokens);
}

TEST(Sampler, RefusesParametersOutOfRangeByName) {
  const auto message = [](const SamplingParams& params) -> std::string {
    try {
      validate_sampling(params, 100);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadInput);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.temperature = 100,
                     .top_k = 1 << 30,
                     .top_p = 0,
                     .min_p = 1,
                     .repetition_penalty = 100,
                     .presence_penalty = -2,
                     .frequency_penalty = 2,
                     .logit_bias = {{99, -100.0f}, {0, 100.0f}},
                     .top_logprobs = 20}),
            "");
  EXPECT_EQ(message({.temperature = -1}), "request: temperature: found -1, expected 0 to 100");
  EXPECT_EQ(message({.temperature = NAN}), "request: temperature: found nan, expected 0 to 100");
  EXPECT_EQ(message({.temperature = 100.5}),
            "request: temperature: found 100.5, expected 0 to 100");
  EXPECT_EQ(message({.top_k = -1}), "request: top_k: found -1, expected 0 to 2147483647");
  EXPECT_EQ(message({.top_p = 1.5}), "request: top_p: found 1.5, expected 0 to 1");
  EXPECT_EQ(message({.min_p = -0.5}), "request: min_p: found -0.5, expected 0 to 1");
  EXPECT_EQ(message({.repetition_penalty = 0}),
            "request: repetition_penalty: found 0, expected 0.01 to 100");
  EXPECT_EQ(message({.presence_penalty = 2.5}),
            "request: presence_penalty: found 2.5, expected -2 to 2");
  EXPECT_EQ(message({.frequency_penalty = -INFINITY}),
            "request: frequency_penalty: found -inf, expected -2 to 2");
  EXPECT_EQ(message({.top_logprobs = 21}), "request: top_logprobs: found 21, expected -1 to 20");
  EXPECT_EQ(message({.top_logprobs = -2}), "request: top_logprobs: found -2, expected -1 to 20");
  EXPECT_EQ(message({.logit_bias = {{100, 1.0f}}}),
            "request: logit_bias: found token 100, expected 0 to 99 (vocab_size)");
  EXPECT_EQ(message({.logit_bias = {{-1, 1.0f}}}),
            "request: logit_bias: found token -1, expected 0 to 99 (vocab_size)");
  EXPECT_EQ(message({.logit_bias = {{5, kNan}}}),
            "request: logit_bias: found nan, expected -100 to 100");
}

}  // namespace
}  // namespace fathom
