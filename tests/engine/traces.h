// Requests of every shape, what came out for them, and traces: requests that come and are cancelled
// while others run.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>

#include "base/random.h"
#include "engine/engine.h"
#include "tests/engine/tiny_model.h"
#include "tests/reference/test_rows.h"

namespace fathom {

inline uint64_t random_below(uint64_t stream, uint64_t i, uint64_t n) {
  return random_bits({.seed = 11, .sequence = stream}, i) % n;
}

using reference::instruction_sets;

// All that came out for one request.
struct Outcome {
  std::vector<int32_t> tokens;
  std::vector<uint32_t> logprob_bits;  // of each token, then of its alternatives
  std::vector<int32_t> alternatives;
  FinishReason finish = FinishReason::kNone;
  bool operator==(const Outcome&) const = default;
};

inline void add(Outcome& outcome, const TokenEvent& event) {
  ASSERT_EQ(outcome.finish, FinishReason::kNone) << "an event after the last";
  outcome.finish = event.finish;
  if (event.token < 0) {
    ASSERT_TRUE(event.finish == FinishReason::kCancelled ||
                event.finish == FinishReason::kNumericalError);
    return;
  }
  outcome.tokens.push_back(event.token);
  outcome.logprob_bits.push_back(std::bit_cast<uint32_t>(event.logprob));
  for (const TokenLogprob& top : event.top_logprobs) {
    outcome.alternatives.push_back(top.token);
    outcome.logprob_bits.push_back(std::bit_cast<uint32_t>(top.logprob));
  }
}

inline bool is_beginning(const Outcome& part, const Outcome& whole) {
  return part.tokens.size() <= whole.tokens.size() &&
         std::equal(part.tokens.begin(), part.tokens.end(), whole.tokens.begin()) &&
         std::equal(part.logprob_bits.begin(), part.logprob_bits.end(), whole.logprob_bits.begin());
}

inline std::vector<int32_t> some_tokens(uint64_t stream, int64_t count) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < count; ++i)
    ids.push_back(static_cast<int32_t>(2 + random_below(stream, static_cast<uint64_t>(i), 200)));
  return ids;
}

// One of three ways to sample: with a penalty, among 5, within 0.9.
inline SamplingParams some_sampling(uint64_t i) {
  return {.temperature = 1,
          .top_k = i == 1 ? 5 : 0,
          .top_p = i == 2 ? 0.9 : 1,
          .frequency_penalty = i == 0 ? 0.5 : 0};
}

// A request of any shape: one token or several key blocks, greedy or sampled, with and without
// penalties and log-probabilities.
inline Request some_request(uint64_t i) {
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

inline constexpr int64_t kContext = 320;  // room for any of them

inline Outcome run_alone(Engine& engine, const Request& request) {
  Outcome outcome;
  engine.submit(request);
  std::vector<TokenEvent> events;
  while (engine.step(events)) {
  }
  for (const TokenEvent& event : events) add(outcome, event);
  EXPECT_NE(outcome.finish, FinishReason::kNone);
  return outcome;
}

inline Outcome run_alone(const Model& model, Context& ctx, EngineOptions options,
                         const Request& request) {
  Engine engine(model, ctx, options);
  return run_alone(engine, request);
}

// One guest of a trace: comes before step `arrival`, is cancelled before step `cancel` unless it
// has finished.
struct Guest {
  Request request;
  int64_t arrival = 0;
  int64_t cancel = -1;
};

inline std::vector<Outcome> run_trace(Engine& engine, const std::vector<Guest>& guests) {
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
    EXPECT_TRUE(busy || engine.idle());
    engine.check();
    for (const TokenEvent& event : events) add(outcomes[guest_of.at(event.request)], event);
  }
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.cache().pool().in_use(), 0) << "a block was lost";
  return outcomes;
}

inline void expect_solo_results(const std::vector<Guest>& guests, const std::vector<Outcome>& found,
                                const std::vector<Outcome>& solo) {
  for (size_t g = 0; g < guests.size(); ++g) {
    if (found[g].finish == FinishReason::kCancelled) {
      EXPECT_GE(guests[g].cancel, 0);
      EXPECT_TRUE(is_beginning(found[g], solo[g])) << "guest " << g;
    } else {
      EXPECT_EQ(found[g], solo[g])
          << "guest " << g << ", prompt of " << guests[g].request.prompt.size();
    }
  }
}

}  // namespace fathom
