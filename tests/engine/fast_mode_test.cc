// Fast mode of MLA: openings in the expanded form, the rest absorbed, and no bit of a text depends
// on what else goes on.
#include <gtest/gtest.h>

#include "engine/prefix_store.h"
#include "kernels/softmax.h"
#include "tests/base/test_files.h"
#include "tests/base/test_name.h"
#include "tests/engine/drafters.h"
#include "tests/engine/traces.h"

namespace fathom {
namespace {

constexpr int64_t kExpandBy = 24;  // no divisor of a block: borders in full blocks and in tails

class EveryMla : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Tiny, EveryMla,
                         testing::Values("v3", "v2", "v2-lite", "moonlight", "v3-fp8"),
                         kNamedByParameter);

EngineOptions fast(DType cache_dtype = DType::kBF16) {
  return {.context_tokens = kContext,
          .cache_tokens = 4 * kContext,
          .cache_dtype = cache_dtype,
          .expand_by = kExpandBy};
}

Request plain(std::vector<int32_t> prompt, int64_t opening = -1, int64_t max_tokens = 6) {
  return {std::move(prompt), max_tokens, {}, {.top_logprobs = 2}, {}, opening};
}

struct Answer {
  Outcome outcome;
  PrefixReuse reuse;
};

Answer ask(Engine& engine, const Request& request) {
  engine.submit(request);
  std::vector<TokenEvent> events;
  while (engine.step(events)) engine.check();
  Answer answer;
  for (const TokenEvent& event : events) add(answer.outcome, event);
  answer.reuse = events.back().reuse;
  return answer;
}

std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

TEST(FastMode, ExpandsWholeUnitsOfTheOpeningButNotItsEnd) {
  for (const auto& [opening, end] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 0}, {1, 0}, {255, 0}, {256, 254}, {257, 255}, {258, 256}, {511, 256}, {2048, 2046}})
    EXPECT_EQ(expanded_end(opening, 256), end) << opening;
  EXPECT_EQ(expanded_end(1000, 0), 0) << "strict mode";
  EXPECT_EQ(expanded_end(1, 1), 0);
}

// The text is that of forward passes over rows of one form each, row by row.
TEST_P(EveryMla, RowsHaveTheFormThatTheRuleSays) {
  const Model model = load_tiny(GetParam());
  const int64_t vocab_size = model.config().vocab_size;
  for (const Isa isa : instruction_sets()) {
    Context ctx(1, isa);
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      const Request request = plain(some_tokens(7, 110), 100, 12);
      const Outcome outcome = run_alone(model, ctx, fast(dtype), request);
      std::vector<int32_t> tokens = joined(request.prompt, outcome.tokens);
      KvCache cache(model, dtype, std::ssize(tokens));
      std::vector<int64_t> block_rows;
      ASSERT_TRUE(cache.reserve(block_rows, std::ssize(tokens)));
      std::vector<float> logits(static_cast<size_t>(vocab_size));
      const Rows row{logits.data(), 1, vocab_size, vocab_size};
      const int32_t wanted = 0;
      for (int64_t t = 0; t + 1 < std::ssize(tokens); ++t) {
        const SequenceRows rows{1, t, block_rows};
        model.forward_infer(ctx,
                            {std::span(tokens).subspan(static_cast<size_t>(t), 1),
                             {&rows, 1},
                             {&wanted, 1},
                             &cache.view(),
                             t < 96 ? MlaForm::kExpanded : MlaForm::kAbsorbed},
                            row);
        if (t + 1 < std::ssize(request.prompt)) continue;
        float log_sum = 0;
        log_sum_exp(ctx, row, {&log_sum, 1});
        const auto i = static_cast<size_t>(t + 1 - std::ssize(request.prompt));
        const auto logprob =
            static_cast<float>(static_cast<double>(row.data[outcome.tokens[i]]) - log_sum);
        EXPECT_EQ(outcome.logprob_bits[3 * i], std::bit_cast<uint32_t>(logprob)) << i;
      }
    }
  }
}

TEST_P(EveryMla, DiffersFromStrictModeOnlyWhereAUnitIsFull) {
  const Model model = load_tiny(GetParam());
  Context ctx(1);
  EngineOptions strict = fast();
  strict.expand_by = 0;
  const Request longer = plain(some_tokens(1, 200)), shorter = plain(some_tokens(1, kExpandBy - 1));
  EXPECT_NE(run_alone(model, ctx, fast(), longer), run_alone(model, ctx, strict, longer));
  EXPECT_EQ(run_alone(model, ctx, fast(), shorter), run_alone(model, ctx, strict, shorter));
  Request history = longer;
  history.opening = kExpandBy - 1;
  EXPECT_EQ(run_alone(model, ctx, fast(), history), run_alone(model, ctx, strict, longer));
}

// Guests of every shape and opening, in every chunk, with every cache, on every instruction set;
// those with little room preempt each other.
TEST_P(EveryMla, NeighboursChunksCachesAndPreemptionChangeNoBit) {
  const Model model = load_tiny(GetParam());
  uint64_t round = 0;
  for (const Isa isa : instruction_sets()) {
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
      Context alone(1, isa), ctx(2, isa);
      std::vector<Guest> guests;
      std::vector<Outcome> solo;
      EngineOptions options = fast(dtype);
      options.prefix_cache = false;
      for (uint64_t g = 0; g < 8; ++g) {
        const auto pick = [&](uint64_t what, int64_t n) {
          return static_cast<int64_t>(
              random_below(8 * what + g, 40 + round, static_cast<uint64_t>(n)));
        };
        Request request = some_request(8 * round + g);
        if (g % 2 == 1) {  // the one before, gone on: with its opening, or as a text of its own
          request.prompt = joined(guests.back().request.prompt, some_tokens(g, pick(1, 60)));
          request.prompt.resize(std::min<size_t>(request.prompt.size(), 290));
          if (pick(2, 2) == 0) request.opening = std::ssize(guests.back().request.prompt);
        } else if (pick(3, 3) == 0) {
          request.opening = pick(4, 300);
        }
        guests.push_back({request, pick(5, 12)});
        if (pick(6, 5) == 0) guests.back().cancel = guests.back().arrival + pick(7, 20);
        solo.push_back(run_alone(model, alone, options, request));
      }
      for (const int64_t chunk : {int64_t{1 + 2 * static_cast<int64_t>(round)}, int64_t{512}}) {
        for (const bool cached : {false, true}) {
          options.prefill_chunk = chunk;
          options.prefix_cache = cached;
          options.cache_tokens = kContext + (chunk == 512 ? 4 * kContext : 64);
          options.max_sequences = 8;
          Engine engine(model, ctx, options);
          expect_solo_results(guests, run_trace(engine, guests), solo);
          if (HasFailure())
            FAIL() << isa_name(isa) << ", " << dtype_name(dtype) << ", chunk " << chunk
                   << (cached ? ", cached" : "");
        }
      }
      ++round;
    }
  }
}

// A conversation: what the first turn has left gives the second one the bits that it has from
// nothing, and is found to the last row.
TEST_P(EveryMla, ASecondTurnGoesOnFromTheFirst) {
  const Model model = load_tiny(GetParam());
  Context ctx(1);
  for (const int64_t opening : {47, 48, 49, 110, 130}) {
    Engine engine(model, ctx, fast());
    EngineOptions without = fast();
    without.prefix_cache = false;
    Engine nothing(model, ctx, without);
    const std::vector<int32_t> prompt = some_tokens(3, opening);
    const Answer first = ask(engine, plain(prompt, -1, 30));
    const std::vector<int32_t> talk = joined(prompt, first.outcome.tokens);
    const Request second = plain(joined(talk, some_tokens(4, 50)), opening, 20);
    const Answer found = ask(engine, second);
    EXPECT_EQ(found.reuse.cached_tokens, std::ssize(talk) - 1) << opening;
    EXPECT_EQ(found.outcome, run_alone(nothing, second)) << opening;
    // the answer rows of the second turn are history of the third
    const std::vector<int32_t> more = joined(second.prompt, found.outcome.tokens);
    const Request third = plain(joined(more, {1, 2, 3}), opening, 10);
    const Answer last = ask(engine, third);
    EXPECT_EQ(last.reuse.cached_tokens, std::ssize(more) - 1) << opening;
    EXPECT_EQ(last.outcome, run_alone(nothing, third)) << opening;
    EXPECT_EQ(ask(engine, second).reuse.cached_tokens, std::ssize(second.prompt) - 1);
  }
}

// The same tokens, but other forms from some row on: only what is before it is shared.
TEST(FastMode, RowsOfAnotherFormAreNotFound) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  EngineOptions without = fast();
  without.prefix_cache = false;
  Engine nothing(model, ctx, without);
  const std::vector<int32_t> prompt = some_tokens(5, 200);
  for (const auto& [first, second, shared] : std::vector<std::array<int64_t, 3>>{{200, 30, 24},
                                                                                 {30, 200, 24},
                                                                                 {200, 0, 0},
                                                                                 {100, 150, 96},
                                                                                 {150, 100, 96},
                                                                                 {196, 200, 199},
                                                                                 {48, 200, 46}}) {
    Engine engine(model, ctx, fast());
    ask(engine, plain(prompt, first));
    const Request request = plain(prompt, second);
    const Answer answer = ask(engine, request);
    EXPECT_EQ(answer.reuse.cached_tokens, shared) << first << ", " << second;
    EXPECT_EQ(answer.outcome, run_alone(nothing, request)) << first << ", " << second;
    // both at once: nobody waits for, nor copies from, a neighbour's other rows
    Engine both(model, ctx, fast());
    both.submit(plain(prompt, first));
    const uint64_t id = both.submit(request);
    std::vector<TokenEvent> events;
    while (both.step(events)) both.check();
    Outcome outcome;
    for (const TokenEvent& event : events) {
      if (event.request == id) add(outcome, event);
    }
    EXPECT_EQ(outcome, answer.outcome) << first << ", " << second;
  }
}

// A prompt that is all in the cache, and its last rows: no chunk expands thousands of keys for one.
TEST(FastMode, ARepeatedPromptComputesAbsorbedRowsOnly) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  for (const Speculation speculation : {Speculation::kOff, Speculation::kMtp}) {
    EngineOptions options = fast();
    options.speculation = speculation;
    Engine engine(model, ctx, options);
    const Request request = plain(some_tokens(6, 5 * kExpandBy));
    const int64_t end = expanded_end(std::ssize(request.prompt), kExpandBy);
    const Answer first = ask(engine, request), again = ask(engine, request);
    EXPECT_GE(again.reuse.cached_tokens, end);
    EXPECT_EQ(again.outcome, first.outcome);
  }
}

// Of a chunk that another prompt has begun, a long one takes nothing but what it ends with.
TEST(FastMode, FewExpandedRowsWaitForTheNextChunk) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  for (const auto& [opening, rows] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 300}, {301, 100}, {190, 300}}) {  // absorbed, cut, not cut
    EngineOptions options = fast();
    options.prefill_chunk = options.long_chunk = 300;
    options.expand_by = 30;
    Engine engine(model, ctx, options);
    engine.submit(plain(some_tokens(1, 100), 0, 1));
    engine.submit(plain(some_tokens(2, 301), opening, 1));
    std::vector<TokenEvent> events;
    ASSERT_TRUE(engine.step(events));
    EXPECT_EQ(engine.stats().prefill_tokens, rows) << opening;
    ASSERT_TRUE(engine.step(events));
    EXPECT_EQ(engine.stats().prefill_tokens, std::min<int64_t>(401, rows + 300)) << opening;
  }
}

// A restart, in fast and in strict mode over one folder: each finds its own rows, and those of the
// other that have no other form.
TEST(FastMode, TheStoreKeepsTheFormsApart) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  const TempDir dir;
  const PrefixStoreOptions store{
      dir / "cache", uint64_t{1} << 30, model_fingerprint(model), {1, 2}};
  EngineOptions strict = fast();
  strict.expand_by = 0;
  const auto live = [&](const EngineOptions& options, const Request& request) {
    Engine engine(model, ctx, options);
    PrefixStore disk(store, ctx, options.form, engine.cache().view());
    engine.use_store(&disk);
    const Answer answer = ask(engine, request);
    engine.save_to_store();
    EXPECT_EQ(disk.last_problem(), "");
    return answer;
  };
  const Request request = plain(some_tokens(8, 210)), history = plain(some_tokens(8, 210), 0);
  const Outcome fast_text = run_alone(model, ctx, fast(), request),
                strict_text = run_alone(model, ctx, strict, request);
  ASSERT_NE(fast_text, strict_text);
  for (const int64_t cached : {0, 209}) {
    for (const auto& [options, text] : {std::pair{fast(), fast_text}, {strict, strict_text}}) {
      const Answer answer = live(options, request);
      EXPECT_EQ(answer.reuse.cached_tokens, cached) << options.expand_by;
      EXPECT_EQ(answer.outcome, text) << options.expand_by;
    }
  }
  const Answer absorbed = live(fast(), history);
  EXPECT_EQ(absorbed.reuse.cached_tokens, 209) << "strict rows";
  EXPECT_EQ(absorbed.outcome, strict_text);
}

TEST_P(EveryMla, DraftsChangeNoBit) {
  const Model model = load_tiny(GetParam());
  Context ctx(1);
  for (const int64_t chunk : {11, 512}) {
    EngineOptions options = fast();
    options.prefill_chunk = chunk;
    std::vector<Guest> guests;
    std::vector<Outcome> solo;
    std::vector<std::vector<int32_t>> texts;
    for (uint64_t g = 0; g < 6; ++g) {
      Request request = some_request(70 + g / 2);
      request.max_tokens = 40;
      request.stop_ids.clear();
      request.prompt.resize(std::min<size_t>(request.prompt.size() + g, 250), 9);
      if (g % 2 == 1) request.opening = 60;
      guests.push_back({request, static_cast<int64_t>(3 * g)});
      solo.push_back(run_alone(model, ctx, options, request));
      texts.push_back(joined(request.prompt, solo.back().tokens));
    }
    options.draft_tokens = 3;
    options.pause_drafts = false;
    for (const bool mtp : {false, true}) {
      if (mtp && !model.has_mtp()) continue;
      options.speculation = mtp ? Speculation::kMtp : Speculation::kLookup;
      options.drafter = knowing_drafter(texts, 4);
      Engine engine(model, ctx, options);
      expect_solo_results(guests, run_trace(engine, guests), solo);
      EXPECT_GT(engine.stats().drafted, 50);
    }
  }
}

}  // namespace
}  // namespace fathom
