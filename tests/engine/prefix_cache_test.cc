// What the engine finds in its cache, and that finding it changes no bit.
#include <gtest/gtest.h>

#include "kernels/attention.h"
#include "tests/base/test_name.h"
#include "tests/engine/traces.h"

namespace fathom {
namespace {

class EveryModel : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Tiny, EveryModel, testing::ValuesIn(kTinyModels), kNamedByParameter);

std::vector<int32_t> joined(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Answer {
  Outcome outcome;
  PrefixReuse reuse;
  int64_t prefilled = 0;
};

Answer ask(Engine& engine, const Request& request) {
  Answer answer;
  const int64_t before = engine.stats().prefill_tokens;
  engine.submit(request);
  std::vector<TokenEvent> events;
  while (engine.step(events)) engine.check();
  for (const TokenEvent& event : events) {
    add(answer.outcome, event);
    answer.reuse = event.reuse;
  }
  answer.prefilled = engine.stats().prefill_tokens - before;
  return answer;
}

Request plain(std::vector<int32_t> prompt, int64_t max_tokens = 5) {
  return {std::move(prompt), max_tokens, {}, {.top_logprobs = 2}, {}};
}

// Every way to begin like something that was there before: the same prompt, the conversation with
// its answer, one that parts in the middle of a block, a shorter one.
void expect_bits_without_cache(const Model& model, Context& ctx, EngineOptions options) {
  Engine engine(model, ctx, options);
  options.prefix_cache = false;
  Engine without(model, ctx, options);
  const std::vector<int32_t> prompt = some_tokens(1, 150);
  Request request = plain(prompt, 44);
  request.sampling.temperature = 1;
  const Answer first = ask(engine, request);
  EXPECT_EQ(first.reuse.cached_tokens, 0);
  EXPECT_EQ(first.outcome, ask(without, request).outcome);

  // 194 tokens, of which 193 have rows: three full blocks and a tail of one
  const std::vector<int32_t> talk = joined(prompt, first.outcome.tokens);
  std::vector<int32_t> parted = prompt;
  parted[100] = 1;
  for (const auto& [tokens, cached] :
       {std::pair<std::vector<int32_t>, int64_t>{prompt, 149},
        {joined(talk, some_tokens(2, 40)), 193},
        {parted, 100},
        {std::vector<int32_t>(prompt.begin(), prompt.begin() + 64), 63},
        {std::vector<int32_t>(prompt.begin(), prompt.begin() + 65), 64}}) {
    const Answer answer = ask(engine, plain(tokens));
    EXPECT_EQ(answer.reuse.cached_tokens, cached);
    EXPECT_EQ(answer.prefilled, std::ssize(tokens) - cached);
    const Answer plainly = ask(without, plain(tokens));
    EXPECT_EQ(answer.outcome, plainly.outcome) << cached;
    EXPECT_EQ(plainly.prefilled, std::ssize(tokens));
    EXPECT_EQ(plainly.reuse.end, ReuseEnd::kDisabled);
  }
}

TEST_P(EveryModel, AnAnswerFromTheCacheHasTheBitsOfOneWithout) {
  const Model model = load_tiny(GetParam());
  const std::vector<Isa> sets = instruction_sets();
  size_t round = std::string_view(GetParam()).size();  // the instruction sets take turns
  for (const MlaForm form : {MlaForm::kAbsorbed, MlaForm::kExpanded}) {
    for (const DType cache_dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
      if (!takes_cache_dtype(model.config(), cache_dtype)) continue;
      Context ctx(1, sets[round++ % sets.size()]);
      expect_bits_without_cache(model, ctx, {kContext, 4 * kContext, 50, 4, cache_dtype, form});
      if (HasFailure())
        FAIL() << isa_name(ctx.isa()) << ", form " << static_cast<int>(form) << ", "
               << dtype_name(cache_dtype);
    }
  }
}

TEST(PrefixCache, SaysWhyReuseEnded) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 256, .cache_tokens = 320});  // five blocks
  const std::vector<int32_t> prompt = some_tokens(1, 200);
  const auto reuse = [&](const std::vector<int32_t>& tokens, const char* scope = "") {
    Request request = plain(tokens, 1);
    request.cache_scope = scope;
    const PrefixReuse r = ask(engine, request).reuse;
    return std::pair{r.cached_tokens, r.end};
  };
  using Pair = std::pair<int64_t, ReuseEnd>;
  EXPECT_EQ(reuse(prompt), Pair(0, ReuseEnd::kNothingCached));
  EXPECT_EQ(reuse(prompt), Pair(199, ReuseEnd::kPromptEnd));
  std::vector<int32_t> parted = prompt;
  parted[130] = 1;
  EXPECT_EQ(reuse(parted), Pair(130, ReuseEnd::kTokenDiffers));
  parted[0] = 1;
  EXPECT_EQ(reuse({parted.begin(), parted.begin() + 70}), Pair(0, ReuseEnd::kTokenDiffers));
  EXPECT_EQ(reuse({prompt.begin(), prompt.begin() + 70}, "another key"),
            Pair(0, ReuseEnd::kNothingCached));
  EXPECT_EQ(reuse({prompt.begin(), prompt.begin() + 70}, "another key"),
            Pair(69, ReuseEnd::kPromptEnd));
  reuse(some_tokens(5, 250));
  EXPECT_EQ(reuse(prompt), Pair(0, ReuseEnd::kEvicted));
  EXPECT_EQ(reuse({1, 2, 3}), Pair(0, ReuseEnd::kTokenDiffers));
  EXPECT_EQ(reuse({prompt.begin(), prompt.begin() + 60}), Pair(59, ReuseEnd::kPromptEnd));
  engine.forget_cached();
  EXPECT_EQ(reuse({1, 2, 3}), Pair(0, ReuseEnd::kNothingCached));
  EXPECT_EQ(reuse({1, 2, 3}), Pair(2, ReuseEnd::kPromptEnd)) << "no full block";
  EXPECT_EQ(reuse({1, 2, 4, 5}), Pair(2, ReuseEnd::kTokenDiffers));
  EXPECT_EQ(reuse({1, 2, 3, 5}), Pair(3, ReuseEnd::kPromptEnd));
  EXPECT_EQ(reuse({1, 2, 3, 5, 6, 7}), Pair(4, ReuseEnd::kNothingCached));
  EXPECT_EQ(reuse({1}), Pair(0, ReuseEnd::kPromptEnd)) << "nothing but the last token";
  EXPECT_EQ(reuse(prompt).first, 0);
  EXPECT_EQ(engine.cache().pool().in_use(), 0);

  const uint64_t id = engine.submit(plain(prompt));
  engine.cancel(id);
  std::vector<TokenEvent> events;
  ASSERT_TRUE(engine.step(events));
  EXPECT_EQ(events.at(0).reuse.end, ReuseEnd::kNotStarted);
}

// What a running neighbour has not come to yet is not another token.
TEST(PrefixCache, ANeighbourWithTooFewRowsIsNoDifference) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 256, .cache_tokens = 1024});
  const std::vector<int32_t> prompt = some_tokens(1, 20);
  std::vector<int32_t> parted = joined(prompt, some_tokens(2, 20));
  engine.submit(plain(prompt, 40));
  std::vector<TokenEvent> events;
  ASSERT_TRUE(engine.step(events));  // has the rows of its prompt
  const uint64_t longer = engine.submit(plain(parted, 1));
  parted[7] = 1 - std::min(prompt[7], 1);
  const uint64_t other = engine.submit(plain(parted, 1));
  while (engine.step(events)) engine.check();
  std::map<uint64_t, std::pair<int64_t, ReuseEnd>> found;
  for (const TokenEvent& event : events)
    found[event.request] = {event.reuse.cached_tokens, event.reuse.end};
  EXPECT_EQ(found.at(longer), std::pair(int64_t{20}, ReuseEnd::kNothingCached));
  EXPECT_EQ(found.at(other), std::pair(int64_t{7}, ReuseEnd::kTokenDiffers));
}

// Whoever goes on from it copies it, so it stays; a longer one takes its place; it is the newest
// when it was used, and goes before the blocks that it follows.
TEST(PrefixCache, ATailStaysUntilALongerOneOrTheNeedForRoom) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 256, .cache_tokens = 320});  // five blocks
  const BlockPool& pool = engine.cache().pool();
  const auto cached = [&](const std::vector<int32_t>& tokens) {
    return ask(engine, plain(tokens, 1)).reuse.cached_tokens;
  };
  const std::vector<int32_t> begin = some_tokens(1, 80);
  const std::vector<int32_t> a = joined(begin, some_tokens(2, 10)), b = joined(begin, {1, 2, 3});
  EXPECT_EQ(cached(begin), 0);
  EXPECT_EQ(pool.cached(), 2);
  EXPECT_EQ(cached(a), 80);
  EXPECT_EQ(pool.cached(), 2) << "in place of its beginning";
  EXPECT_EQ(cached(b), 80);
  EXPECT_EQ(pool.cached(), 3);
  EXPECT_EQ(cached(begin), 79);
  EXPECT_EQ(pool.cached(), 3) << "others begin with it";
  EXPECT_EQ(cached(a), 89);
  EXPECT_EQ(cached(some_tokens(9, 180)), 0);  // three of five: the least recently used goes
  EXPECT_EQ(cached(a), 89);
  EXPECT_EQ(cached(b), 80) << "its tail has gone";
}

// What a text is to be copied from is kept for it, but not for the few tokens that all begin with.
TEST(PrefixCache, AFewEqualTokensKeepNoBlock) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  const std::vector<int32_t> a = some_tokens(1, 100), b = some_tokens(2, 100);
  for (const int64_t equal : {int64_t{1}, BlockPool::kAkin - 1, BlockPool::kAkin}) {
    Engine engine(model, ctx, {.context_tokens = 256, .cache_tokens = 320});  // five blocks
    const auto cached = [&](const std::vector<int32_t>& tokens) {
      return ask(engine, plain(tokens, 1)).reuse.cached_tokens;
    };
    cached(a);
    cached(b);
    std::vector<int32_t> c = some_tokens(3, 170);  // takes the free one and two of the others'
    std::copy_n(a.begin(), equal, c.begin());
    c[static_cast<size_t>(equal)] = a[static_cast<size_t>(equal)] ^ 1;
    const bool keeps = equal >= BlockPool::kAkin;
    EXPECT_EQ(cached(c), keeps ? equal : 0);
    EXPECT_EQ(cached(b), keeps ? 64 : 99) << equal;
  }
}

// A request that is cancelled, or gives way to others, leaves what it has computed.
TEST(PrefixCache, ACancelledRequestLeavesItsTail) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  Engine engine(
      model, ctx,
      {.context_tokens = 256, .cache_tokens = 512, .prefill_chunk = 50, .long_chunk = 50});
  const uint64_t id = engine.submit(plain(some_tokens(1, 200)));
  std::vector<TokenEvent> events;
  ASSERT_TRUE(engine.step(events) && engine.step(events));
  engine.cancel(id);
  engine.step(events);
  engine.check();
  EXPECT_EQ(ask(engine, plain(some_tokens(1, 200))).reuse.cached_tokens, 100);
}

// The prompt is computed once, its full blocks exist once, and only the block that the samples
// write into is each one's own.
TEST(PrefixCache, SamplesOfOnePromptShareItsBlocks) {
  const Model model = load_tiny("qwen2");
  Context ctx(2);
  for (const int64_t length : {1, 10, 64, 65, 150, 192}) {
    Engine engine(model, ctx, {.context_tokens = 256, .cache_tokens = 8 * 256});
    Request request = plain(some_tokens(9, length), 12);
    request.sampling.temperature = 1;
    std::map<uint64_t, Outcome> outcomes;
    for (uint64_t choice = 0; choice < 8; ++choice) {
      request.sampling.choice = choice;
      outcomes[engine.submit(request)] = {};
    }
    std::vector<TokenEvent> events;
    for (int step = 0; step < 3; ++step) engine.step(events);
    engine.check();
    const int64_t full = length / kKeyBlock;
    EXPECT_EQ(engine.cache().pool().in_use(), full + 8) << length;
    EXPECT_EQ(engine.stats().cached_tokens, 7 * (length - 1)) << length;
    while (engine.step(events)) engine.check();
    for (const TokenEvent& event : events) add(outcomes[event.request], event);
    uint64_t choice = 0;
    for (const auto& [id, outcome] : outcomes) {
      request.sampling.choice = choice++;
      EXPECT_EQ(outcome,
                run_alone(model, ctx, {.context_tokens = 256, .prefix_cache = false}, request))
          << length;
    }
  }
}

// Those who come while a prompt is computed wait for what they have in common with it, and compute
// only their own rest.
TEST(PrefixCache, ACommonBeginningIsComputedOnceAlsoWhileItIsUnderWay) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  Engine engine(model, ctx, {.context_tokens = 320, .cache_tokens = 8 * 320, .prefill_chunk = 40});
  const std::vector<int32_t> common = some_tokens(1, 128);
  for (uint64_t i = 0; i < 4; ++i) engine.submit(plain(joined(common, some_tokens(50 + i, 30)), 3));
  std::vector<TokenEvent> events;
  while (engine.step(events)) engine.check();
  EXPECT_EQ(events.size(), 12u);
  EXPECT_EQ(engine.stats().cached_tokens, 3 * 128);
}

}  // namespace
}  // namespace fathom
