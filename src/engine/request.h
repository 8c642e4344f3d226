// What a caller asks the engine for, and what it gets back, token by token.
#pragma once

#include <cstdint>
#include <string>
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
  // Cached rows are found only by requests of the same scope (a key or user that must not learn
  // from the speed of answers what others have asked).
  std::string cache_scope = {};
  // Tokens of the prompt before the first answer in it, the same in all turns of a conversation (in
  // fast mode they choose the form of rows, step_rows.h); -1, or more than there are: all of them.
  int64_t opening = -1;
};

// Why a request's reuse of cached rows ended where it did.
enum class ReuseEnd {
  kNotStarted,    // cancelled before it ran
  kDisabled,      // the engine keeps no prefixes
  kPromptEnd,     // all full blocks were found, at least one; or all but the last token (with
                  // MTP, where rows were copied, all but the last two)
  kTokenDiffers,  // the token at position cached_tokens (with MTP, or the one behind it) is another
                  // than in what is cached; in fast mode also: its row was computed in another form
  kEvicted,       // the next block was cached once; its room was needed
  kNothingCached,  // nobody has computed what follows, or too little to be worth reading a file
};

// What a request found in the cache when it started.
struct PrefixReuse {
  int64_t cached_tokens = 0;  // of the prompt, not computed again
  ReuseEnd end = ReuseEnd::kNotStarted;
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
  PrefixReuse reuse;  // the same in all events of a request that has started
};

}  // namespace fathom
