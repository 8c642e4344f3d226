// The engine against solo runs: whatever else is going on, a request's tokens and log-probabilities are the same bits.
#include "engine/engine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <map>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "formats/safetensors.h"
#include "kernels/softmax.h"
#include "tests/engine/tiny_model.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

uint64_t random_below(uint64_t stream, uint64_t i, uint64_t n) { return random_bits({.seed = 11, .sequence = stream}, i) % n; }

std::vector<Isa> instruction_sets() {
  std::vector<Isa> sets;
  for (Isa isa : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= detect_isa()) sets.push_back(isa);
  }
  return sets;
}

// All that came out for one request.
struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<uint32_t> logprob_bits;  // of each token, then of its alternatives
  std::vector<int32_t> alternatives;
  FinishReason finish = FinishReason::kNone;
  bool operator==(const Outcome&) const = default;
};

void add(Outcome& outcome, const TokenEvent& event) {
  ASSERT_EQ(outcome.finish, FinishReason::kNone) << "an event after the last";
  outcome.finish = event.finish;
  if (event.token < 0) {
    ASSERT_TRUE(event.finish == FinishReason::kCancelled || event.finish == FinishReason::kNumericalError);
    return;
  }
  outcome.tokens.push_back(event.token);
  outcome.logprob_bits.push_back(std::bit_cast<uint32_t>(event.logprob));
  for (const TokenLogprob& top : event.top_logprobs) {
    outcome.alternatives.push_back(top.token);
    outcome.logprob_bits.push_back(std::bit_cast<uint32_t>(top.logprob));
  }
}

bool is_beginning(const Outcome& part, const Outcome& whole) {
  return part.tokens.size() <= whole.tokens.size() && std::equal(part.tokens.begin(), part.tokens.end(), whole.tokens.begin()) &&
         std::equal(part.logprob_bits.begin(), part.logprob_bits.end(), whole.logprob_bits.begin());
}

std::vector<int32_t> some_tokens(uint64_t stream, int64_t count) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(2 + random_below(stream, static_cast<uint64_t>(i), 200)));
  return ids;
}

// A request of any shape: one token or several key blocks, greedy or sampled, with and without penalties and log-probabilities.
Request some_request(uint64_t i) {
  const auto pick = [&](uint64_t what, uint64_t n) { return random_below(1000 + what, i, n); };
  Request request;
  const uint64_t longest[] = {4, 30, 90, 290};
  request.prompt = some_tokens(i, static_cast<int64_t>(1 + pick(0, longest[pick(1, 4)])));
  request.max_tokens = static_cast<int64_t>(1 + pick(2, 24));
  request.sampling.seed = i;
  if (pick(3, 3) > 0) request.sampling.temperature = 1;
  if (pick(4, 3) == 0) request.sampling.top_k = 20;
  if (pick(5, 3) == 0) request.sampling.top_p = 0.9;
  if (pick(6, 4) == 0) request.sampling.repetition_penalty = 1.2;
  if (pick(7, 4) == 0) request.sampling.frequency_penalty = 0.5;
  request.sampling.top_logprobs = static_cast<int>(pick(8, 4)) - 1;
  if (pick(9, 3) == 0) request.stop_ids = some_tokens(5000 + i, 20);
  return request;
}

constexpr int64_t kContext = 320;  // room for any of them

Outcome run_alone(Engine& engine, const Request& request) {
  Outcome outcome;
  engine.submit(request);
  std::vector<TokenEvent> events;
  while (engine.step(events)) {}
  for (const TokenEvent& event : events) add(outcome, event);
  EXPECT_NE(outcome.finish, FinishReason::kNone);
  return outcome;
}

Outcome run_alone(const Model& model, Context& ctx, EngineOptions options, const Request& request) {
  Engine engine(model, ctx, options);
  return run_alone(engine, request);
}

// One guest of a trace: comes before step `arrival`, is cancelled before step `cancel` unless it has finished.
struct Guest {
  Request request;
  int64_t arrival = 0;
  int64_t cancel = -1;
};

std::vector<Outcome> run_trace(Engine& engine, const std::vector<Guest>& guests) {
  std::vector<Outcome> outcomes(guests.size());
  std::map<uint64_t, size_t> guest_of;
  std::vector<TokenEvent> events;
  int64_t step = 0;
  const auto arrived = [&] { return guest_of.size() == guests.size(); };
  for (bool busy = true; busy || !arrived(); ++step) {
    if (step > 20'000) {
      ADD_FAILURE() << "the engine does not come to an end";
      break;
    }
    for (size_t g = 0; g < guests.size(); ++g) {
      if (guests[g].arrival == step) guest_of[engine.submit(guests[g].request)] = g;
    }
    for (const auto& [id, g] : guest_of) {
      if (guests[g].cancel == step) engine.cancel(id);
    }
    events.clear();
    busy = engine.step(events);
    EXPECT_EQ(engine.idle(), !busy || engine.idle());
    for (const TokenEvent& event : events) add(outcomes[guest_of.at(event.request)], event);
  }
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.cache().free_blocks(), engine.cache().total_blocks()) << "a block was lost";
  return outcomes;
}

void expect_solo_results(const std::vector<Guest>& guests, const std::vector<Outcome>& found, const std::vector<Outcome>& solo) {
  for (size_t g = 0; g < guests.size(); ++g) {
    if (found[g].finish == FinishReason::kCancelled) {
      EXPECT_GE(guests[g].cancel, 0);
      EXPECT_TRUE(is_beginning(found[g], solo[g])) << "guest " << g;
    } else {
      EXPECT_EQ(found[g], solo[g]) << "guest " << g << ", prompt of " << guests[g].request.prompt.size();
    }
  }
}

class EveryModel : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Tiny, EveryModel, testing::ValuesIn(kTinyModels), [](const auto& test) {
  std::string name = test.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

// Eight requests, each compared with itself alone, for each instruction set, prefill chunk, thread count, form and cache type.
TEST_P(EveryModel, NeighboursChunksAndThreadsChangeNoBit) {
  const Model model = load_tiny(GetParam());
  for (const Isa isa : instruction_sets()) {
    std::vector<std::unique_ptr<Context>> contexts;
    for (int threads = 1; threads <= 3; ++threads) contexts.push_back(std::make_unique<Context>(threads, isa));
    uint64_t round = 0;
    for (const MlaForm form : {MlaForm::kAbsorbed, MlaForm::kExpanded}) {
      if (form == MlaForm::kExpanded && !model.config().is_mla()) continue;
      for (const DType cache_dtype : {DType::kF32, DType::kBF16}) {
        const EngineOptions options{kContext, 0, 512, 1, cache_dtype, form};
        std::vector<Guest> guests;
        std::vector<Outcome> solo;
        for (uint64_t g = 0; g < 8; ++g) {
          guests.push_back({some_request(100 * round + g)});
          solo.push_back(run_alone(model, *contexts[0], options, guests.back().request));
        }
        for (const int64_t chunk : {1, 3, 7, 64, 512}) {
          EngineOptions shared = options;
          shared.prefill_chunk = chunk;
          shared.max_sequences = 8;
          shared.cache_tokens = 8 * (kContext + 64);
          for (Guest& guest : guests) {
            guest.arrival = static_cast<int64_t>(random_below(1, ++round, 12));
            guest.cancel = random_below(2, round, 4) == 0 ? guest.arrival + static_cast<int64_t>(random_below(3, round, 20)) : -1;
          }
          Engine engine(model, *contexts[round / 8 % 3], shared);
          expect_solo_results(guests, run_trace(engine, guests), solo);
          ++round;
        }
      }
    }
  }
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
    model.forward_infer(ctx, {tokens, {&rows, 1}, wanted, &cache.view(), MlaForm::kAbsorbed}, logits);
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

// Engines with little room: few places, few blocks, so that requests wait, and blocks go from hand to hand with what they held.
TEST(Engine, RandomTracesGiveSoloResultsAndLoseNoBlock) {
  for (const char* name : {"v3", "qwen2"}) {
    const Model model = load_tiny(name);
    Context one(1), two(2);
    std::vector<Request> requests;
    std::vector<Outcome> solo;
    Engine alone(model, one, {kContext});
    for (uint64_t i = 0; i < 40; ++i) {
      requests.push_back(some_request(7000 + i));
      solo.push_back(run_alone(alone, requests.back()));
    }
    for (uint64_t trace = 0; trace < 150; ++trace) {
      const auto pick = [&](uint64_t what, uint64_t n) { return random_below(20 + what, trace, n); };
      const EngineOptions options{kContext, static_cast<int64_t>(kContext + pick(0, 600)), static_cast<int64_t>(1 + pick(1, 100)),
                                  static_cast<int64_t>(1 + pick(2, 6))};
      std::vector<Guest> guests;
      std::vector<Outcome> expected;
      for (uint64_t g = 0; g < 1 + pick(3, 10); ++g) {
        const uint64_t i = random_below(30 + g, trace, requests.size());
        const auto arrival = static_cast<int64_t>(random_below(50 + g, trace, 40));
        const bool cancelled = random_below(70 + g, trace, 3) == 0;
        guests.push_back({requests[i], arrival, cancelled ? arrival + static_cast<int64_t>(random_below(90 + g, trace, 30)) : -1});
        expected.push_back(solo[i]);
      }
      Engine engine(model, trace % 2 == 0 ? one : two, options);
      expect_solo_results(guests, run_trace(engine, guests), expected);
      if (HasFailure()) FAIL() << name << ", trace " << trace;
    }
  }
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
  EXPECT_EQ(run_alone(model, ctx, {kContext}, request).finish, FinishReason::kStop);  // both at once: it did stop by itself
}

TEST(Engine, ARequestMayFillTheContextToTheLastToken) {
  const Model model = load_tiny("llama3");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 65});
  const Outcome outcome = run_alone(engine, {some_tokens(1, 33), 32, {}, {}});
  EXPECT_EQ(outcome.tokens.size(), 32u);
  EXPECT_EQ(run_alone(engine, {some_tokens(2, 64), 1, {}, {}}).tokens.size(), 1u);
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
  EXPECT_EQ(message({{3, 256}, 5, {}, {}}), "request: prompt: found token 256, expected 0 to 255 (vocab_size)");
  EXPECT_EQ(message({{-1}, 5, {}, {}}), "request: prompt: found token -1, expected 0 to 255 (vocab_size)");
  EXPECT_EQ(message({{1}, 5, {256}, {}}), "request: stop_ids: found token 256, expected 0 to 255 (vocab_size)");
  EXPECT_EQ(message({{1}, 0, {}, {}}), "request: max_tokens: found 0, expected at least 1");
  const std::string too_long = "request: prompt of {} tokens + max_tokens {}: expected at most 100 together (the context)";
  EXPECT_EQ(message({some_tokens(1, 60), 41, {}, {}}), fmt::format(fmt::runtime(too_long), 60, 41));
  EXPECT_EQ(message({some_tokens(1, 60), INT64_MAX, {}, {}}), fmt::format(fmt::runtime(too_long), 60, INT64_MAX));
  EXPECT_EQ(message({some_tokens(1, 101), 1, {}, {}}), fmt::format(fmt::runtime(too_long), 101, 1));
  EXPECT_EQ(message({{1}, 5, {}, {.temperature = -1}}), "request: temperature: found -1, expected 0 to 100");
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
  EXPECT_EQ(message({.context_tokens = 513}), "engine: context_tokens: found 513, expected 1 to 512 (max_position_embeddings)");
  EXPECT_EQ(message({.context_tokens = -1}), "engine: context_tokens: found -1, expected 1 to 512 (max_position_embeddings)");
  EXPECT_EQ(message({.context_tokens = 100, .cache_tokens = 99}),
            fmt::format("engine: cache_tokens: found 99, expected 100 to {} (at least context_tokens)", INT64_MAX));
  EXPECT_EQ(message({.prefill_chunk = 0}), fmt::format("engine: prefill_chunk: found 0, expected 1 to {}", INT32_MAX));
  EXPECT_EQ(message({.max_sequences = 0}), fmt::format("engine: max_sequences: found 0, expected 1 to {}", INT32_MAX));
  EXPECT_EQ(message({.cache_dtype = DType::kF16}), "engine: cache_dtype: found F16, expected F32 or BF16");
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
  const uint64_t first = engine.submit({some_tokens(1, 100), 5, {}, {}});   // two blocks
  const uint64_t large = engine.submit({some_tokens(2, 250), 3, {}, {}});   // four: must wait for the first
  const uint64_t small = engine.submit({some_tokens(3, 4), 3, {}, {}});     // one: would fit, but came later
  std::vector<TokenEvent> events;
  while (engine.step(events)) {}
  std::vector<uint64_t> order;
  for (const TokenEvent& event : events) {
    if (std::find(order.begin(), order.end(), event.request) == order.end()) order.push_back(event.request);
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
  EXPECT_EQ(engine.stats().prefill_tokens, 10 + 95 + 10);  // with the decode rows of the mixed steps
  EXPECT_EQ(engine.stats().decode_tokens, 0);
  ASSERT_TRUE(engine.step(events));
  EXPECT_EQ(engine.stats().decode_tokens, 2);
}

TEST(Engine, CancelEndsAWaitingAPrefillingAndADecodingRequestAtTheNextStep) {
  const Model model = load_tiny("moonlight");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 256, .cache_tokens = 512, .prefill_chunk = 20, .max_sequences = 2});
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
  EXPECT_EQ(engine.cache().free_blocks(), engine.cache().total_blocks());
  EXPECT_FALSE(engine.step(events));
}

// A copy of `name` whose embedding of token 250 is `value`.
class PoisonedModel {
 public:
  PoisonedModel(const std::string& name, float value)
      : folder_(fs::temp_directory_path() / ("fathom_engine_test_" + std::to_string(getpid()))) {
    const fs::path source = fs::path(FATHOM_SOURCE_DIR "/tests/golden/models") / name;
    fs::create_directories(folder_);
    fs::copy_file(source / "config.json", folder_ / "config.json", fs::copy_options::overwrite_existing);
    const Safetensors file = Safetensors::open(source / "model.safetensors");
    std::vector<TensorToWrite> tensors;
    std::vector<std::byte> embedding;
    for (const TensorInfo& t : file.tensors()) {
      tensors.push_back({t.name, t.dtype, t.shape, {t.data, t.bytes}});
      if (t.name != "model.embed_tokens.weight") continue;
      embedding.assign(t.data, t.data + t.bytes);
      for (int64_t i = 0; i < t.shape[1]; ++i) std::memcpy(embedding.data() + (250 * t.shape[1] + i) * 4, &value, 4);
      tensors.back().data = embedding;
    }
    write_safetensors(folder_ / "model.safetensors", tensors);
  }
  ~PoisonedModel() { fs::remove_all(folder_); }
  Model load() const { return Model::load(folder_); }

 private:
  fs::path folder_;
};

TEST(Engine, ANumericalErrorEndsItsOwnRequestAlone) {
  for (const char* name : {"v3", "v2", "qwen2"}) {
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      const PoisonedModel poisoned(name, value);
      const Model model = poisoned.load();
      for (const Isa isa : instruction_sets()) {
        Context ctx(2, isa);
        for (const MlaForm form : {MlaForm::kAbsorbed, MlaForm::kExpanded}) {
          std::vector<Guest> guests;
          std::vector<Outcome> solo;
          for (uint64_t g = 0; g < 7; ++g) {
            guests.push_back({some_request(900 + g), static_cast<int64_t>(g)});
            solo.push_back(run_alone(model, ctx, {.context_tokens = kContext, .form = form}, guests.back().request));
            EXPECT_NE(solo.back().finish, FinishReason::kNumericalError);
          }
          guests[2].request.prompt.push_back(250);
          guests[4].request.prompt.insert(guests[4].request.prompt.begin(), 250);
          for (const size_t bad : {2, 4}) solo[bad] = {{}, {}, {}, FinishReason::kNumericalError};
          // Two requests' worth of blocks: those that held NaN are used again.
          Engine engine(model, ctx, {kContext, 2 * kContext, 50, 3, DType::kF32, form});
          expect_solo_results(guests, run_trace(engine, guests), solo);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fathom
