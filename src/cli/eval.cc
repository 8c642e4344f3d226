#include "cli/eval.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/clock.h"
#include "base/error.h"
#include "cli/ids.h"
#include "cli/interrupt.h"
#include "cli/models.h"
#include "cli/progress.h"
#include "engine/engine.h"
#include "engine/feeder.h"
#include "train/evaluation.h"

namespace fathom {
namespace {

constexpr int64_t kChunk = 128;  // rows whose logits exist at once

struct Score {
  double nll = 0;
  int64_t tokens = 0;
  uint64_t bytes = 0;
};

class Scorer {
 public:
  Scorer(const OpenedModel& opened, Context& ctx, DType cache_dtype)
      : opened_(opened),
        ctx_(ctx),
        cache_dtype_(cache_dtype),
        logits_(static_cast<size_t>(kChunk * vocab_size())) {}

  // Adds the scored tokens of one window.
  void add(std::span<const int32_t> text, const EvalWindow& window, std::optional<int32_t> bos,
           Score& score) {
    std::vector<int32_t> sequence;
    if (bos) sequence.push_back(*bos);
    sequence.insert(sequence.end(), text.begin() + window.begin, text.begin() + window.end);
    // the last token predicts nothing here
    const auto rows = static_cast<int64_t>(sequence.size()) - 1;
    // predicts the token at window.score
    const int64_t first_row = window.score - window.begin + (bos ? 0 : -1);
    if (rows < 1) return;
    Feeder feeder(opened_.model, ctx_, rows, cache_dtype_, MlaForm::kAbsorbed);
    for (int64_t begin = 0; begin < rows; begin += kChunk) {
      const int64_t count = std::min(kChunk, rows - begin);
      feeder.feed(
          std::span(sequence).subspan(static_cast<size_t>(begin), static_cast<size_t>(count)),
          {logits_.data(), count, vocab_size(), vocab_size()});
      for (int64_t row = std::max(begin, first_row); row < begin + count; ++row) {
        const int32_t target = sequence[static_cast<size_t>(row + 1)];
        const double nll = negative_log_likelihood(
            {logits_.data() + (row - begin) * vocab_size(), static_cast<size_t>(vocab_size())},
            target);
        if (!std::isfinite(nll))
          throw Error(ExitCode::kDiverged,
                      fmt::format("token {} of the text: log-likelihood is not finite",
                                  window.begin + row));
        score.nll += nll;
        score.bytes += opened_.tokenizer.token_bytes(target).size();
        ++score.tokens;
      }
      check_interrupt();
    }
  }

 private:
  int64_t vocab_size() const { return opened_.model.config().vocab_size; }

  const OpenedModel& opened_;
  Context& ctx_;
  DType cache_dtype_;
  std::vector<float> logits_;  // [kChunk, vocab_size]
};

}  // namespace

std::vector<EvalWindow> eval_windows(int64_t tokens, int64_t window, int64_t stride, bool bos) {
  // tokens at the begin of a window that nothing inside it predicts
  const int64_t context = bos ? 0 : 1;
  FATHOM_CHECK(stride >= 1 && window > context, stride, window);
  std::vector<EvalWindow> windows;
  int64_t scored = context;
  for (int64_t begin = 0; scored < tokens; begin += std::min(stride, window - context)) {
    const int64_t end = std::min(begin + window, tokens);
    windows.push_back({begin, scored, end});
    scored = end;
  }
  return windows;
}

double negative_log_likelihood(std::span<const float> logits, int32_t target) {
  const double max = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - max);
  return std::log(sum) + max - static_cast<double>(logits[static_cast<size_t>(target)]);
}

namespace {

int eval_task(const EvalOptions& options) {
  const auto task = make_task(options.task);
  OpenOptions open;
  open.cache_dtype = parse_cache_dtype(options.cache);
  const OpenedModel opened = open_model(resolve_model(options.model), open, options.output);
  if (!opened.format) fail("--task: this model has no chat format to ask a question in");
  Context ctx(thread_count(options.threads));
  EvaluationOptions e;
  e.problems = options.problems, e.samples = options.samples, e.max_tokens = options.max_tokens;
  e.temperature = options.temperature, e.seed = options.seed;
  InterruptScope scope;
  const double begin = seconds_now();
  const EvaluationResult r =
      evaluate_task(ctx, opened.model, opened.tokenizer, *opened.format, *task, e, interrupted);
  check_interrupt();
  if (options.json) {
    nlohmann::ordered_json j = {{"task", options.task},
                                {"problems", r.problems},
                                {"greedy", r.greedy},
                                {"samples", r.samples}};
    if (r.samples > 0) j["pass_1"] = r.pass_1, j["pass_1_error"] = r.pass_1_error;
    for (const auto& [k, value] : r.pass_k) j[fmt::format("pass_at_{}", k)] = value;
    j["mean_tokens"] = r.mean_tokens, j["truncated"] = r.truncated;
    print_json(j);
  } else {
    out("{}: {}\n", options.task, score_text(r));
  }
  if (!options.output.quiet)
    note("{} problems of the test split in {}", r.problems, duration_text(seconds_now() - begin));
  return 0;
}

}  // namespace

int run_eval(const EvalOptions& options) {
  if (options.task.empty() == options.perplexity.empty())
    fail("eval: expected --task NAME or --perplexity FILE, one of the two");
  if (!options.task.empty()) return eval_task(options);
  const std::string text = read_text_file(options.perplexity);
  OpenOptions open;
  open.context_tokens = options.context_tokens;
  open.cache_dtype = parse_cache_dtype(options.cache);
  const OpenedModel opened = open_model(resolve_model(options.model), open, options.output);
  const int64_t longest = opened.model.config().max_position_embeddings;
  const int64_t window =
      options.context_tokens > 0 ? options.context_tokens : std::min<int64_t>(longest, 2048);
  const int64_t stride = options.stride > 0 ? options.stride : window;
  if (window < 2 || window > longest)
    fail("--ctx: found {}, expected 2 to {} (max_position_embeddings)", window, longest);
  if (stride > window) fail("--stride: found {}, expected at most the window {}", stride, window);
  const std::vector<int32_t> ids = opened.tokenizer.encode(text, false);
  const std::optional<int32_t> bos =
      opened.tokenizer.add_bos() ? opened.tokenizer.bos_id() : std::nullopt;
  const auto windows = eval_windows(static_cast<int64_t>(ids.size()), bos ? window - 1 : window,
                                    stride, bos.has_value());
  if (windows.empty())
    fail("{}: {} tokens, expected at least {}", options.perplexity, ids.size(), bos ? 1 : 2);

  Context ctx(thread_count(options.threads));
  Scorer scorer(opened, ctx, open.cache_dtype.value_or(default_cache_dtype(opened.model)));
  Score score;
  const double begin = seconds_now();
  {
    InterruptScope scope;
    Progress bar(options.output, "scoring", Progress::Unit::kTokens, ids.size());
    for (const EvalWindow& w : windows) {
      scorer.add(ids, w, bos, score);
      bar.at(static_cast<uint64_t>(w.end));
    }
  }
  const double perplexity = std::exp(score.nll / static_cast<double>(score.tokens));
  const double bits_per_byte =
      score.bytes == 0 ? 0 : score.nll / std::log(2.0) / static_cast<double>(score.bytes);
  if (options.json) {
    print_json({{"perplexity", perplexity},
                {"bits_per_byte", bits_per_byte},
                {"nll", score.nll},
                {"tokens", score.tokens},
                {"bytes", score.bytes},
                {"windows", windows.size()},
                {"ctx", window},
                {"stride", stride}});
  } else {
    out("perplexity {:.4f}   bits per byte {:.4f}   ({} tokens, {} bytes, {} windows of {})\n",
        perplexity, bits_per_byte, score.tokens, score.bytes, windows.size(), window);
  }
  if (!options.output.quiet)
    note("{} at {:.0f} tok/s", duration_text(seconds_now() - begin),
         static_cast<double>(score.tokens) / (seconds_now() - begin));
  return 0;
}

}  // namespace fathom
