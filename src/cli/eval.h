// `fathom eval MODEL --task NAME`: how many of a task's held-out problems the model solves, judged
// by the task's own verifier (train/evaluation.h); or
// `fathom eval MODEL --perplexity FILE`: how well the model predicts a text.
//
// The text is tokenised once, special tokens off. Windows of `ctx` tokens follow each other every
// `stride` tokens (default: no overlap); each is computed afresh, and scores those of its tokens
// that no window before it scored. If the model wants a BOS, each window begins with one in
// addition, and its first token counts; else the very first token of the text has no prediction and
// does not count.
// With overlap a token is judged by at least ctx - stride tokens of context. Perplexity = exp(nll /
// tokens scored); bits per byte = nll / ln 2 / bytes scored, which compares models of different
// vocabularies. Sums run in double in the order of the text.
//
// With --kl REFERENCE a second model, as a rule the one that the first was quantised from, computes
// the same windows, and of each token that is scored KL(reference || model) = sum_v p(v) ln(p(v) /
// q(v)) over the vocabulary is told: its mean, median, 99th percentile and largest value, how often
// both find the same token likeliest, and both perplexities.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cli/output.h"

namespace fathom {

struct EvalOptions {
  OutputOptions output;
  std::string model;
  std::string perplexity;  // the text file; or
  std::string kl;          // with it: the model to compare with
  std::string kl_cache;    // that model's type of cache; empty: the same
  std::string task;        // the task, and how it is sampled
  int64_t problems = 200, samples = 0, max_tokens = 256;
  double temperature = 1;
  uint64_t seed = 0;
  int64_t context_tokens = 0;  // 0 = min(max_position_embeddings, 2048)
  int64_t stride = 0;          // 0 = the window
  int threads = 0;
  std::string cache;
  bool json = false;
};

int run_eval(const EvalOptions& options);

// The windows over `tokens` tokens: [begin, end) computed, of which [score, end) are scored.
// Without BOS nothing inside a window predicts its first token, so windows overlap by at least that
// one.
struct EvalWindow {
  int64_t begin, score, end;
};
std::vector<EvalWindow> eval_windows(int64_t tokens, int64_t window, int64_t stride, bool bos);

// KL(p || q) of the softmax of two rows of logits, in double: 0 for equal rows, never negative but
// for rounding (1e-12 or so).
double kl_divergence(std::span<const float> p_logits, std::span<const float> q_logits);

// The smallest value that at least `share` of the values do not exceed. REQUIRES: some values.
double percentile(std::vector<double> values, double share);

// -log softmax(logits)[target], in double.
double negative_log_likelihood(std::span<const float> logits, int32_t target);

}  // namespace fathom
