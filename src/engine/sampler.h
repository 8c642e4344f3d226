// Logits to the next token.
//
// Order: logit_bias, repetition, presence and frequency penalties, (temperature 0: argmax), temperature, top_k, top_p, min_p, draw.
// The draw is a function of (seed, choice, position) only (base/random.h): neighbours, threads and resumption cannot change it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "engine/request.h"

namespace fathom {

struct SampledToken {
  int32_t token = 0;
  float logprob = 0;
  std::vector<TokenLogprob> top_logprobs;  // likeliest first
};

class Sampler {
 public:
  // prompt: for the repetition penalty, which counts prompt and generated tokens.
  Sampler(const SamplingParams& params, std::span<const int32_t> prompt, int64_t vocab_size);

  // `position` = number of tokens before the new one. logits [vocab_size] are overwritten. Absent if any logit is NaN or +inf, or if all
  // are -inf. Remembers the token for the penalties.
  std::optional<SampledToken> sample(std::span<float> logits, int64_t position);

 private:
  SamplingParams params_;
  std::vector<int32_t> generated_count_;   // per id
  std::vector<bool> seen_;                 // per id, prompt or generated
  std::vector<TokenLogprob> candidates_;   // scratch, sized once
};

// Throws "temperature: found -1, expected 0 to ..." for values out of range (top_logprobs above Limits::top_logprobs and so on).
void validate_sampling(const SamplingParams& params, int64_t vocab_size);

}  // namespace fathom
