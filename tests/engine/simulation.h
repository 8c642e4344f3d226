// Random lives of an engine: requests that begin alike come in any order, twice or more, and are
// cancelled, in caches with hardly room for one. Every text is compared with what the same request
// gets alone from an engine that keeps no prefixes; the books are checked after every step. Some
// engines have a store on disk, which the next one with a store finds as after a restart. Half of
// them speculate.
#pragma once

#include "tests/base/test_files.h"
#include "tests/engine/drafters.h"
#include "tests/engine/traces.h"

namespace fathom {

// Requests and what they get alone. Prompts grow like conversations: from common beginnings, by
// other requests' answers, and by tokens of their own.
class RequestPool {
 public:
  // expand_by: EngineOptions', of all engines.
  RequestPool(const Model& model, Context& ctx, uint64_t seed, int count, int64_t expand_by = 0)
      : expand_by_(expand_by) {
    EngineOptions options{.context_tokens = kContext, .expand_by = expand_by};
    options.prefix_cache = false;
    Engine alone(model, ctx, options);
    for (uint64_t i = 0; std::ssize(requests_) < count; ++i) {
      const auto pick = [&](uint64_t what, uint64_t n) {
        return random_below(400 + what, 1000 * seed + i, n);
      };
      Request request = some_request(100'000 * seed + i);
      if (i > 0 && pick(0, 4) > 0) {  // goes on from another one
        const size_t other = pick(1, requests_.size());
        std::vector<int32_t> begin = requests_[other].prompt;
        if (pick(2, 2) == 0)
          begin.insert(begin.end(), solo_[other].tokens.begin(), solo_[other].tokens.end());
        if (pick(3, 3) == 0) begin.resize(1 + pick(4, begin.size()));
        request.opening = requests_[other].opening;
        if (request.opening < 0 && pick(10, 3) > 0)
          request.opening = std::ssize(requests_[other].prompt);
        const std::vector<int32_t> rest = some_tokens(i, static_cast<int64_t>(pick(5, 40)));
        begin.insert(begin.end(), rest.begin(), rest.end());
        begin.resize(std::min<size_t>(begin.size(), 200));
        request.prompt = begin;
      } else {
        request.prompt.resize(std::min<size_t>(request.prompt.size(), 100));
      }
      request.max_tokens = static_cast<int64_t>(1 + pick(6, pick(7, 3) == 0 ? 60 : 12));
      if (i % kLong == 0) {  // short question, long answer: outgrows the room it started with
        request.prompt.resize(std::min<size_t>(request.prompt.size(), 40));
        request.max_tokens = static_cast<int64_t>(130 + pick(9, 60));
        request.stop_ids.clear();
      }
      if (pick(8, 6) == 0) request.cache_scope = "other";
      requests_.push_back(request);
      solo_.push_back(run_alone(alone, request));
    }
  }
  int64_t expand_by() const { return expand_by_; }
  size_t size() const { return requests_.size(); }
  static constexpr uint64_t kLong = 4;  // every fourth request has a long answer
  const Request& request(size_t i) const { return requests_[i]; }
  const Outcome& solo(size_t i) const { return solo_[i]; }
  std::vector<std::vector<int32_t>> texts() const {
    std::vector<std::vector<int32_t>> texts;
    for (size_t i = 0; i < size(); ++i) {
      texts.push_back(requests_[i].prompt);
      texts[i].insert(texts[i].end(), solo_[i].tokens.begin(), solo_[i].tokens.end());
    }
    return texts;
  }

 private:
  int64_t expand_by_;
  std::vector<Request> requests_;
  std::vector<Outcome> solo_;
};

struct SimulationCounts {
  int64_t traces = 0, requests = 0, cancelled = 0, preemptions = 0, cached_tokens = 0;
  int64_t tails = 0;                           // seen in the cache
  int64_t stored_blocks = 0, stored_rows = 0;  // loaded from a store, whole and in part
  int64_t drafted = 0, accepted = 0;
};

// Traces `first` .. `last` - 1; a few in a row share an engine, so that later ones meet a warm
// cache.
inline void simulate(const Model& model, Context& one, Context& two, const RequestPool& pool,
                     uint64_t first, uint64_t last, SimulationCounts& counts) {
  const TempDir folder;
  const Hash128 fingerprint = model_fingerprint(model);
  std::optional<PrefixStore> store;
  std::unique_ptr<Engine> engine;
  const auto end_engine = [&] {
    counts.preemptions += engine->stats().preemptions;
    counts.cached_tokens += engine->stats().cached_tokens;
    counts.drafted += engine->stats().drafted;
    counts.accepted += engine->stats().accepted;
    if (store) {
      counts.stored_rows += store->stats().alike;
      counts.stored_blocks += store->stats().loaded - store->stats().alike;
    }
    engine.reset();
    store.reset();
  };
  for (uint64_t trace = first; trace < last; ++trace) {
    const auto pick = [&](uint64_t what, uint64_t n) { return random_below(500 + what, trace, n); };
    if (engine == nullptr || pick(0, 4) == 0) {
      EngineOptions options{.context_tokens = kContext, .expand_by = pool.expand_by()};
      options.cache_tokens = kContext + static_cast<int64_t>(pick(1, pick(2, 2) == 0 ? 80 : 900));
      options.prefill_chunk = static_cast<int64_t>(1 + pick(3, pick(4, 2) == 0 ? 20 : 200));
      options.long_chunk = options.prefill_chunk + static_cast<int64_t>(pick(18, 300));
      options.max_sequences = static_cast<int64_t>(1 + pick(5, 8));
      options.prefix_cache = pick(6, 8) > 0;
      if (pick(14, 2) == 0) {
        const uint64_t kind = pick(15, 4);
        options.speculation = kind == 0                      ? Speculation::kAuto
                              : kind == 3 && model.has_mtp() ? Speculation::kBoth
                                                             : Speculation::kLookup;
        options.draft_tokens = static_cast<int64_t>(pick(16, 6));
        options.pause_drafts = pick(17, 3) == 0;
        if (kind >= 2) options.drafter = knowing_drafter(pool.texts(), kind == 2 ? 4 : 2);
      }
      if (engine != nullptr) end_engine();
      Context& ctx = pick(7, 10) == 0 ? two : one;
      engine = std::make_unique<Engine>(model, ctx, options);
      if (options.prefix_cache && pick(11, 2) == 0) {
        const uint64_t bytes = pick(12, 4) == 0 ? pick(13, 40) << 16 : uint64_t{1} << 30;
        const PrefixStoreOptions disk{folder / "cache", bytes, fingerprint, {}};
        store.emplace(disk, ctx, options.form, engine->cache().view());
        engine->use_store(&*store);
      }
    }
    std::vector<Guest> guests;
    std::vector<Outcome> expected;
    const bool growing = pick(10, 5) == 0;
    const uint64_t busy = 1 + pick(8, 30);  // all at once, or one after the other
    for (uint64_t g = 0; g < 2 + pick(9, 7); ++g) {
      const auto of_guest = [&](uint64_t what, uint64_t n) {
        return random_below(600 + 10 * g + what, trace, n);
      };
      const bool again = g > 0 && of_guest(0, 3) == 0;  // several samples, or asked twice
      size_t i = of_guest(1, pool.size());
      if (growing) i -= i % RequestPool::kLong;
      guests.push_back(again ? guests.back() : Guest{pool.request(i)});
      expected.push_back(again ? expected.back() : pool.solo(i));
      guests.back().arrival = static_cast<int64_t>(of_guest(2, busy));
      guests.back().cancel = -1;
      if (of_guest(3, 4) == 0)
        guests.back().cancel = guests.back().arrival + static_cast<int64_t>(of_guest(4, 40));
    }
    const std::vector<Outcome> found = run_trace(*engine, guests);
    expect_solo_results(guests, found, expected);
    if (testing::Test::HasFailure()) FAIL() << "trace " << trace;
    engine->cache().pool().for_each_cached([&](int64_t, const BlockPool::Content& content) {
      counts.tails += std::ssize(content.tokens) < kKeyBlock;
    });
    if (store) {
      engine->save_to_store();
      ASSERT_EQ(store->last_problem(), "") << "trace " << trace;
    }
    ++counts.traces;
    counts.requests += std::ssize(guests);
    for (const Outcome& outcome : found)
      counts.cancelled += outcome.finish == FinishReason::kCancelled;
  }
  end_engine();
}

}  // namespace fathom
