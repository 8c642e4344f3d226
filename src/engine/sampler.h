// Logits to the next token.
//
// Order: logit_bias, repetition, presence and frequency penalties, (temperature 0: argmax),
// temperature, top_k, top_p, min_p, draw. The draw is a function of (seed, choice, position) only
// (base/random.h):
// neighbours, threads and resumption cannot change it.
//
// With p = softmax(logits / temperature) in double, tokens ordered by logit, ties by id:
//   top_k keeps the first k; top_p, of what is left and renormalised, the shortest beginning whose
//   sum
//   reaches top_p, at least one token; min_p those with p >= min_p * the largest p. The draw runs
//   over what
//   is left, in that order; without a filter, by id.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/request.h"

namespace fathom {

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;  // logit - log_sum_exp, before any penalty or filter; 0 unless asked for
  std::vector<TokenLogprob> top_logprobs;  // likeliest first
};

class Sampler {
 public:
  // prompt: for the repetition penalty, which counts prompt and generated tokens. Room for
  // max_tokens tokens to remember without allocating. REQUIRES: validate_sampling passed.
  Sampler(const SamplingParams& params, std::span<const int32_t> prompt, int64_t max_tokens = 0);

  // `position` = number of tokens before the new one. log_sum_exp: that of the logits
  // (kernels/softmax.h, the one definition that training and evaluation share); read only if
  // log-probabilities are wanted. logits [vocab_size] are scratch meanwhile and come back as they
  // were. Absent if any logit is NaN or +inf, or if all are -inf. Changes nothing that the next
  // sample depends on, so it may be repeated.
  std::optional<SampledToken> sample(std::span<float> logits, int64_t position, float log_sum_exp);

  // Its token alone.
  std::optional<int32_t> pick(std::span<float> logits, int64_t position);

  // The token was taken: it counts for the penalties from now on.
  void remember(int32_t token);
  // As if the last remember(), which was of this token, had not been.
  void forget(int32_t token);

  bool wants_logprobs() const { return params_.top_logprobs >= 0; }

 private:
  bool counts_tokens() const;
  void adjust(std::span<float> logits);
  int32_t draw(std::span<const float> logits, float max, double uniform);
  int32_t draw_filtered(std::span<const float> logits, float max, double uniform);
  void fill_candidates(std::span<const float> logits, float smallest);

  SamplingParams params_;
  struct Seen {
    int32_t token = 0;
    int32_t generated = 0;  // 0 = in the prompt only
  };
  std::vector<Seen> seen_;                // each id once; empty without penalties
  size_t prompt_ids_ = 0;                 // the first of them are of the prompt
  std::vector<TokenLogprob> adjusted_;    // logits as they were before bias and penalties
  std::vector<TokenLogprob> candidates_;  // scratch of the filters: ids with their logits
};

// Throws "request: temperature: found -1, expected 0 to ..." for values out of range (top_logprobs
// above
// Limits::top_logprobs and so on).
void validate_sampling(const SamplingParams& params, int64_t vocab_size);

}  // namespace fathom
