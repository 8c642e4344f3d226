#include "train/evaluation.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"
#include "base/utf8.h"
#include "engine/engine.h"

namespace fathom {
namespace {

constexpr int64_t kMostSequences = 256;

struct Questions {
  std::vector<Problem> problems;
  std::vector<std::vector<int32_t>> prompts;
  int64_t longest = 0;  // prompt, in tokens
};

Questions ask(const Tokenizer& tokenizer, ChatFormat format, const Task& task,
              const EvaluationOptions& o) {
  Questions q;
  for (int64_t i = 0; i < o.problems; ++i) {
    q.problems.push_back(task.problem(o.seed, static_cast<uint64_t>(i), o.split));
    const ChatMessage user{ChatMessage::Role::kUser, q.problems.back().question, {}, {}};
    q.prompts.push_back(encode_chat(tokenizer, format, {&user, 1}, {}));
    q.longest = std::max(q.longest, std::ssize(q.prompts.back()));
  }
  return q;
}

struct Answer {
  size_t problem = 0;
  int64_t sample = 0;  // 0 = greedy, 1 .. samples
  std::vector<int32_t> tokens;
  FinishReason finish = FinishReason::kNone;
};

}  // namespace

std::string score_text(const EvaluationResult& r) {
  std::string text = fmt::format("{:.1f} % solved greedily", 100 * r.greedy);
  if (r.samples > 0)
    text += fmt::format(", pass@1 {:.1f} ± {:.1f} %", 100 * r.pass_1, 100 * r.pass_1_error);
  if (r.pass_k.size() > 1)
    text += fmt::format(", pass@{} {:.1f} %", r.pass_k.back().first, 100 * r.pass_k.back().second);
  text += fmt::format("; {:.0f} tokens an answer, {:.1f} % cut", r.mean_tokens, 100 * r.truncated);
  if (r.not_finite > 0)
    text += fmt::format("; {} answers ended by logits that are not finite", r.not_finite);
  return text;
}

int64_t longest_answer(int64_t context_tokens, const Tokenizer& tokenizer, ChatFormat format,
                       const Task& task, const EvaluationOptions& options) {
  return context_tokens - ask(tokenizer, format, task, options).longest;
}

EvaluationResult evaluate_task(Context& ctx, const Model& model, const Tokenizer& tokenizer,
                               ChatFormat format, const Task& task, const EvaluationOptions& o,
                               const std::function<bool()>& stop) {
  const auto [problems, prompts, longest] = ask(tokenizer, format, task, o);
  EngineOptions engine_options;
  engine_options.context_tokens = longest + o.max_tokens;
  engine_options.max_sequences = std::min(kMostSequences, o.problems * (o.samples + 1));
  engine_options.cache_tokens = engine_options.max_sequences * engine_options.context_tokens;
  engine_options.prefill_chunk = engine_options.long_chunk = 2048;
  engine_options.cache_dtype = o.cache_dtype.value_or(default_cache_dtype(model));
  Engine engine(model, ctx, engine_options);

  std::map<uint64_t, Answer> answers;
  for (size_t i = 0; i < problems.size(); ++i) {
    for (int64_t sample = 0; sample <= o.samples; ++sample) {
      SamplingParams sampling;
      sampling.temperature = sample == 0 ? 0 : o.temperature;
      sampling.seed = o.seed * 1000003 + i;
      sampling.choice = static_cast<uint64_t>(sample);
      const uint64_t id = engine.submit({prompts[i], o.max_tokens, tokenizer.eos_ids(), sampling});
      answers[id] = {i, sample, {}, FinishReason::kNone};
    }
  }
  std::vector<TokenEvent> events;
  while (!engine.idle() && !(stop && stop())) {
    events.clear();
    engine.step(events);
    for (const TokenEvent& event : events) {
      Answer& answer = answers[event.request];
      if (event.token >= 0) answer.tokens.push_back(event.token);
      answer.finish = event.finish;
    }
  }

  EvaluationResult r;
  r.samples = o.samples;
  std::vector<int64_t> right(problems.size(), 0), finished(problems.size(), 0);
  std::vector<bool> greedy_right(problems.size(), false);
  int64_t greedy = 0, total_tokens = 0, cut = 0, count = 0;
  for (const auto& [id, answer] : answers) {
    if (answer.finish == FinishReason::kNone) continue;
    const std::string completion = tokenizer.decode(answer.tokens);
    std::string_view text = completion;
    if (answer.finish == FinishReason::kStop)
      text.remove_suffix(tokenizer.token_bytes(answer.tokens.back()).size());
    // A thought without an end is no answer.
    const bool ended =
        !thinking_marks(format, {}) || text.find("</think>") != std::string_view::npos;
    const Verdict verdict =
        task.verify(problems[answer.problem], ended ? answer_of(text) : std::string_view());
    ++count;
    ++finished[answer.problem];
    total_tokens += static_cast<int64_t>(answer.tokens.size());
    cut += answer.finish == FinishReason::kLength ? 1 : 0;
    r.not_finite += answer.finish == FinishReason::kNumericalError ? 1 : 0;
    if (answer.sample > 0) {
      right[answer.problem] += verdict.correct() ? 1 : 0;
    } else {
      greedy_right[answer.problem] = verdict.correct();
      if (static_cast<int64_t>(r.examples.size()) < o.examples) {
        r.examples.push_back({problems[answer.problem].question, std::string(text), verdict});
      }
    }
  }
  double sum = 0, squares = 0;
  std::vector<int64_t> complete;
  for (size_t i = 0; i < problems.size(); ++i) {
    if (finished[i] != o.samples + 1) continue;  // stopped before
    complete.push_back(right[i]);
    greedy += greedy_right[i] ? 1 : 0;
  }
  r.problems = static_cast<int64_t>(complete.size());
  if (r.problems == 0) return r;
  const auto n = static_cast<double>(r.problems);
  r.greedy = static_cast<double>(greedy) / n;
  r.mean_tokens = static_cast<double>(total_tokens) / static_cast<double>(count);
  r.truncated = static_cast<double>(cut) / static_cast<double>(count);
  if (o.samples == 0) return r;
  for (const int64_t c : complete) {
    const double share = static_cast<double>(c) / static_cast<double>(o.samples);
    sum += share, squares += share * share;
  }
  r.pass_1 = sum / n;
  r.pass_1_error = std::sqrt(std::max(0.0, squares / n - r.pass_1 * r.pass_1) / n);
  for (int64_t k = 1; k <= o.samples; k *= 2) {
    double pass = 0;
    for (const int64_t c : complete) pass += pass_at_k(o.samples, c, k);
    r.pass_k.emplace_back(k, pass / n);
  }
  return r;
}

std::string continue_text(Context& ctx, const Model& model, const Tokenizer& tokenizer,
                          std::span<const int32_t> prompt, int64_t max_tokens,
                          const SamplingParams& sampling, const std::function<bool()>& stop) {
  const int64_t room = model.config().max_position_embeddings - std::ssize(prompt);
  max_tokens = std::min(max_tokens, room);
  if (max_tokens < 1) return "";
  EngineOptions options;
  options.context_tokens = std::ssize(prompt) + max_tokens;
  options.max_sequences = 1;
  options.cache_dtype = default_cache_dtype(model);
  Engine engine(model, ctx, options);
  engine.submit({{prompt.begin(), prompt.end()}, max_tokens, tokenizer.eos_ids(), sampling});
  std::vector<int32_t> tokens;
  std::vector<TokenEvent> events;
  while (!engine.idle() && !(stop && stop())) {
    events.clear();
    engine.step(events);
    for (const TokenEvent& event : events) {
      if (event.token >= 0 && event.finish != FinishReason::kStop) tokens.push_back(event.token);
    }
  }
  return replace_invalid_utf8(tokenizer.decode(tokens));
}

}  // namespace fathom
