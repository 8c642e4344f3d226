// Drafts change how many tokens a step yields and nothing else.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "kernels/cached_rows.h"
#include "model/expert_cache.h"
#include "tests/base/test_name.h"
#include "tests/engine/drafters.h"
#include "tests/engine/failing_allocations.h"
#include "tests/engine/poisoned_model.h"
#include "tests/engine/traces.h"

namespace fathom {
namespace {

class EveryModel : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Tiny, EveryModel, testing::ValuesIn(kTinyModels), kNamedByParameter);

// All ways to draft, each with several lengths; the last ones with what came out without drafts.
std::vector<EngineOptions> all_ways(const Model& model, const EngineOptions& plain,
                                    std::vector<std::vector<int32_t>> texts) {
  std::vector<EngineOptions> ways;
  for (const int64_t tokens : {1, 2, 7}) {
    EngineOptions way = plain;
    way.draft_tokens = tokens;
    way.pause_drafts = tokens == 2;
    way.speculation = Speculation::kLookup;
    ways.push_back(way);
    way.drafter = bad_drafter();
    ways.push_back(way);
    way.drafter = knowing_drafter(texts, 0);
    ways.push_back(way);
    way.drafter = knowing_drafter(texts, 3);
    ways.push_back(way);
    if (!model.has_mtp()) continue;
    way.speculation = Speculation::kBoth;
    ways.push_back(way);
    way.drafter = {};
    ways.push_back(way);
    way.speculation = Speculation::kMtp;
    ways.push_back(way);
  }
  return ways;
}

Request some_request_with_bias(uint64_t i) {
  Request request = some_request(i);
  request.max_tokens += 20;
  if (i % 2 == 0) {
    for (int32_t id = 0; id < 8; ++id)
      request.sampling.logit_bias.emplace_back(17 * id + 3, id % 2 == 0 ? 1.5f : -3.0f);
  }
  if (i % 5 == 0) request.sampling.presence_penalty = 0.7;
  return request;
}

std::vector<int32_t> text_of(const Request& request, const Outcome& outcome) {
  std::vector<int32_t> text = request.prompt;
  text.insert(text.end(), outcome.tokens.begin(), outcome.tokens.end());
  return text;
}

TEST_P(EveryModel, SpeculationChangesNoBitOfARequestAlone) {
  const Model model = load_tiny(GetParam());
  Context ctx(2);
  EngineStats all;
  for (uint64_t i = 0; i < 14; ++i) {
    const Request request = some_request_with_bias(4000 + i);
    const EngineOptions plain{.context_tokens = kContext + 100, .prefill_chunk = 60};
    const Outcome solo = run_alone(model, ctx, plain, request);
    for (const EngineOptions& way : all_ways(model, plain, {text_of(request, solo)})) {
      Engine engine(model, ctx, way);
      EXPECT_EQ(run_alone(engine, request), solo) << i << ", " << way.draft_tokens << " drafts";
      engine.check();
      all.drafted += engine.stats().drafted;
      all.accepted += engine.stats().accepted;
    }
  }
  EXPECT_GT(all.accepted, 900);  // 984 of v3-fp8, which accepts the fewest
  EXPECT_GT(all.drafted, all.accepted + 1000);
}

// Prompts that begin alike, little room, cancellations: prefix hits, copies, preemption.
TEST_P(EveryModel, SpeculationChangesNoBitInCompany) {
  const Model model = load_tiny(GetParam());
  Context ctx(1);
  std::vector<Guest> guests;
  std::vector<Outcome> solo;
  std::vector<std::vector<int32_t>> texts;
  for (uint64_t g = 0; g < 7; ++g) {
    Request request = some_request_with_bias(500 + g);
    request.prompt = some_tokens(g / 3, 60 + 5 * static_cast<int64_t>(g));
    request.max_tokens = 60 + 10 * static_cast<int64_t>(g);
    request.stop_ids.clear();
    guests.push_back({request, static_cast<int64_t>(4 * g), g == 2 ? 20 : -1});
    solo.push_back(run_alone(model, ctx, {kContext}, request));
    texts.push_back(text_of(request, solo.back()));
  }
  EngineStats all;
  for (const int64_t chunk : {9, 512}) {
    for (const EngineOptions& way : all_ways(model, {kContext, kContext + 64, chunk, 4}, texts)) {
      Engine engine(model, ctx, way);
      expect_solo_results(guests, run_trace(engine, guests), solo);
      if (HasFailure()) FAIL() << static_cast<int>(way.speculation) << ", " << way.draft_tokens;
      all.preemptions += engine.stats().preemptions;
      all.cached_tokens += engine.stats().cached_tokens;
      all.accepted += engine.stats().accepted;
    }
  }
  EXPECT_GT(all.preemptions, 10);
  EXPECT_GT(all.cached_tokens, 1000);
  EXPECT_GT(all.accepted, 1000);
}

TEST(Speculation, AStepYieldsItsConfirmedDraftsAndOneTokenMore) {
  const Model model = load_tiny("qwen2");
  Context ctx(1);
  const Request request{some_tokens(1, 30), 51, {}, {.temperature = 1}};
  const Outcome solo = run_alone(model, ctx, {kContext}, request);
  EngineOptions options{.context_tokens = kContext, .speculation = Speculation::kLookup};
  options.draft_tokens = 4;
  options.drafter = knowing_drafter({text_of(request, solo)}, 0);
  Engine engine(model, ctx, options);
  engine.submit(request);
  std::vector<TokenEvent> events;
  ASSERT_TRUE(engine.step(events));
  EXPECT_EQ(events.size(), 1u);  // of the prompt
  for (int step = 0; step < 10; ++step) {
    events.clear();
    ASSERT_TRUE(engine.step(events));
    ASSERT_EQ(events.size(), 5u);
  }
  EXPECT_EQ(events.back().finish, FinishReason::kLength);
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.stats().drafted, 40);
  EXPECT_EQ(engine.stats().accepted, 40);
  EXPECT_EQ(engine.stats().decode_tokens, 50);
}

TEST(Speculation, EndsWithTheStopTokenAmongConfirmedDrafts) {
  const Model model = load_tiny("v2");
  Context ctx(1);
  Request request{some_tokens(1, 10), 20, {}, {}};
  const Outcome whole = run_alone(model, ctx, {kContext}, request);
  for (const size_t where : {0, 1, 2, 3, 4, 5, 6, 19}) {
    request.stop_ids = {255, whole.tokens[where]};
    const Outcome stopped = run_alone(model, ctx, {kContext}, request);
    EXPECT_EQ(stopped.finish, FinishReason::kStop);
    for (const int64_t drafts : {1, 3, 8}) {
      EngineOptions options{.context_tokens = kContext, .speculation = Speculation::kLookup};
      options.draft_tokens = drafts;
      options.drafter = knowing_drafter({text_of(request, whole)}, 0);
      EXPECT_EQ(run_alone(model, ctx, options, request), stopped) << where;
    }
  }
}

TEST(Speculation, ARequestMayFillTheContextToTheLastToken) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  const Request request{some_tokens(1, 33), 32, {}, {}};
  const Outcome solo = run_alone(model, ctx, {.context_tokens = 65}, request);
  for (const EngineOptions& way : all_ways(model, {.context_tokens = 65}, {text_of(request, solo)}))
    EXPECT_EQ(run_alone(model, ctx, way, request), solo);
}

// Every allocation of every step fails once; the next try goes on as if nothing had been.
TEST(Speculation, AStepThatThrowsLosesRepeatsAndChangesNothing) {
  const Model model = load_tiny("v3");
  std::vector<Request> requests;
  std::vector<Outcome> solo;
  std::vector<std::vector<int32_t>> texts;
  Context warm(1);
  for (uint64_t g = 0; g < 3; ++g) {
    requests.push_back({some_tokens(g / 2, 60 + 8 * static_cast<int64_t>(g)),
                        70,
                        {},
                        {.temperature = 1, .frequency_penalty = 0.5, .seed = g, .top_logprobs = 1},
                        {}});
    solo.push_back(run_alone(model, warm, {.context_tokens = 256}, requests.back()));
    texts.push_back(text_of(requests.back(), solo.back()));
  }
  for (const Speculation kind : {Speculation::kMtp, Speculation::kBoth, Speculation::kLookup}) {
    Context fresh(1);
    EngineOptions options{.context_tokens = 256, .cache_tokens = 256, .prefill_chunk = 50};
    options.speculation = kind;
    options.draft_tokens = 3;
    options.pause_drafts = false;
    options.drafter = knowing_drafter(texts, 3);
    Engine engine(model, fresh, options);
    expect_solo_results_despite_failures(engine, requests, solo);
    EXPECT_GT(engine.stats().accepted, kind == Speculation::kLookup ? 30 : -1);
  }
}

TEST_P(EveryModel, DecodingWithDraftsAllocatesNothing) {
  const Model model = load_tiny(GetParam());
  Context ctx(1);
  const EngineOptions plain{.context_tokens = kContext, .cache_tokens = 3 * kContext};
  std::vector<Request> requests;
  std::vector<std::vector<int32_t>> texts;
  for (uint64_t i = 0; i < 3; ++i) {
    requests.push_back({some_tokens(i, 70), 240, {}, some_sampling(i), {}});
    texts.push_back(text_of(requests.back(), run_alone(model, ctx, plain, requests.back())));
  }
  std::vector<EngineOptions> ways = all_ways(model, plain, texts);
  EngineOptions fast = plain;
  fast.expand_by = 32;
  for (const EngineOptions& way : all_ways(model, fast, texts)) ways.push_back(way);
  for (const EngineOptions& way : ways) {
    Engine engine(model, ctx, way);
    for (const Request& request : requests) engine.submit(request);
    std::vector<TokenEvent> events;
    events.reserve(1000);
    for (int step = 0; step < 8; ++step) engine.step(events);
    const int64_t before = allocations;
    for (int step = 0; step < 70; ++step) engine.step(events);
    EXPECT_EQ(allocations, before) << static_cast<int>(way.speculation) << ", " << way.draft_tokens
                                   << " drafts, expand_by " << way.expand_by;
  }
}

// Rejected rows full of NaN stay behind the text, where nobody looks.
TEST(Speculation, DraftsThatAreNotFiniteChangeNothing) {
  const PoisonedModel poisoned("v3", std::numeric_limits<float>::quiet_NaN());
  const Model model = poisoned.load();
  Context ctx(1);
  for (const MlaForm form : {MlaForm::kAbsorbed, MlaForm::kExpanded}) {
    std::vector<Guest> guests;
    std::vector<Outcome> solo;
    for (uint64_t g = 0; g < 6; ++g) {
      Request request = some_request(900 + g);
      request.sampling.logit_bias = {{250, -100.0f}};
      guests.push_back({request, static_cast<int64_t>(g)});
      solo.push_back(run_alone(model, ctx, {.context_tokens = kContext, .form = form}, request));
    }
    EngineOptions options{kContext, 2 * kContext, 50, 3, DType::kF32, form};
    options.speculation = Speculation::kLookup;
    options.pause_drafts = false;
    options.drafter = [](std::span<const int32_t>, int64_t most, std::vector<int32_t>& drafts) {
      drafts.insert(drafts.end(), static_cast<size_t>(most), 250);
      return kMostMatch;
    };
    Engine engine(model, ctx, options);
    expect_solo_results(guests, run_trace(engine, guests), solo);
    EXPECT_GT(engine.stats().drafted, 50);
    EXPECT_EQ(engine.stats().accepted, 0);
  }
}

// What the main model and the MTP layer say about a whole text in one pass.
struct OnePass {
  OnePass(const Model& model, Context& ctx, std::span<const int32_t> text)
      : cache(model, DType::kF32, std::ssize(text)) {
    const ModelConfig& c = model.config();
    const int64_t rows = std::ssize(text) - 1;
    EXPECT_TRUE(cache.reserve(block_rows, rows));
    const SequenceRows sequence{rows, 0, block_rows};
    std::vector<float> memory(static_cast<size_t>(rows * c.hidden_size));
    Rows hidden{memory.data(), rows, c.hidden_size, c.hidden_size};
    model.forward_infer(ctx,
                        {text.first(static_cast<size_t>(rows)),
                         {&sequence, 1},
                         {},
                         &cache.view(),
                         MlaForm::kAbsorbed},
                        {}, &hidden);
    std::vector<int32_t> all(static_cast<size_t>(rows));
    std::iota(all.begin(), all.end(), 0);
    logits.resize(static_cast<size_t>(rows * c.vocab_size));
    model.forward_mtp(ctx,
                      {text.subspan(1), {&sequence, 1}, all, &cache.view(), MlaForm::kAbsorbed},
                      hidden, {logits.data(), rows, c.vocab_size, c.vocab_size});
  }
  KvCache cache;
  std::vector<int64_t> block_rows;
  std::vector<float> logits;  // of MTP, [text.size() - 1, vocab_size]
};

struct MtpModel {
  Model model;
  int32_t vocabulary;  // ids below are used
};

MtpModel load_mtp(bool bundled) {
  if (!bundled) return {load_tiny("v3"), 200};
  return {Model::load(FATHOM_SOURCE_DIR "/bundled/countdown-12m.gguf"), 90};
}

// How many rows of this text others may find; the bits of all of them, the MTP layer's too, are
// those of one pass.
int64_t rows_of_one_pass(const Model& model, Context& ctx, Engine& engine,
                         const std::vector<int32_t>& text) {
  OnePass pass(model, ctx, text);
  const KvCacheView& view = engine.cache().view();
  const int64_t bytes = cached_row_bytes(view.dtype, view.row_width);
  int64_t rows = 0;
  engine.cache().pool().for_each_cached([&](int64_t block, const BlockPool::Content& content) {
    const int64_t size = std::ssize(content.tokens);
    size_t index = 0;  // of the block in the text; what repeats does so at other places
    const auto is_here = [&](size_t begin) {
      return begin + content.tokens.size() <= text.size() &&
             std::equal(content.tokens.begin(), content.tokens.end(),
                        text.begin() + static_cast<ptrdiff_t>(begin));
    };
    while (index * kKeyBlock < text.size() && !is_here(index * kKeyBlock)) ++index;
    if (index * kKeyBlock >= text.size()) return;  // of another text
    rows += size;
    ASSERT_LT(index, pass.block_rows.size());
    for (size_t layer = 0; layer < view.layers.size(); ++layer) {
      EXPECT_EQ(std::memcmp(view.layers[layer] + block * kKeyBlock * bytes,
                            pass.cache.view().layers[layer] + pass.block_rows[index] * bytes,
                            static_cast<size_t>(size * bytes)),
                0)
          << "layer " << layer << ", block " << index;
    }
  });
  return rows;
}

// The smallest cache of experts, so that those of the MTP layer push out the others' and come back:
// the same texts, drafts and cache rows as in memory.
TEST(Mtp, DraftsAreTheSameWhereExpertsComeFromDisk) {
  Context ctx(2);
  for (const bool bundled : {false, true}) {
    const MtpModel loaded = load_mtp(bundled);
    const Model& whole = loaded.model;
    const ExpertLayout layout = expert_layout(whole.checkpoint(), whole.config()).value();
    MtpModel streamed = load_mtp(bundled);
    streamed.model.stream_experts(static_cast<uint64_t>(layout.least_slots) * layout.slot_bytes);
    ASSERT_EQ(streamed.model.expert_cache()->slots(), layout.least_slots);
    for (const int64_t drafts : {1, 3}) {
      EngineOptions options{.context_tokens = kContext, .prefill_chunk = 40};
      Request request{some_tokens(3, 50), 60, {}, {.temperature = bundled ? 0.0 : 1.0}};
      for (int32_t& id : request.prompt) id %= loaded.vocabulary;
      Engine plain(whole, ctx, options);
      const Outcome expected = run_alone(plain, request);
      options.speculation = Speculation::kMtp;
      options.draft_tokens = drafts;
      options.pause_drafts = false;
      Engine in_memory(whole, ctx, options), from_disk(streamed.model, ctx, options);
      EXPECT_EQ(run_alone(in_memory, request), expected);
      EXPECT_EQ(run_alone(from_disk, request), expected);
      EXPECT_EQ(from_disk.stats().drafted, in_memory.stats().drafted);
      EXPECT_EQ(from_disk.stats().accepted, in_memory.stats().accepted);
      EXPECT_GT(from_disk.stats().drafted, 30);
      const auto rows = [&](const Model& model, Engine& engine) {
        return rows_of_one_pass(model, ctx, engine, text_of(request, expected));
      };
      EXPECT_EQ(rows(whole, in_memory), rows(whole, from_disk));
    }
    EXPECT_GT(streamed.model.expert_cache()->stats().misses, layout.experts) << "they came again";
  }
}

// The cache, pauses and chains of drafts, rows copied from another text included.
TEST(Mtp, RowsThatOthersMayFindAreThoseOfOnePassOverTheText) {
  const Model model = load_tiny("v3");
  Context ctx(1);
  for (const int64_t drafts : {1, 3, 7}) {
    for (const bool pause : {false, true}) {
      const Request first{some_tokens(3, 90), 200, {}, {.temperature = 1}};
      EngineOptions options{.context_tokens = kContext, .cache_tokens = 2 * kContext};
      options.prefill_chunk = 40;
      options.speculation = drafts == 7 ? Speculation::kBoth : Speculation::kMtp;
      options.draft_tokens = drafts;
      options.pause_drafts = pause;
      Engine engine(model, ctx, options);
      const std::vector<int32_t> text = text_of(first, run_alone(engine, first));
      EXPECT_EQ(rows_of_one_pass(model, ctx, engine, text), 289) << "pauses " << pause;
      for (const ptrdiff_t common : {100, 280}) {  // in a full block and in the tail
        Request second = first;
        second.prompt = {text.begin(), text.begin() + common};
        second.prompt.push_back(text[static_cast<size_t>(common)] ^ 1);
        second.max_tokens = 10;
        const Outcome outcome = run_alone(engine, second);
        EXPECT_EQ(rows_of_one_pass(model, ctx, engine, text_of(second, outcome)), common + 10)
            << "pauses " << pause;
      }
      EXPECT_EQ(engine.stats().cached_tokens, 99 + 279);
    }
  }
}

TEST(Mtp, DraftsAreThoseOfOnePassOverTheText) {
  for (const bool bundled : {false, true}) {
    const auto [model, vocabulary] = load_mtp(bundled);
    const auto vocab_size = static_cast<size_t>(model.config().vocab_size);
    Context ctx(2);
    for (const double temperature : {0.0, 1.0}) {
      Request request{{}, 150, {}, {.temperature = temperature, .seed = 5}};
      for (const int32_t id : some_tokens(4, 75)) request.prompt.push_back(id % vocabulary);
      EngineOptions options{.context_tokens = kContext, .prefill_chunk = 40};
      options.speculation = Speculation::kMtp;
      options.draft_tokens = 1;
      options.pause_drafts = false;
      Engine engine(model, ctx, options);
      const std::vector<int32_t> text = text_of(request, run_alone(engine, request));
      OnePass pass(model, ctx, text);
      Sampler sampler(request.sampling, request.prompt);
      int64_t drafted = 0, accepted = 0;
      for (size_t size = request.prompt.size() + 1; size < text.size(); ++size) {
        if (size + 1 == text.size()) break;  // the last token needs no draft
        const auto row = std::span(pass.logits).subspan((size - 2) * vocab_size, vocab_size);
        const bool right = sampler.pick(row, static_cast<int64_t>(size)) == text[size];
        ++drafted;
        accepted += right;
        size += right;
      }
      EXPECT_EQ(engine.stats().drafted, drafted);
      EXPECT_EQ(engine.stats().accepted, accepted);
      EXPECT_GT(accepted, bundled ? 20 : -1);
    }
  }
}

// Long matches make the layer's guess unnecessary; its rows are complete all the same.
TEST(Mtp, AndLookupTogetherYieldMoreThanEither) {
  const Model model = load_mtp(true).model;
  Context ctx(2);
  // Use 27, 7 and 12 to make 22.
  Request request{{0,  3, 61, 91, 77, 8,  26, 31, 20, 8, 31, 8,  73, 86, 76, 8, 25,
                   26, 8, 92, 87, 8,  85, 73, 83, 77, 8, 26, 26, 22, 4,  5,  7},
                  280,
                  {},
                  {}};
  EngineOptions options{.context_tokens = kContext};
  const Outcome plain = run_alone(model, ctx, options, request);
  std::vector<double> yields;
  for (const Speculation way : {Speculation::kMtp, Speculation::kLookup, Speculation::kBoth}) {
    options.speculation = way;
    Engine engine(model, ctx, options);
    EXPECT_EQ(run_alone(engine, request), plain);
    const EngineStats& stats = engine.stats();
    yields.push_back(280.0 / static_cast<double>(280 - stats.accepted));
    if (way == Speculation::kBoth) {
      EXPECT_EQ(rows_of_one_pass(model, ctx, engine, text_of(request, plain)),
                std::ssize(request.prompt) + 279);
    }
  }
  EXPECT_GT(yields[2], yields[0] + 0.2) << yields[0];
  EXPECT_GT(yields[2], yields[1] + 0.2) << yields[1];
}

TEST(Mtp, IsRefusedByAModelWithoutTheLayer) {
  const Model model = load_tiny("qwen2");
  Context ctx(1);
  try {
    Engine engine(model, ctx, {.speculation = Speculation::kMtp});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(),
                 "engine: speculation: found mtp, expected lookup or off (the model has no MTP "
                 "layer)");
  }
  EXPECT_EQ(Engine(model, ctx, {.speculation = Speculation::kAuto}).options().speculation,
            Speculation::kLookup);
  EXPECT_EQ(Engine(load_tiny("v3"), ctx, {.speculation = Speculation::kAuto}).options().speculation,
            Speculation::kBoth);
}

TEST(Speculation, PausesWhenDraftsAreWrong) {
  const Model model = load_tiny("qwen2");
  Context ctx(1);
  EngineOptions options{.context_tokens = kContext, .speculation = Speculation::kLookup};
  options.draft_tokens = 1;
  options.drafter = bad_drafter();
  Engine engine(model, ctx, options);
  run_alone(engine, {some_tokens(1, 10), 300, {}, {.temperature = 1}});
  EXPECT_GT(engine.stats().drafted, 5);
  EXPECT_LT(engine.stats().drafted, 60);
}

std::vector<int32_t> lookup(const std::vector<int32_t>& tokens, int64_t most) {
  std::vector<int32_t> drafts;
  draft_by_lookup(tokens, most, drafts);
  return drafts;
}

TEST(Lookup, SaysHowLongTheMatchIs) {
  const auto match = [](const std::vector<int32_t>& tokens) {
    std::vector<int32_t> drafts{7};  // stays
    const int64_t length = draft_by_lookup(tokens, 2, drafts);
    EXPECT_EQ(drafts.size(), length > 0 ? 3u : 1u);
    return length;
  };
  EXPECT_EQ(match({1, 2, 3}), 0);
  EXPECT_EQ(match({1, 2, 3, 1, 2}), 2);
  EXPECT_EQ(match({1, 2, 3, 4, 1, 2, 3}), 3);
  EXPECT_EQ(match(std::vector<int32_t>(40, 5)), kMostMatch);
}

// The chance of a guess is that of its kind, by how much of the text it is founded on.
TEST(DraftPace, DraftsWhatIsRightOftenEnough) {
  DraftPace pace;
  const Guesses far{{1, 2, 3, 4}, 0, kMostMatch}, near{{1, 2, 3, 4}, 0, kLeastMatch};
  EXPECT_EQ(pace.worth(far, 0.5), 4);
  EXPECT_EQ(pace.worth(near, 0.5), 0);
  EXPECT_EQ(pace.worth(near, 0.06), 2);
  EXPECT_EQ(pace.worth({{1}, 1, 0}, 0.5), 1);
  EXPECT_TRUE(pace.mtp_gains(near, 0.2));
  EXPECT_FALSE(pace.mtp_gains(far, 0.2));

  // judged though none was drafted: the first right, the second wrong, the third nobody knows
  for (int i = 0; i < 40; ++i) pace.note(near, 0, std::vector<int32_t>{1, 9, 3});
  EXPECT_EQ(pace.worth(near, 0.5), 1);
  EXPECT_EQ(pace.worth({{1}, 0, kLeastMatch + 1}, 0.1), 0);
  EXPECT_EQ(pace.worth({{1}, 0, kLeastMatch + 2}, 0.5), 1);
  for (int i = 0; i < 40; ++i) pace.note(far, 0, std::vector<int32_t>{9});
  EXPECT_EQ(pace.worth(far, 0.1), 0);
  EXPECT_TRUE(pace.mtp_gains(far, 0.2));
  for (int i = 0; i < 40; ++i) pace.note(far, 0, std::vector<int32_t>{1, 2, 3, 4, 5});
  EXPECT_EQ(pace.worth(far, 0.5), 4);

  // those of the layer only when drafted
  const Guesses both{{1, 2}, 1, kMostMatch};
  for (int i = 0; i < 10; ++i) pace.note(both, 0, std::vector<int32_t>{9});
  EXPECT_FALSE(pace.mtp_paused());
  for (int i = 0; i < 10; ++i) pace.note(both, 2, std::vector<int32_t>{9});
  EXPECT_TRUE(pace.mtp_paused());
}

TEST(Lookup, TakesWhatFollowedTheLongestMatchTheLastIfSeveral) {
  using Ids = std::vector<int32_t>;
  EXPECT_EQ(lookup({}, 3), Ids{});
  EXPECT_EQ(lookup({5}, 3), Ids{});
  EXPECT_EQ(lookup({5, 5}, 3), Ids{});
  EXPECT_EQ(lookup({1, 5, 9, 5}, 3), Ids{});  // one token is no match
  EXPECT_EQ(lookup({1, 2, 3, 4, 1, 2}, 2), (Ids{3, 4}));
  EXPECT_EQ(lookup({1, 2, 3, 1, 2, 4, 1, 2}, 1), Ids{4});
  EXPECT_EQ(lookup({9, 1, 2, 3, 7, 1, 2, 4, 9, 1, 2}, 2), (Ids{3, 7}));
  EXPECT_EQ(lookup({5, 5, 5}, 3), (Ids{5, 5, 5}));
  EXPECT_EQ(lookup({1, 2, 1, 2, 1, 2}, 5), (Ids{1, 2, 1, 2, 1}));
}

}  // namespace
}  // namespace fathom
