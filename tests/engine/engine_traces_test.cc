// label: slow
// The engine against solo runs: whatever else is going on, a request's tokens and log-probabilities
// are the same bits.
#include <gtest/gtest.h>

#include "tests/base/test_name.h"
#include "tests/engine/traces.h"

namespace fathom {
namespace {

class EveryModel : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Tiny, EveryModel, testing::ValuesIn(kTinyModels), kNamedByParameter);

// Eight requests, each compared with itself alone, for each instruction set, prefill chunk and
// number of threads, in all forms.
TEST_P(EveryModel, NeighboursChunksAndThreadsChangeNoBit) {
  const Model model = load_tiny(GetParam());
  struct Kind {
    EngineOptions options;
    std::vector<Guest> guests;
    std::vector<Outcome> solo;
  };
  uint64_t round = 0;
  for (const Isa isa : instruction_sets()) {
    Context alone(1, isa);
    std::vector<Kind> kinds;
    for (const MlaForm form : {MlaForm::kAbsorbed, MlaForm::kExpanded}) {
      for (const DType cache_dtype : {DType::kF32, DType::kBF16, DType::kI8}) {
        if (!takes_cache_dtype(model.config(), cache_dtype)) continue;
        Kind& kind = kinds.emplace_back(Kind{{.context_tokens = kContext,
                                              .max_sequences = 8,
                                              .cache_dtype = cache_dtype,
                                              .form = form},
                                             {},
                                             {}});
        for (uint64_t g = 0; g < 8; ++g) {
          kind.guests.push_back({some_request(8 * kinds.size() + g)});
          kind.solo.push_back(run_alone(model, alone, kind.options, kind.guests.back().request));
        }
      }
    }
    for (const int threads : {1, 2, 3}) {
      Context ctx(threads, isa);
      for (const int64_t chunk : {1, 3, 7, 64, 512}) {
        Kind& kind = kinds[round % kinds.size()];
        EngineOptions shared = kind.options;
        shared.prefill_chunk = chunk;
        shared.long_chunk = round % 3 == 0 ? chunk : 0;
        shared.cache_tokens = 8 * (kContext + 64);
        for (uint64_t g = 0; g < 8; ++g) {
          const auto pick = [&](uint64_t what, uint64_t n) {
            return static_cast<int64_t>(random_below(8 * what + g, round, n));
          };
          Guest& guest = kind.guests[g];
          guest.arrival = pick(0, 12);
          guest.cancel = pick(1, 4) == 0 ? guest.arrival + pick(2, 20) : -1;
        }
        Engine engine(model, ctx, shared);
        expect_solo_results(kind.guests, run_trace(engine, kind.guests), kind.solo);
        if (HasFailure())
          FAIL() << isa_name(isa) << ", kind " << round % kinds.size() << ", " << threads
                 << " threads, chunk " << chunk;
        ++round;
      }
    }
  }
}

// Engines with little room: few places, few blocks, so that requests wait, and blocks go from hand
// to hand with what they held.
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
      const auto pick = [&](uint64_t what, uint64_t n) {
        return random_below(20 + what, trace, n);
      };
      const EngineOptions options{kContext, static_cast<int64_t>(kContext + pick(0, 600)),
                                  static_cast<int64_t>(1 + pick(1, 100)),
                                  static_cast<int64_t>(1 + pick(2, 6))};
      std::vector<Guest> guests;
      std::vector<Outcome> expected;
      for (uint64_t g = 0; g < 1 + pick(3, 10); ++g) {
        const uint64_t i = random_below(30 + g, trace, requests.size());
        const auto arrival = static_cast<int64_t>(random_below(50 + g, trace, 40));
        const bool cancelled = random_below(70 + g, trace, 3) == 0;
        guests.push_back(
            {requests[i], arrival,
             cancelled ? arrival + static_cast<int64_t>(random_below(90 + g, trace, 30)) : -1});
        expected.push_back(solo[i]);
      }
      Engine engine(model, trace % 2 == 0 ? one : two, options);
      expect_solo_results(guests, run_trace(engine, guests), expected);
      if (HasFailure()) FAIL() << name << ", trace " << trace;
    }
  }
}

TEST(Engine, SixtyFourRequestsAtRandomTimesGetWhatTheyGetAlone) {
  for (const char* name : {"v3", "qwen2"}) {
    const Model model = load_tiny(name);
    Context ctx(2);
    EngineOptions options{.context_tokens = kContext};
    options.prefix_cache = false;
    Engine alone(model, ctx, options);
    options.cache_tokens = 10 * kContext;
    options.prefill_chunk = 100;
    options.max_sequences = 16;
    Engine engine(model, ctx, options);
    std::vector<Guest> guests;
    std::vector<Outcome> solo;
    for (uint64_t i = 0; i < 64; ++i) {
      guests.push_back({some_request(7000 + i)});
      guests.back().arrival = static_cast<int64_t>(random_below(7, i, 40));
      solo.push_back(run_alone(alone, guests.back().request));
    }
    const std::vector<Outcome> found = run_trace(engine, guests);
    expect_solo_results(guests, found, solo);
    int64_t tokens = 0;  // in 40 steps of arrivals: many are there at once
    for (const Outcome& outcome : found) tokens += std::ssize(outcome.tokens);
    EXPECT_GT(tokens, 600) << name;
  }
}

}  // namespace
}  // namespace fathom
