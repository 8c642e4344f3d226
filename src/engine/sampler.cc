#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/random.h"

namespace fathom {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// So many tokens are nearly always enough for top_p; up to here a heap picks them faster than
// nth_element.
constexpr size_t kFew = 256;

bool likelier(const TokenLogprob& a, const TokenLogprob& b) {
  return a.logprob != b.logprob ? a.logprob > b.logprob : a.token < b.token;
}

// Index of the largest logit, the lowest on ties; absent if there is NaN, +inf or nothing above
// -inf.
std::optional<int32_t> argmax(std::span<const float> logits) {
  float max = -kInfinity;
  std::optional<int32_t> best;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] < kInfinity)) return std::nullopt;
    if (logits[i] > max) {
      max = logits[i];
      best = static_cast<int32_t>(i);
    }
  }
  return best;
}

void check_range(const char* field, double found, double low, double high) {
  if (!(found >= low && found <= high))
    fail("request: {}: found {}, expected {} to {}", field, found, low, high);
}

}  // namespace

Sampler::Sampler(const SamplingParams& params, std::span<const int32_t> prompt, int64_t max_tokens)
    : params_(params) {
  if (counts_tokens()) {
    std::vector<int32_t> ids(prompt.begin(), prompt.end());
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    seen_.reserve(ids.size() + static_cast<size_t>(max_tokens));
    for (const int32_t id : ids) seen_.push_back({id, 0});
    prompt_ids_ = seen_.size();
  }
  adjusted_.reserve(params_.logit_bias.size() + seen_.capacity());
}

void Sampler::remember(int32_t token) {
  if (!counts_tokens()) return;
  for (Seen& seen : seen_) {
    if (seen.token == token) {
      ++seen.generated;
      return;
    }
  }
  seen_.push_back({token, 1});
}

void Sampler::forget(int32_t token) {
  if (!counts_tokens()) return;
  const auto seen =
      std::find_if(seen_.begin(), seen_.end(), [&](const Seen& one) { return one.token == token; });
  FATHOM_CHECK(seen != seen_.end() && seen->generated > 0, token);
  const bool of_prompt = seen - seen_.begin() < static_cast<ptrdiff_t>(prompt_ids_);
  if (--seen->generated == 0 && !of_prompt) seen_.pop_back();  // the last that came
}

bool Sampler::counts_tokens() const {
  return params_.repetition_penalty != 1 || params_.presence_penalty != 0 ||
         params_.frequency_penalty != 0;
}

std::optional<int32_t> Sampler::pick(std::span<float> logits, int64_t position) {
  adjust(logits);
  std::optional<int32_t> token = argmax(logits);
  if (token && params_.temperature > 0) {
    const double uniform = random_uniform({params_.seed, RandomPurpose::kSampling, params_.choice},
                                          static_cast<uint64_t>(position));
    token = draw(logits, logits[static_cast<size_t>(*token)], uniform);
  }
  for (size_t i = adjusted_.size(); i-- > 0;)
    logits[static_cast<size_t>(adjusted_[i].token)] = adjusted_[i].logprob;
  return token;
}

std::optional<SampledToken> Sampler::sample(std::span<float> logits, int64_t position,
                                            float log_sum_exp) {
  const std::optional<int32_t> token = pick(logits, position);
  if (!token) return std::nullopt;

  SampledToken sampled{*token, 0, {}};
  if (wants_logprobs()) {
    const auto logprob = [&](float logit) {
      return static_cast<float>(static_cast<double>(logit) - log_sum_exp);
    };
    sampled.logprob = logprob(logits[static_cast<size_t>(*token)]);
    sampled.top_logprobs.resize(std::min(static_cast<size_t>(params_.top_logprobs), logits.size()));
    fill_candidates(logits, -kInfinity);
    std::partial_sort_copy(candidates_.begin(), candidates_.end(), sampled.top_logprobs.begin(),
                           sampled.top_logprobs.end(), likelier);
    for (TokenLogprob& top : sampled.top_logprobs) top.logprob = logprob(top.logprob);
  }
  return sampled;
}

void Sampler::adjust(std::span<float> logits) {
  adjusted_.clear();
  const auto change = [&](int32_t id, auto f) {
    float& logit = logits[static_cast<size_t>(id)];
    adjusted_.push_back({id, logit});
    logit = static_cast<float>(f(static_cast<double>(logit)));
  };
  for (const auto& [id, bias] : params_.logit_bias)
    change(id, [b = bias](double x) { return x + b; });
  for (const auto& [id, count] : seen_) {
    change(id, [&, n = count](double x) {
      x = x > 0 ? x / params_.repetition_penalty : x * params_.repetition_penalty;
      return x - (n > 0 ? params_.presence_penalty : 0) - params_.frequency_penalty * n;
    });
  }
}

int32_t Sampler::draw(std::span<const float> logits, float max, double uniform) {
  if (params_.top_k > 0 || params_.top_p < 1 || params_.min_p > 0)
    return draw_filtered(logits, max, uniform);
  const auto weight = [&](float x) {
    return std::exp((static_cast<double>(x) - max) / params_.temperature);
  };
  double total = 0;
  for (const float x : logits) total += weight(x);
  // The same sums again: they reach total, which is above uniform * total, so the walk ends in
  // range.
  double sum = 0;
  size_t id = 0;
  while ((sum += weight(logits[id])) <= uniform * total) ++id;
  return static_cast<int32_t>(id);
}

void Sampler::fill_candidates(std::span<const float> logits, float smallest) {
  candidates_.reserve(logits.size());
  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= smallest) candidates_.push_back({static_cast<int32_t>(i), logits[i]});
  }
}

// In the order of likelier() every filter keeps a beginning; the shortest beginning is what all of
// them leave.
int32_t Sampler::draw_filtered(std::span<const float> logits, float max, double uniform) {
  // 1 for the likeliest.
  const auto weight = [&](float x) {
    return std::exp((static_cast<double>(x) - max) / params_.temperature);
  };
  size_t sorted = 0;
  const auto sort_until = [&](size_t end) {  // candidates_[0 : end] become the likeliest, in order
    const auto from = candidates_.begin() + static_cast<ptrdiff_t>(sorted);
    const auto to = candidates_.begin() + static_cast<ptrdiff_t>(end);
    if (end - sorted <= kFew) {
      std::partial_sort(from, to, candidates_.end(), likelier);
    } else {
      std::nth_element(from, to, candidates_.end(), likelier);
      std::sort(from, to, likelier);
    }
    sorted = end;
  };

  size_t limit;      // tokens that top_k leaves
  double total = 0;  // their weight, what top_p refers to
  if (params_.top_k > 0) {
    fill_candidates(logits, -kInfinity);
    limit = std::min(static_cast<size_t>(params_.top_k), candidates_.size());
    sort_until(limit);
    for (size_t i = 0; i < limit; ++i) total += weight(candidates_[i].logprob);
  } else {
    for (const float x : logits) total += weight(x);
    // Only what can pass is kept: a token below (1 - top_p) of the average has, with all behind it,
    // less than 1 - top_p, so top_p was reached before it.
    const double smallest =
        std::max(params_.min_p, (1 - params_.top_p) * total / static_cast<double>(logits.size()));
    fill_candidates(
        logits, std::nextafter(static_cast<float>(max + params_.temperature * std::log(smallest)),
                               -kInfinity));
    limit = candidates_.size();
  }

  const double enough = params_.top_p < 1 ? params_.top_p * total : kInfinity;
  double kept = 0;
  for (size_t count = 0; count < limit; ++count) {
    if (count == sorted) sort_until(std::min(limit, std::max(kFew, 4 * sorted)));
    const double w = weight(candidates_[count].logprob);
    if (count > 0 && (kept >= enough || w < params_.min_p)) break;
    kept += w;
  }
  double sum = 0;
  size_t i = 0;
  while ((sum += weight(candidates_[i].logprob)) <= uniform * kept) ++i;
  return candidates_[i].token;
}

void validate_sampling(const SamplingParams& params, int64_t vocab_size) {
  check_range("temperature", params.temperature, 0, 100);
  check_range("top_k", params.top_k, 0, std::numeric_limits<int>::max());
  check_range("top_p", params.top_p, 0, 1);
  check_range("min_p", params.min_p, 0, 1);
  check_range("repetition_penalty", params.repetition_penalty, 0.01, 100);
  check_range("presence_penalty", params.presence_penalty, -2, 2);
  check_range("frequency_penalty", params.frequency_penalty, -2, 2);
  check_range("top_logprobs", params.top_logprobs, -1, static_cast<double>(Limits{}.top_logprobs));
  for (const auto& [id, bias] : params.logit_bias) {
    if (id < 0 || id >= vocab_size) {
      fail("request: logit_bias: found token {}, expected 0 to {} (vocab_size)", id,
           vocab_size - 1);
    }
    check_range("logit_bias", bias, -100, 100);
  }
}

}  // namespace fathom
