// How well a model solves a task's held-out problems, judged by the task's own verifier: one greedy
// answer each, and n samples for pass@1 and pass@k. All answers of all problems go through the
// engine together. And, where nothing judges, how a model goes on with a text.
#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/request.h"
#include "model/model.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"
#include "train/tasks.h"

namespace fathom {

struct EvaluationOptions {
  int64_t problems = 100;
  int64_t samples = 0;  // per problem beside the greedy answer; 0 = greedy only
  double temperature = 1;
  int64_t max_tokens = 256;
  std::optional<DType> cache_dtype;  // of the engine's cache; absent: the model's default
  uint64_t seed = 0;
  Split split = Split::kTest;
  int64_t examples = 3;  // answers to keep
};

struct AnsweredProblem {
  std::string question, completion;
  Verdict verdict;
};

struct EvaluationResult {
  int64_t problems = 0, samples = 0;
  double greedy = 0;  // share solved
  double pass_1 = 0;  // mean over samples; its standard error over problems
  double pass_1_error = 0;
  std::vector<std::pair<int64_t, double>> pass_k;  // k = 1, 2, 4, ... up to samples
  double mean_tokens = 0;                          // of an answer
  double truncated = 0;                            // share of answers cut by max_tokens
  int64_t not_finite = 0;  // answers that ended because the model's logits were not finite
  std::vector<AnsweredProblem> examples;  // greedy ones
};

// "13.5 % solved greedily, pass@1 22.8 ± 1.2 %, pass@16 84.5 %; 87 tokens an answer, 0.0 % cut"
// and what ended because logits were not finite.
std::string score_text(const EvaluationResult& result);

// The most tokens an answer can have behind the longest of these questions, in a context of
// `context_tokens`; below 1 if that question alone fills it.
int64_t longest_answer(int64_t context_tokens, const Tokenizer& tokenizer, ChatFormat format,
                       const Task& task, const EvaluationOptions& options);

// Throws if max_tokens exceeds longest_answer() of the model's context. `stop` is asked between engine steps;
// true ends with what is there (problems then counts only the finished).
EvaluationResult evaluate_task(Context& ctx, const Model& model, const Tokenizer& tokenizer,
                               ChatFormat format, const Task& task,
                               const EvaluationOptions& options,
                               const std::function<bool()>& stop = {});

// What the model writes after `prompt`: up to max_tokens tokens, fewer where its context or the
// sentence ends, as valid UTF-8. Sampled with (seed, choice). `stop` as above. REQUIRES: prompt not
// empty, max_tokens >= 1.
std::string continue_text(Context& ctx, const Model& model, const Tokenizer& tokenizer,
                          std::span<const int32_t> prompt, int64_t max_tokens,
                          const SamplingParams& sampling, const std::function<bool()>& stop = {});

}  // namespace fathom
