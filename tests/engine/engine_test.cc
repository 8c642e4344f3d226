#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "kernels/softmax.h"
#include "tests/base/test_name.h"
#include "tests/engine/failing_allocations.h"
#include "tests/engine/poisoned_model.h"
#include "tests/engine/traces.h"

namespace fathom {
namespace {

class EveryModel : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Tiny, EveryModel, testing::ValuesIn(kTinyModels), kNamedByParameter);

// One busy trace; engine_traces_test.cc has the rest.
TEST_P(EveryModel, NeighboursAndChunksChangeNoBit) {
  const Model model = load_tiny(GetParam());
  Context ctx(1), shared_ctx(2);
  std::vector<Guest> guests;
  std::vector<Outcome> solo;
  for (uint64_t g = 0; g < 8; ++g) {
    guests.push_back({some_request(300 + g), static_cast<int64_t>(2 * g), g % 3 == 1 ? 20 : -1});
    solo.push_back(run_alone(model, ctx, {kContext}, guests.back().request));
  }
  Engine engine(model, shared_ctx, {kContext, 3 * kContext, 37, 5});
  expect_solo_results(guests, run_trace(engine, guests), solo);
}

// Positions one by one through the cache, against all of them in one batch.
TEST_P(EveryModel, GreedyIsTheArgmaxOfOneForwardPassOverEverything) {
  const Model model = load_tiny(GetParam());
  const int64_t vocab_size = model.config().vocab_size;
  for (const Isa isa : instruction_sets()) {
    Context ctx(2, isa);
    Request request;
    request.prompt = some_tokens(77, 70);
    request.max_tokens = 30;
    request.sampling.top_logprobs = 0;
    const Outcome outcome = run_alone(model, ctx, {kContext, 0, 16}, request);
    ASSERT_EQ(outcome.tokens.size(), 30u);
    EXPECT_EQ(outcome.finish, FinishReason::kLength);

    std::vector<int32_t> tokens = request.prompt;
    tokens.insert(tokens.end(), outcome.tokens.begin(), outcome.tokens.end() - 1);
    std::vector<int32_t> wanted(30);
    std::iota(wanted.begin(), wanted.end(), 69);
    KvCache cache(model, DType::kF32, std::ssize(tokens));
    std::vector<int64_t> block_rows;
    ASSERT_TRUE(cache.reserve(block_rows, std::ssize(tokens)));
    const SequenceRows rows{std::ssize(tokens), 0, block_rows};
    std::vector<float> memory(static_cast<size_t>(30 * vocab_size)), log_sum(30);
    const Rows logits{memory.data(), 30, vocab_size, vocab_size};
    model.forward_infer(ctx, {tokens, {&rows, 1}, wanted, &cache.view(), MlaForm::kAbsorbed},
                        logits);
    log_sum_exp(ctx, logits, log_sum);
    for (size_t i = 0; i < 30; ++i) {
      const float* row = logits.row(static_cast<int64_t>(i));
      const auto best = static_cast<int32_t>(std::max_element(row, row + vocab_size) - row);
      EXPECT_EQ(outcome.tokens[i], best) << i;
      const auto logprob = static_cast<float>(static_cast<double>(row[best]) - log_sum[i]);
      EXPECT_EQ(outcome.logprob_bits[i], std::bit_cast<uint32_t>(logprob)) << i;
    }
  }
}

TEST_P(EveryModel, ASeededSampleIsReproducible) {
  const Model model = load_tiny(GetParam());
  Context ctx(2);
  Request request{some_tokens(5, 40), 40, {}, {.temperature = 1, .seed = 3, .top_logprobs = 0}};
  const Outcome first = run_alone(model, ctx, {kContext}, request);
  EXPECT_EQ(run_alone(model, ctx, {kContext}, request), first);
  request.sampling.choice = 1;
  EXPECT_NE(run_alone(model, ctx, {kContext}, request).tokens, first.tokens);
  request.sampling = {.temperature = 1, .seed = 4, .top_logprobs = 0};
  EXPECT_NE(run_alone(model, ctx, {kContext}, request).tokens, first.tokens);
}

TEST(Engine, EndsWithTheStopTokenOrAtTheLength) {
  const Model model = load_tiny("v2");
  Context ctx(1);
  Request request{some_tokens(1, 10), 20, {}, {}};
  const Outcome whole = run_alone(model, ctx, {kContext}, request);
  EXPECT_EQ(whole.finish, FinishReason::kLength);
  ASSERT_EQ(whole.tokens.size(), 20u);
  const int32_t stop = whole.tokens[6];
  request.stop_ids = {255, stop};
  const Outcome stopped = run_alone(model, ctx, {kContext}, request);
  EXPECT_EQ(stopped.finish, FinishReason::kStop);
  EXPECT_EQ(stopped.tokens.back(), stop);
  EXPECT_EQ(std::count(stopped.tokens.begin(), stopped.tokens.end(), stop), 1);
  EXPECT_TRUE(is_beginning(stopped, whole));
  request.max_tokens = std::ssize(stopped.tokens);
  EXPECT_EQ(run_alone(model, ctx, {kContext}, request).finish,
            FinishReason::kStop);  // both at once: it did stop by itself
}

TEST(Engine, ARequestMayFillTheContextToTheLastToken) {
  const Model model = load_tiny("llama3");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 65});
  const Outcome outcome = run_alone(engine, {some_tokens(1, 33), 32, {}, {}});
  EXPECT_EQ(outcome.tokens.size(), 32u);
  EXPECT_EQ(run_alone(engine, {some_tokens(2, 64), 1, {}, {}}).tokens.size(), 1u);
  // The last token needs no row: 64 rows, one block of the two.
  engine.submit({some_tokens(3, 33), 32, {}, {}});
  std::vector<TokenEvent> events;
  engine.step(events);
  EXPECT_EQ(engine.cache().pool().available(), 1);
}

TEST(Engine, RefusesImpossibleRequestsWithBothNumbers) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 100});
  const auto message = [&](const Request& request) -> std::string {
    try {
      engine.submit(request);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ExitCode::kBadInput);
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message({{}, 5, {}, {}}), "request: prompt: found no token, expected at least 1");
  EXPECT_EQ(message({{3, 256}, 5, {}, {}}),
            "request: prompt: found token 256, expected 0 to 255 (vocab_size)");
  EXPECT_EQ(message({{-1}, 5, {}, {}}),
            "request: prompt: found token -1, expected 0 to 255 (vocab_size)");
  EXPECT_EQ(message({{1}, 5, {256}, {}}),
            "request: stop_ids: found token 256, expected 0 to 255 (vocab_size)");
  EXPECT_EQ(message({{1}, 0, {}, {}}), "request: max_tokens: found 0, expected at least 1");
  const std::string too_long =
      "request: prompt of {} tokens + max_tokens {}: expected at most 100 together (the context)";
  EXPECT_EQ(message({some_tokens(1, 60), 41, {}, {}}), fmt::format(fmt::runtime(too_long), 60, 41));
  EXPECT_EQ(message({some_tokens(1, 60), INT64_MAX, {}, {}}),
            fmt::format(fmt::runtime(too_long), 60, INT64_MAX));
  EXPECT_EQ(message({some_tokens(1, 101), 1, {}, {}}), fmt::format(fmt::runtime(too_long), 101, 1));
  EXPECT_EQ(message({{1}, 5, {}, {.temperature = -1}}),
            "request: temperature: found -1, expected 0 to 100");
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(message({some_tokens(1, 60), 40, {}, {}}), "");
  EXPECT_FALSE(engine.idle());
}

TEST(Engine, RefusesOptionsOutOfRange) {
  const Model model = load_tiny("v3-fp8");  // max_position_embeddings 512
  Context ctx(1);
  const auto message = [&](const EngineOptions& options) -> std::string {
    try {
      Engine engine(model, ctx, options);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message({}), "");
  EXPECT_EQ(message({.context_tokens = 513}),
            "engine: context_tokens: found 513, expected 1 to 512 (max_position_embeddings)");
  EXPECT_EQ(message({.context_tokens = -1}),
            "engine: context_tokens: found -1, expected 1 to 512 (max_position_embeddings)");
  EXPECT_EQ(
      message({.context_tokens = 100, .cache_tokens = 99}),
      fmt::format("engine: cache_tokens: found 99, expected 100 to {} (at least context_tokens)",
                  INT64_MAX));
  EXPECT_EQ(message({.prefill_chunk = 0}),
            fmt::format("engine: prefill_chunk: found 0, expected 1 to {}", INT32_MAX));
  for (const int64_t wrong : {-1, 511}) {
    EXPECT_EQ(message({.long_chunk = wrong}),
              fmt::format("engine: long_chunk: found {}, expected 512 to {} (at least "
                          "prefill_chunk)",
                          wrong, INT64_MAX));
  }
  EXPECT_EQ(message({.max_sequences = 0}),
            fmt::format("engine: max_sequences: found 0, expected 1 to {}", INT32_MAX));
  for (const int64_t found : {int64_t{-1}, int64_t{1} << 31})
    EXPECT_EQ(message({.expand_by = found}),
              fmt::format("engine: expand_by: found {}, expected 0 to {} (0 = strict mode)", found,
                          INT32_MAX));
  EXPECT_EQ(message({.cache_dtype = DType::kF16}),
            "cache: type: found F16, expected F32, BF16 or I8");
  const Engine engine(model, ctx, {});
  EXPECT_EQ(engine.options().context_tokens, 512);
  EXPECT_EQ(engine.options().cache_tokens, 512);
  EXPECT_EQ(default_cache_dtype(model), DType::kBF16);
  EXPECT_EQ(default_cache_dtype(load_tiny("v3")), DType::kF32);
}

TEST(Engine, TheFirstToComeIsTheFirstToStart) {
  const Model model = load_tiny("v2-lite");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 256, .cache_tokens = 320});
  const uint64_t first = engine.submit({some_tokens(1, 100), 5, {}, {}});  // two blocks
  // four: must wait for the first
  const uint64_t large = engine.submit({some_tokens(2, 250), 3, {}, {}});
  // one: would fit, but came later
  const uint64_t small = engine.submit({some_tokens(3, 4), 3, {}, {}});
  std::vector<TokenEvent> events;
  while (engine.step(events)) {
  }
  std::vector<uint64_t> order;
  for (const TokenEvent& event : events) {
    if (std::find(order.begin(), order.end(), event.request) == order.end())
      order.push_back(event.request);
  }
  EXPECT_EQ(order, (std::vector<uint64_t>{first, large, small}));
  EXPECT_EQ(events.size(), 11u);
}

TEST(Engine, ALongPromptDoesNotHoldUpRunningAnswers) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 256, .cache_tokens = 512, .prefill_chunk = 10});
  const uint64_t running = engine.submit({some_tokens(1, 10), 50, {}, {}});
  std::vector<TokenEvent> events;
  ASSERT_TRUE(engine.step(events));
  ASSERT_EQ(events.size(), 1u);
  const uint64_t late = engine.submit({some_tokens(2, 95), 5, {}, {}});
  for (int step = 0; step < 9; ++step) {  // 95 tokens in ten chunks; the ninth leaves five
    events.clear();
    ASSERT_TRUE(engine.step(events));
    ASSERT_EQ(events.size(), 1u) << step;
    EXPECT_EQ(events[0].request, running);
  }
  events.clear();
  ASSERT_TRUE(engine.step(events));
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[0].request, running);
  EXPECT_EQ(events[1].request, late);
  // with the decode rows of the mixed steps
  EXPECT_EQ(engine.stats().prefill_tokens, 10 + 95 + 10);
  EXPECT_EQ(engine.stats().decode_tokens, 0);
  ASSERT_TRUE(engine.step(events));
  EXPECT_EQ(engine.stats().decode_tokens, 2);
}

TEST(Engine, CancelEndsAWaitingAPrefillingAndADecodingRequestAtTheNextStep) {
  const Model model = load_tiny("moonlight");
  Context ctx(1);
  Engine engine(
      model, ctx,
      {.context_tokens = 256, .cache_tokens = 512, .prefill_chunk = 20, .max_sequences = 2});
  std::vector<TokenEvent> events;
  EXPECT_FALSE(engine.step(events));
  const uint64_t decoding = engine.submit({some_tokens(1, 20), 50, {}, {}});
  const uint64_t prefilling = engine.submit({some_tokens(2, 200), 50, {}, {}});
  const uint64_t waiting = engine.submit({some_tokens(3, 5), 50, {}, {}});
  ASSERT_TRUE(engine.step(events));
  ASSERT_TRUE(engine.step(events));
  ASSERT_EQ(events.size(), 2u);
  for (const uint64_t id : {waiting, prefilling, decoding, uint64_t{999}}) engine.cancel(id);
  events.clear();
  EXPECT_TRUE(engine.step(events));
  ASSERT_EQ(events.size(), 3u);
  const uint64_t order[] = {decoding, prefilling, waiting};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(events[i].request, order[i]);
    EXPECT_EQ(events[i].token, -1);
    EXPECT_EQ(events[i].finish, FinishReason::kCancelled);
  }
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.cache().pool().in_use(), 0);
  EXPECT_FALSE(engine.step(events));
}

// Wherever a request is when it is cancelled, what it got is the beginning of its answer, and the
// others do not notice.
TEST(Engine, ACancelAtAnyStepChangesNoOtherAnswer) {
  for (const char* name : {"v2", "llama3"}) {
    const Model model = load_tiny(name);
    Context ctx(1);
    std::vector<Guest> guests;
    std::vector<Outcome> solo;
    for (uint64_t g = 0; g < 3; ++g) {
      Request request = some_request(600 + g);
      request.prompt = some_tokens(g / 2, 70 + static_cast<int64_t>(g));  // two begin alike
      guests.push_back({request, static_cast<int64_t>(g)});
      solo.push_back(run_alone(model, ctx, {kContext, 0, 512, 1}, request));
    }
    for (int64_t step = 0; step < 40; ++step) {
      std::vector<Guest> some = guests;
      some[static_cast<size_t>(step) % 3].cancel = std::max(step, some[step % 3].arrival);
      Engine engine(model, ctx, {kContext, kContext, 13, 3});
      expect_solo_results(some, run_trace(engine, some), solo);
    }
  }
}

// Three answers that need nine blocks in a cache of five.
TEST(Engine, WithoutRoomTheYoungestGivesWayAndNoTextChanges) {
  for (const char* name : {"v3", "qwen2"}) {
    const Model model = load_tiny(name);
    Context ctx(2);
    for (const bool prefix_cache : {true, false}) {
      for (const int64_t chunk : {7, 512}) {
        std::vector<Guest> guests;
        std::vector<Outcome> solo;
        for (uint64_t g = 0; g < 3; ++g) {
          guests.push_back({{some_tokens(g, 50),
                             100,
                             {},
                             {.temperature = 1,
                              .repetition_penalty = 1.3,
                              .frequency_penalty = 0.3,
                              .seed = g,
                              .top_logprobs = 1},
                             {}}});
          solo.push_back(run_alone(model, ctx, {.context_tokens = 256}, guests.back().request));
        }
        Engine engine(model, ctx,
                      {.context_tokens = 256,
                       .cache_tokens = 320,
                       .prefill_chunk = chunk,
                       .max_sequences = 3,
                       .prefix_cache = prefix_cache});
        expect_solo_results(guests, run_trace(engine, guests), solo);
        EXPECT_GT(engine.stats().preemptions, 0);
      }
    }
  }
}

// While nobody decodes; and only the oldest, for the others wait for it anyway.
TEST(Engine, TheOldestPromptTakesLongChunks) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  Engine engine(model, ctx,
                {.context_tokens = 256,
                 .cache_tokens = 1024,
                 .prefill_chunk = 20,
                 .prefix_cache = false,
                 .long_chunk = 70});
  engine.submit({some_tokens(1, 200), 50, {}, {}});
  engine.submit({some_tokens(2, 100), 50, {}, {}});
  std::vector<TokenEvent> events;
  int64_t before = 0;
  // the last three beside the first request's answer
  for (const int64_t rows : {70, 70, 60, 21, 21, 21}) {
    ASSERT_TRUE(engine.step(events));
    EXPECT_EQ(engine.stats().prefill_tokens - before, rows);
    before = engine.stats().prefill_tokens;
  }
}

// A prompt is watched layer by layer, and given up within a step as if it had never begun.
TEST_P(EveryModel, AStepCanBeWatchedAndGivenUp) {
  const Model model = load_tiny(GetParam());
  Context ctx(2);
  const Request request{some_tokens(1, 90), 20, {}, some_sampling(1)};
  const Outcome solo = run_alone(model, ctx, {.context_tokens = kContext}, request);
  Engine engine(model, ctx, {.context_tokens = kContext, .prefill_chunk = 40, .long_chunk = 50});
  engine.submit(request);
  Outcome outcome;
  std::vector<TokenEvent> events;
  int64_t given_up = 0;
  for (int64_t step = 0; !engine.idle(); ++step) {
    const int64_t before = engine.stats().prefill_tokens;
    int64_t watched = 0;
    const auto watcher = [&](int64_t rows) {
      EXPECT_GT(rows, watched);
      watched = rows;
      if (step % 2 == 0) throw ++given_up;
    };
    events.clear();
    try {
      engine.step(events, watcher);
      const int64_t rows = engine.stats().prefill_tokens - before;
      EXPECT_TRUE(rows == 0 ? watched == 0 : watched > rows / 3 && watched <= rows) << watched;
    } catch (int64_t) {
      EXPECT_TRUE(events.empty());
      EXPECT_EQ(engine.stats().prefill_tokens, before);
    }
    engine.check();
    for (const TokenEvent& event : events) add(outcome, event);
  }
  EXPECT_EQ(given_up, 2);  // of 50 and of 40 rows
  EXPECT_EQ(outcome, solo);
}

// There would be room for its prompt, but not for what the two would soon need.
TEST(Engine, ARequestThatWouldSoonHaveToGiveWayDoesNotStart) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 256, .cache_tokens = 256});
  engine.submit({some_tokens(1, 60), 100, {}, {}, {}});  // one block now, three in the end
  engine.submit({some_tokens(2, 100), 50, {}, {}, {}});  // two now, three in the end
  std::vector<TokenEvent> events;
  while (engine.step(events)) {
  }
  EXPECT_EQ(events.size(), 150u);
  EXPECT_EQ(engine.stats().preemptions, 0);
}

// It never gives way, and no prompt holds it up: one token in each step.
TEST(Engine, TheOldestRequestGoesOnInEveryStep) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 256, .cache_tokens = 256, .prefill_chunk = 20});
  const uint64_t oldest = engine.submit({some_tokens(1, 20), 200, {}, {}, {}});
  for (uint64_t i = 0; i < 6; ++i)
    engine.submit({some_tokens(2 + i, 20 + 10 * static_cast<int64_t>(i)), 150, {}, {}, {}});
  std::vector<TokenEvent> events;
  for (int step = 0; step < 200; ++step) {
    events.clear();
    ASSERT_TRUE(engine.step(events));
    ASSERT_EQ(events.at(0).request, oldest) << step;
    engine.check();
  }
  EXPECT_EQ(events[0].finish, FinishReason::kLength);
  EXPECT_GT(engine.stats().preemptions, 0);
}

// Every allocation of every step fails once; the next try goes on as if nothing had been.
TEST(Engine, AStepThatThrowsLosesRepeatsAndChangesNothing) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  std::vector<Request> requests;
  std::vector<Outcome> solo;
  for (uint64_t g = 0; g < 4; ++g) {
    requests.push_back({some_tokens(g / 2, 60 + 8 * static_cast<int64_t>(g)),
                        120,
                        {},
                        {.temperature = 1, .frequency_penalty = 0.5, .seed = g, .top_logprobs = 1},
                        {}});
    solo.push_back(run_alone(model, ctx, {.context_tokens = 256}, requests.back()));
  }
  Context fresh(1);
  Engine engine(model, fresh, {.context_tokens = 256, .cache_tokens = 320, .prefill_chunk = 50});
  expect_solo_results_despite_failures(engine, requests, solo);
  EXPECT_GT(engine.stats().preemptions, 0);
}

TEST_P(EveryModel, DecodingAllocatesNothing) {
  const Model model = load_tiny(GetParam());
  // a second thread may meet its first item, and allocate its scratch, at any later step
  Context ctx(1);
  for (const int64_t expand_by : {0, 32}) {  // strict and fast mode
    Engine engine(
        model, ctx,
        {.context_tokens = kContext, .cache_tokens = 3 * kContext, .expand_by = expand_by});
    for (uint64_t i = 0; i < 3; ++i) {
      engine.submit({some_tokens(i, 70), 100, {}, some_sampling(i), {}});
    }
    std::vector<TokenEvent> events;
    events.reserve(1000);
    for (int step = 0; step < 20; ++step) engine.step(events);
    const int64_t before = allocations;
    // Every sequence fills a block, makes it known and takes the next one.
    for (int step = 0; step < 70; ++step) engine.step(events);
    EXPECT_EQ(allocations, before);
    EXPECT_EQ(events.size(), 270u);
  }
}

TEST(Engine, ANumericalErrorEndsItsOwnRequestAlone) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(),
                  kInf = std::numeric_limits<float>::infinity();
  for (const auto& [name, value] : {std::pair{"v3", kNan}, {"v2", kInf}, {"qwen2", kNan}}) {
    const PoisonedModel poisoned(name, value);
    const Model model = poisoned.load();
    for (const Isa isa : instruction_sets()) {
      Context ctx(1, isa);
      for (const MlaForm form : {MlaForm::kAbsorbed, MlaForm::kExpanded}) {
        std::vector<Guest> guests;
        std::vector<Outcome> solo;
        for (uint64_t g = 0; g < 7; ++g) {
          guests.push_back({some_request(900 + g), static_cast<int64_t>(g)});
          solo.push_back(run_alone(model, ctx, {.context_tokens = kContext, .form = form},
                                   guests.back().request));
          EXPECT_NE(solo.back().finish, FinishReason::kNumericalError);
        }
        guests[2].request.prompt.push_back(250);
        guests[4].request.prompt.insert(guests[4].request.prompt.begin(), 250);
        for (const size_t bad : {2, 4}) solo[bad] = {{}, {}, {}, FinishReason::kNumericalError};
        // Two requests' worth of blocks: those that held NaN are used again.
        Engine engine(model, ctx,
                      {.context_tokens = kContext,
                       .cache_tokens = 2 * kContext,
                       .prefill_chunk = 50,
                       .max_sequences = 3,
                       .form = form});
        expect_solo_results(guests, run_trace(engine, guests), solo);
      }
    }
  }
}

}  // namespace
}  // namespace fathom
