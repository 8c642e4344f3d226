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
  double perplexity() const { return std::exp(nll / static_cast<double>(tokens)); }
  double bits_per_byte() const {
    return bytes == 0 ? 0 : nll / std::log(2.0) / static_cast<double>(bytes);
  }
};

// What two models say of the same tokens.
struct Comparison {
  std::vector<double> kl;
  int64_t same_likeliest = 0;
  double mean() const {
    double sum = 0;
    for (const double value : kl) sum += value;
    return sum / static_cast<double>(kl.size());
  }
  double agreement() const {
    return static_cast<double>(same_likeliest) / static_cast<double>(kl.size());
  }
};

// One model, and the logits of one chunk of a window.
class Side {
 public:
  Side(const Model& model, Context& ctx, DType cache_dtype)
      : model_(model), ctx_(ctx), cache_dtype_(cache_dtype) {
    logits_.resize(static_cast<size_t>(kChunk * model.config().vocab_size));
  }
  void begin_window(int64_t rows) {
    feeder_.emplace(model_, ctx_, rows, cache_dtype_, MlaForm::kAbsorbed);
  }
  void feed(std::span<const int32_t> tokens) {
    const int64_t vocab = model_.config().vocab_size;
    feeder_->feed(tokens, {logits_.data(), std::ssize(tokens), vocab, vocab});
  }
  std::span<const float> logits(int64_t row) const {
    const auto vocab = static_cast<size_t>(model_.config().vocab_size);
    return std::span(logits_).subspan(static_cast<size_t>(row) * vocab, vocab);
  }
  // Of the token that row predicts; `position` for the message.
  void score(int64_t row, int32_t target, uint64_t bytes, int64_t position) {
    const double nll = negative_log_likelihood(logits(row), target);
    if (!std::isfinite(nll))
      throw Error(ExitCode::kDiverged,
                  fmt::format("{}: token {} of the text: log-likelihood is not finite",
                              model_.checkpoint().path().string(), position));
    total.nll += nll;
    total.bytes += bytes;
    ++total.tokens;
  }

  Score total;

 private:
  const Model& model_;
  Context& ctx_;
  DType cache_dtype_;
  std::optional<Feeder> feeder_;
  std::vector<float> logits_;  // [kChunk, vocab_size]
};

void compare(std::span<const float> reference, std::span<const float> model, Comparison& out) {
  out.kl.push_back(kl_divergence(reference, model));
  const auto likeliest = [](std::span<const float> logits) {
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
  };
  if (likeliest(reference) == likeliest(model)) ++out.same_likeliest;
}

// Adds the scored tokens of one window, for the model and for a reference where there is one.
void score_window(std::span<const int32_t> text, const EvalWindow& window,
                  std::optional<int32_t> bos, const Tokenizer& tokenizer, Side& model,
                  Side* reference, Comparison& comparison) {
  std::vector<int32_t> sequence;
  if (bos) sequence.push_back(*bos);
  sequence.insert(sequence.end(), text.begin() + window.begin, text.begin() + window.end);
  // the last token predicts nothing here
  const auto rows = static_cast<int64_t>(sequence.size()) - 1;
  // predicts the token at window.score
  const int64_t first_row = window.score - window.begin + (bos ? 0 : -1);
  if (rows < 1) return;
  model.begin_window(rows);
  if (reference != nullptr) reference->begin_window(rows);
  for (int64_t begin = 0; begin < rows; begin += kChunk) {
    const int64_t count = std::min(kChunk, rows - begin);
    const auto chunk =
        std::span(sequence).subspan(static_cast<size_t>(begin), static_cast<size_t>(count));
    model.feed(chunk);
    if (reference != nullptr) reference->feed(chunk);
    for (int64_t row = std::max(begin, first_row); row < begin + count; ++row) {
      const int32_t target = sequence[static_cast<size_t>(row + 1)];
      const uint64_t bytes = tokenizer.token_bytes(target).size();
      const int64_t position = window.begin + row + (bos ? 0 : 1);
      model.score(row - begin, target, bytes, position);
      if (reference == nullptr) continue;
      reference->score(row - begin, target, bytes, position);
      compare(reference->logits(row - begin), model.logits(row - begin), comparison);
    }
    check_interrupt();
  }
}

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

double kl_divergence(std::span<const float> p_logits, std::span<const float> q_logits) {
  FATHOM_CHECK(p_logits.size() == q_logits.size(), p_logits.size(), q_logits.size());
  const double p_max = *std::max_element(p_logits.begin(), p_logits.end());
  const double q_max = *std::max_element(q_logits.begin(), q_logits.end());
  double p_sum = 0, q_sum = 0, difference = 0;  // the last: sum e^(p - p_max) (p - q), from maxima
  for (size_t i = 0; i < p_logits.size(); ++i) {
    const double p = static_cast<double>(p_logits[i]) - p_max,
                 q = static_cast<double>(q_logits[i]) - q_max, e = std::exp(p);
    p_sum += e;
    q_sum += std::exp(q);
    difference += e * (p - q);
  }
  return difference / p_sum + std::log(q_sum) - std::log(p_sum);
}

double percentile(std::vector<double> values, double share) {
  const auto count = static_cast<double>(values.size());
  const auto rank = static_cast<int64_t>(std::ceil(share * count)) - 1;
  const auto at = values.begin() + std::clamp<int64_t>(rank, 0, std::ssize(values) - 1);
  std::nth_element(values.begin(), at, values.end());
  return *at;
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
  Context ctx(thread_count(options.threads));
  open.tiles = &ctx;
  const OpenedModel opened = open_model(resolve_model(options.model), open, options.output);
  if (!opened.format) fail("--task: this model has no chat format to ask a question in");
  EvaluationOptions e;
  e.problems = options.problems, e.samples = options.samples, e.max_tokens = options.max_tokens;
  e.temperature = options.temperature, e.seed = options.seed;
  e.cache_dtype = open.cache_dtype;
  const int64_t positions = opened.model.config().max_position_embeddings;
  const int64_t most = longest_answer(positions, opened.tokenizer, *opened.format, *task, e);
  if (e.max_tokens > most) {
    fail(
        "--max-tokens: found {}, expected at most {}: the longest question takes {} of the "
        "model's {} positions",
        e.max_tokens, most, positions - most, positions);
  }
  InterruptScope scope;
  const double begin = seconds_now();
  const EvaluationResult r =
      evaluate_task(ctx, opened.model, opened.tokenizer, *opened.format, *task, e, interrupted);
  check_interrupt();
  if (r.not_finite > 0) {
    throw Error(ExitCode::kDiverged,
                fmt::format("{}: {} answers ended because the model's logits are not finite: the "
                            "weights or the file are damaged (try `fathom show --check-finite`)",
                            opened.model.checkpoint().path().string(), r.not_finite));
  }
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

// Both models see the same tokens and give as many logits.
void expect_comparable(const OpenedModel& model, const OpenedModel& reference,
                       const std::string& text) {
  const int64_t a = model.model.config().vocab_size, b = reference.model.config().vocab_size;
  if (a != b) fail("--kl: vocabulary of {} tokens, expected {} as the model's", b, a);
  if (model.tokenizer.encode(text, false) != reference.tokenizer.encode(text, false))
    fail("--kl: the two models' tokenizers split the text differently, expected the same tokens");
}

void print_result(const EvalOptions& options, const Score& score, const Score* reference,
                  const Comparison& comparison, size_t windows, int64_t window, int64_t stride) {
  if (options.json) {
    nlohmann::ordered_json j = {{"perplexity", score.perplexity()},
                                {"bits_per_byte", score.bits_per_byte()},
                                {"nll", score.nll},
                                {"tokens", score.tokens},
                                {"bytes", score.bytes},
                                {"windows", windows},
                                {"ctx", window},
                                {"stride", stride}};
    if (reference != nullptr) {
      j["reference_perplexity"] = reference->perplexity();
      j["kl_mean"] = comparison.mean();
      j["kl_median"] = percentile(comparison.kl, 0.5);
      j["kl_p99"] = percentile(comparison.kl, 0.99);
      j["kl_max"] = percentile(comparison.kl, 1);
      j["same_likeliest"] = comparison.agreement();
    }
    return print_json(j);
  }
  out("perplexity {:.4f}   bits per byte {:.4f}   ({} tokens, {} bytes, {} windows of {})\n",
      score.perplexity(), score.bits_per_byte(), score.tokens, score.bytes, windows, window);
  if (reference == nullptr) return;
  out("reference  {:.4f}   bits per byte {:.4f}\n", reference->perplexity(),
      reference->bits_per_byte());
  out("KL divergence: mean {:.6f}   median {:.6f}   99th percentile {:.6f}   largest {:.6f}\n",
      comparison.mean(), percentile(comparison.kl, 0.5), percentile(comparison.kl, 0.99),
      percentile(comparison.kl, 1));
  out("same likeliest token: {:.2f} %\n", 100 * comparison.agreement());
}

}  // namespace

int run_eval(const EvalOptions& options) {
  if (options.task.empty() == options.perplexity.empty())
    fail("eval: expected --task NAME or --perplexity FILE, one of the two");
  if (options.kl.empty() && !options.kl_cache.empty())
    fail("--kl-cache: expected --kl MODEL with it, the model whose cache it is");
  if (!options.kl.empty() && options.perplexity.empty())
    fail("--kl: expected --perplexity FILE with it, the text to compare on");
  if (!options.task.empty()) return eval_task(options);
  const std::string text = read_text_file(options.perplexity);
  OpenOptions open;
  open.context_tokens = options.context_tokens;
  open.cache_dtype = parse_cache_dtype(options.cache);
  open.stream = options.kl.empty();  // two models would each be promised the same memory
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

  std::optional<OpenedModel> reference;
  if (!options.kl.empty()) {
    reference.emplace(open_model(resolve_model(options.kl), open, options.output));
    expect_comparable(opened, *reference, text);
  }
  Context ctx(thread_count(options.threads));
  const auto cache = [&](const OpenedModel& m) {
    return open.cache_dtype.value_or(default_cache_dtype(m.model));
  };
  Side model(opened.model, ctx, cache(opened));
  std::optional<Side> other;
  if (reference) {
    other.emplace(reference->model, ctx,
                  parse_cache_dtype(options.kl_cache).value_or(cache(*reference)));
  }
  Comparison comparison;
  const double begin = seconds_now();
  {
    InterruptScope scope;
    Progress bar(options.output, "scoring", Progress::Unit::kTokens, ids.size());
    for (const EvalWindow& w : windows) {
      score_window(ids, w, bos, opened.tokenizer, model, other ? &*other : nullptr, comparison);
      bar.at(static_cast<uint64_t>(w.end));
    }
  }
  const Score& score = model.total;
  print_result(options, score, other ? &other->total : nullptr, comparison, windows.size(), window,
               stride);
  if (!options.output.quiet)
    note("{} at {:.0f} tok/s", duration_text(seconds_now() - begin),
         static_cast<double>(score.tokens) / (seconds_now() - begin));
  return 0;
}

}  // namespace fathom
