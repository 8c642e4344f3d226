#include "engine/engine.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "kernels/softmax.h"

namespace fathom {

struct Engine::Sequence {
  Sequence(uint64_t id_, Request request_)
      : id(id_), request(std::move(request_)), sampler(request.sampling, request.prompt) {}

  int64_t prompt_tokens() const { return std::ssize(request.prompt); }
  // The last token of the answer is never fed back, so it needs no row.
  int64_t rows_needed() const { return prompt_tokens() + request.max_tokens - 1; }

  uint64_t id;
  Request request;
  Sampler sampler;
  std::vector<int64_t> block_rows;
  int64_t computed = 0;  // rows in the cache
  int64_t generated = 0;
  int32_t last_token = -1;  // generated, not yet in the cache
  bool cancelled = false;
  bool finished = false;
};

namespace {

void check_option(const char* name, int64_t found, int64_t low, int64_t high, const char* why) {
  if (found < low || found > high)
    fail("engine: {}: found {}, expected {} to {}{}", name, found, low, high, why);
}

EngineOptions with_defaults(const ModelConfig& config, EngineOptions options) {
  if (options.context_tokens == 0)
    options.context_tokens = std::min<int64_t>(config.max_position_embeddings, 4096);
  if (options.cache_tokens == 0) options.cache_tokens = options.context_tokens;
  check_option("context_tokens", options.context_tokens, 1, config.max_position_embeddings,
               " (max_position_embeddings)");
  check_option("cache_tokens", options.cache_tokens, options.context_tokens, INT64_MAX,
               " (at least context_tokens)");
  check_option("prefill_chunk", options.prefill_chunk, 1, INT32_MAX, "");
  check_option("max_sequences", options.max_sequences, 1, INT32_MAX, "");
  if (options.cache_dtype != DType::kF32 && options.cache_dtype != DType::kBF16) {
    fail("engine: cache_dtype: found {}, expected F32 or BF16", dtype_name(options.cache_dtype));
  }
  return options;
}

}  // namespace

DType default_cache_dtype(const Checkpoint& checkpoint) {
  const auto& tensors = checkpoint.tensors();
  return std::all_of(tensors.begin(), tensors.end(),
                     [](const TensorInfo* t) { return t->dtype == DType::kF32; })
             ? DType::kF32
             : DType::kBF16;
}

DType default_cache_dtype(const Model& model) {
  if (model.has_checkpoint()) return default_cache_dtype(model.checkpoint());
  return model.weights().lm_head.weight.dtype == DType::kF32 ? DType::kF32 : DType::kBF16;
}

Engine::Engine(const Model& model, Context& ctx, const EngineOptions& options)
    : model_(model),
      ctx_(ctx),
      options_(with_defaults(model.config(), options)),
      cache_(model, options_.cache_dtype, options_.cache_tokens) {}

Engine::~Engine() = default;

uint64_t Engine::submit(Request request) {
  const int64_t vocab_size = model_.config().vocab_size;
  const int64_t prompt_tokens = std::ssize(request.prompt);
  const auto check_id = [&](const char* field, int32_t id) {
    if (id < 0 || id >= vocab_size)
      fail("request: {}: found token {}, expected 0 to {} (vocab_size)", field, id, vocab_size - 1);
  };
  if (prompt_tokens == 0) fail("request: prompt: found no token, expected at least 1");
  for (const int32_t id : request.prompt) check_id("prompt", id);
  for (const int32_t id : request.stop_ids) check_id("stop_ids", id);
  if (request.max_tokens < 1)
    fail("request: max_tokens: found {}, expected at least 1", request.max_tokens);
  if (prompt_tokens > options_.context_tokens ||
      request.max_tokens > options_.context_tokens - prompt_tokens) {
    fail("request: prompt of {} tokens + max_tokens {}: expected at most {} together (the context)",
         prompt_tokens, request.max_tokens, options_.context_tokens);
  }
  validate_sampling(request.sampling, vocab_size);
  waiting_.push_back(std::make_unique<Sequence>(next_id_, std::move(request)));
  return next_id_++;
}

void Engine::cancel(uint64_t request) {
  const auto mark = [&](auto& sequences) {
    for (auto& sequence : sequences) sequence->cancelled |= sequence->id == request;
  };
  mark(running_);
  mark(waiting_);
}

bool Engine::step(std::vector<TokenEvent>& events) {
  const size_t events_before = events.size();
  drop_cancelled(events);
  admit();
  if (running_.empty()) return events.size() > events_before;
  const double start = seconds_now();
  const int64_t prompt_rows = plan();
  run_batch();
  sample();
  finish_step(events);
  (prompt_rows > 0 ? stats_.prefill_tokens : stats_.decode_tokens) += std::ssize(tokens_);
  (prompt_rows > 0 ? stats_.prefill_seconds : stats_.decode_seconds) += seconds_now() - start;
  return true;
}

void Engine::drop_cancelled(std::vector<TokenEvent>& events) {
  const auto drop = [&](std::unique_ptr<Sequence>& sequence) {
    if (!sequence->cancelled) return false;
    cache_.release(sequence->block_rows);
    events.push_back({sequence->id, -1, 0, {}, FinishReason::kCancelled});
    return true;
  };
  std::erase_if(running_, drop);
  std::erase_if(waiting_, drop);
}

void Engine::admit() {
  while (!waiting_.empty() && std::ssize(running_) < options_.max_sequences &&
         cache_.reserve(waiting_.front()->block_rows, waiting_.front()->rows_needed())) {
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

// Fills the batch: one row of every decoding sequence, and prompt rows, oldest request first, up to
// prefill_chunk. Returns the number of prompt rows.
int64_t Engine::plan() {
  tokens_.clear();
  rows_.clear();
  logit_rows_.clear();
  planned_.clear();
  sampling_.clear();
  int64_t budget = options_.prefill_chunk;
  for (const auto& sequence : running_) {
    const std::vector<int32_t>& prompt = sequence->request.prompt;
    const int64_t left = sequence->prompt_tokens() - sequence->computed;
    const int64_t rows = left > 0 ? std::min(left, budget) : 1;
    if (rows == 0) continue;
    if (left > 0) {
      tokens_.insert(tokens_.end(), prompt.end() - left, prompt.end() - left + rows);
      budget -= rows;
    } else {
      tokens_.push_back(sequence->last_token);
    }
    rows_.push_back({rows, sequence->computed, sequence->block_rows});
    planned_.push_back(sequence.get());
    if (rows >= left) {
      logit_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
      sampling_.push_back(sequence.get());
    }
  }
  return options_.prefill_chunk - budget;
}

void Engine::run_batch() {
  const int64_t vocab_size = model_.config().vocab_size;
  logits_.resize(logit_rows_.size() * static_cast<size_t>(vocab_size));
  const Rows logits{logits_.data(), std::ssize(logit_rows_), vocab_size, vocab_size};
  model_.forward_infer(ctx_, {tokens_, rows_, logit_rows_, &cache_.view(), options_.form}, logits);
  log_sum_exp_.resize(logit_rows_.size());
  if (std::any_of(sampling_.begin(), sampling_.end(),
                  [](const Sequence* s) { return s->sampler.wants_logprobs(); })) {
    log_sum_exp(ctx_, logits, log_sum_exp_);
  }
}

void Engine::sample() {
  const auto vocab_size = static_cast<size_t>(model_.config().vocab_size);
  sampled_.resize(sampling_.size());
  ctx_.pool().run(std::ssize(sampling_), [&](int64_t item, int) {
    const auto i = static_cast<size_t>(item);
    Sequence& s = *sampling_[i];
    sampled_[i] = s.sampler.sample(std::span(logits_).subspan(i * vocab_size, vocab_size),
                                   s.prompt_tokens() + s.generated, log_sum_exp_[i]);
  });
}

void Engine::finish_step(std::vector<TokenEvent>& events) {
  for (size_t i = 0; i < planned_.size(); ++i) planned_[i]->computed += rows_[i].rows;
  for (size_t i = 0; i < sampling_.size(); ++i) {
    Sequence& s = *sampling_[i];
    TokenEvent event{s.id, -1, 0, {}, FinishReason::kNone};
    if (sampled_[i]) {
      s.last_token = event.token = sampled_[i]->token;
      event.logprob = sampled_[i]->logprob;
      event.top_logprobs = std::move(sampled_[i]->top_logprobs);
      const std::vector<int32_t>& stops = s.request.stop_ids;
      if (std::find(stops.begin(), stops.end(), event.token) != stops.end()) {
        event.finish = FinishReason::kStop;
      } else if (++s.generated == s.request.max_tokens) {
        event.finish = FinishReason::kLength;
      }
    } else {
      event.finish = FinishReason::kNumericalError;
    }
    s.finished = event.finish != FinishReason::kNone;
    if (s.finished) cache_.release(s.block_rows);
    events.push_back(std::move(event));
  }
  std::erase_if(running_, [](const auto& sequence) { return sequence->finished; });
}

}  // namespace fathom
