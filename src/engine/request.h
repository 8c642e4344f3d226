// What a caller asks the engine for, and what it gets back, token by token.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace fathom {

struct SamplingParams {
  double temperature = 0;  // 0 = greedy: the largest logit, lowest id on ties
  int top_k = 0;           // 0 = off
  double top_p = 1;        // 1 = off
  double min_p = 0;        // 0 = off
  // 1 = off; logits of seen tokens divided (positive) or multiplied (negative)
  double repetition_penalty = 1;
  // subtracted once from tokens generated so far
  double presence_penalty = 0;
  // subtracted once per occurrence among the generated
  double frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>> logit_bias = {};  // added first
  uint64_t seed = 0;
  // several samples of one prompt: (seed, choice, position) keys every random number
  uint64_t choice = 0;
  int top_logprobs = -1;  // -1 = no log-probabilities; n = with the n likeliest alternatives
};

struct Request {
  std::vector<int32_t> prompt;  // at least one token
  int64_t max_tokens = 0;       // new tokens at most; >= 1
  // end-of-sequence ids; the token itself is reported, as the last one
  std::vector<int32_t> stop_ids;
  SamplingParams sampling;
};

enum class FinishReason { kNone, kStop, kLength, kCancelled, kNumericalError };

struct TokenLogprob {
  int32_t token = 0;
  float logprob = 0;
};

// One generated token of one request, or its end.
struct TokenEvent {
  uint64_t request = 0;
  int32_t token = -1;  // -1 when the request ends without a token (cancelled, numerical error)
  // natural log of the model's own distribution (temperature 1, nothing filtered), if asked for
  float logprob = 0;
  std::vector<TokenLogprob> top_logprobs;
  FinishReason finish = FinishReason::kNone;  // not kNone: this was the last event of the request
};

}  // namespace fathom
