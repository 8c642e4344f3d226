#include "engine/engine.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/error.h"
#include "engine/engine_sequence.h"
#include "kernels/attention.h"
#include "kernels/softmax.h"

namespace fathom {

namespace {

void check_option(const char* name, int64_t found, int64_t low, int64_t high, const char* why) {
  if (found < low || found > high)
    fail("engine: {}: found {}, expected {} to {}{}", name, found, low, high, why);
}

// With several sequences rows are no longer nearly free.
constexpr int64_t kMostDraftingRows = 4;
// The MTP layer's own second guess is mostly wrong; how far a lookup goes DraftPace says.
constexpr int64_t kMtpDrafts = 1, kLookupDrafts = 7, kMostDrafts = 64;
// What a row costs beside the first of a step: it picks experts of its own.
constexpr double kRowCost = 0.2, kRowCostWithExperts = 0.38;

EngineOptions with_defaults(const Model& model, EngineOptions options) {
  const ModelConfig& config = model.config();
  if (options.context_tokens == 0)
    options.context_tokens = std::min<int64_t>(config.max_position_embeddings, 4096);
  if (options.cache_tokens == 0) options.cache_tokens = options.context_tokens;
  check_option("context_tokens", options.context_tokens, 1, config.max_position_embeddings,
               " (max_position_embeddings)");
  check_option("cache_tokens", options.cache_tokens, options.context_tokens, INT64_MAX,
               " (at least context_tokens)");
  check_option("prefill_chunk", options.prefill_chunk, 1, INT32_MAX, "");
  options.long_chunk = options.longest_chunk();
  check_option("long_chunk", options.long_chunk, options.prefill_chunk, INT64_MAX,
               " (at least prefill_chunk)");
  check_option("max_sequences", options.max_sequences, 1, INT32_MAX, "");
  check_cache_dtype(config, options.cache_dtype);
  check_option("expand_by", options.expand_by, 0, INT32_MAX, " (0 = strict mode)");
  if (!config.is_mla()) options.expand_by = 0;
  FATHOM_CHECK(options.expand_by == 0 || options.form == MlaForm::kAbsorbed, options.expand_by);
  if (options.speculation == Speculation::kAuto)
    options.speculation = model.has_mtp() ? Speculation::kBoth : Speculation::kLookup;
  const bool mtp =
      options.speculation == Speculation::kMtp || options.speculation == Speculation::kBoth;
  if (mtp && !model.has_mtp()) {
    fail("engine: speculation: found {}, expected lookup or off (the model has no MTP layer)",
         options.speculation == Speculation::kMtp ? "mtp" : "both");
  }
  if (options.draft_tokens == 0)
    options.draft_tokens = options.speculation == Speculation::kMtp ? kMtpDrafts : kLookupDrafts;
  check_option("draft_tokens", options.draft_tokens, 1, kMostDrafts, "");
  if (options.speculation == Speculation::kOff) options.draft_tokens = 0;
  if (!options.drafter) options.drafter = draft_by_lookup;
  return options;
}

// So that the next `count` push_back()s throw nothing.
void make_room(std::vector<TokenEvent>& events, int64_t count) {
  const size_t wanted = events.size() + static_cast<size_t>(count);
  if (wanted > events.capacity()) events.reserve(std::max(wanted, 2 * events.capacity()));
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
      options_(with_defaults(model, options)),
      cache_(model, options_.cache_dtype, options_.cache_tokens) {
  if (options_.speculation == Speculation::kMtp || options_.speculation == Speculation::kBoth)
    mtp_.emplace(model, cache_.view(), options_.form);
}

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
  if (request.opening < 0 || request.opening > prompt_tokens) request.opening = prompt_tokens;
  validate_sampling(request.sampling, vocab_size);
  waiting_.push_back(std::make_unique<Sequence>(next_id_, std::move(request), options_.expand_by));
  return next_id_++;
}

void Engine::cancel(uint64_t request) {
  const auto mark = [&](auto& sequences) {
    for (auto& sequence : sequences) sequence->cancelled |= sequence->id == request;
  };
  mark(running_);
  mark(waiting_);
}

void Engine::forget_cached() {
  FATHOM_CHECK(idle() && store_ == nullptr);
  cache_.pool().forget();
}

void Engine::use_store(PrefixStore* store) {
  FATHOM_CHECK(options_.prefix_cache);
  store_ = store;
}

void Engine::save_to_store() {
  if (store_ == nullptr) return;
  // What does not fit would push out what was written just before.
  int64_t left = cache_.pool().cached();
  cache_.pool().for_each_cached([&](int64_t block, const BlockPool::Content& content) {
    if (left-- <= store_->most_blocks()) store_->save(content, cache_.view(), block * kKeyBlock);
  });
}

bool Engine::step(std::vector<TokenEvent>& events, const PromptWatcher& watcher) {
  const size_t events_before = events.size();
  drop_cancelled(events);
  admit();
  if (running_.empty()) return events.size() > events_before;
  const double start = seconds_now();
  const int64_t prompt_rows = plan();
  try {
    run_batch(prompt_rows, watcher);
    sample();
    draft();
    make_room(events, std::ssize(logit_rows_));
  } catch (...) {
    take_back();
    throw;
  }
  const int64_t rows = finish_step(events);
  (prompt_rows > 0 ? stats_.prefill_tokens : stats_.decode_tokens) += rows;
  (prompt_rows > 0 ? stats_.prefill_seconds : stats_.decode_seconds) += seconds_now() - start;
  return true;
}

void Engine::drop_cancelled(std::vector<TokenEvent>& events) {
  const auto cancelled = [](const auto& s) { return s->cancelled; };
  make_room(events, std::count_if(running_.begin(), running_.end(), cancelled) +
                        std::count_if(waiting_.begin(), waiting_.end(), cancelled));
  const auto drop = [&](std::unique_ptr<Sequence>& s) {
    if (!s->cancelled) return false;
    give_back(*s);
    events.push_back({s->id, -1, 0, {}, FinishReason::kCancelled, s->reuse});
    return true;
  };
  std::erase_if(running_, drop);
  std::erase_if(waiting_, drop);
}

void Engine::admit() {
  running_.reserve(static_cast<size_t>(
      std::min(options_.max_sequences, std::ssize(running_) + std::ssize(waiting_))));
  const size_t running = running_.size();
  while (!waiting_.empty() && std::ssize(running_) < options_.max_sequences &&
         start(*waiting_.front())) {
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  if (running_.size() > running) reserve_step();
}

// The number of drafts changes from step to step; so room for the most that decoding may need.
void Engine::reserve_step() {
  const int64_t sequences = std::ssize(running_);
  const auto rows = static_cast<size_t>(sequences + options_.draft_tokens *
                                                        std::min(sequences, kMostDraftingRows));
  tokens_.reserve(rows);
  rows_.reserve(sequences);
  planned_.reserve(running_.size());
  sampling_.reserve(running_.size());
  logit_rows_.reserve(rows);
  log_sum_exp_.reserve(rows);
  sampled_.reserve(rows);
  logits_.reserve(rows * static_cast<size_t>(model_.config().vocab_size));
  if (mtp_) mtp_->reserve(sequences, static_cast<int64_t>(rows));
}

// The prompt rows of a step.
int64_t Engine::step_chunk() const {
  const auto decodes = [](const auto& s) { return !s->prefilling(); };
  if (running_.empty() || std::any_of(running_.begin(), running_.end(), decodes))
    return options_.prefill_chunk;
  const Sequence& oldest = *running_.front();
  return std::clamp(oldest.size() - oldest.computed, options_.prefill_chunk, options_.long_chunk);
}

// Fills the batch: one row of every decoding sequence and its drafts, and prompt rows, oldest
// request first, up to the step's chunk. Returns the number of prompt rows.
int64_t Engine::plan() {
  tokens_.clear();
  rows_.clear();
  logit_rows_.clear();
  planned_.clear();
  sampling_.clear();
  // All rows that must be have their blocks before drafts take any.
  for (size_t i = 0; i < running_.size() && grow(*running_[i]); ++i) {
  }
  const int64_t chunk = step_chunk();
  int64_t budget = chunk, used = 0;
  for (const std::unique_ptr<Sequence>& sequence : running_) {
    Sequence& s = *sequence;
    const int64_t left = s.size() - s.computed;
    s.rows = s.prefilling() ? prompt_rows(s, budget, budget < chunk) : 1;
    s.size_before = s.size();
    s.rejected = 0;
    s.completes = false;
    s.finish = FinishReason::kNone;
    if (s.prefilling()) {
      budget = s.rows == 0 ? 0 : budget - s.rows;  // nobody overtakes
      used += s.rows;
    } else {
      fit_drafts(s);
    }
    if (s.rows == 0) continue;
    const bool samples = s.rows == left;
    const auto first = s.tokens.begin() + s.computed;
    tokens_.insert(tokens_.end(), first, first + s.rows);
    tokens_.insert(tokens_.end(), s.drafts.begin(), s.drafts.end());
    s.rows += std::ssize(s.drafts);
    rows_.add({s.rows, s.computed, s.block_rows}, s.expanded_end, options_.form);
    planned_.push_back(&s);
    if (!samples) continue;
    s.logit_row = std::ssize(logit_rows_);
    for (int64_t row = std::ssize(tokens_) - 1 - std::ssize(s.drafts); row < std::ssize(tokens_);
         ++row)
      logit_rows_.push_back(static_cast<int32_t>(row));
    sampling_.push_back(&s);
  }
  return used;
}

// What the next chunk takes of a prompt. Few expanded rows, if they are not the last of them, wait
// for a chunk that they need share with nobody.
int64_t Engine::prompt_rows(const Sequence& s, int64_t budget, bool shared) const {
  const int64_t rows = std::min(s.size() - s.computed, budget);
  const int64_t expanded = s.expanded_end - s.computed;
  const bool few = rows < expanded && rows < kExpandedRows;
  return few && shared ? 0 : rows;
}

// Blocks for the rows of its drafts, if they are to be had without anybody giving way; else fewer
// drafts.
void Engine::fit_drafts(Sequence& s) {
  const auto room = [&] { return std::ssize(s.block_rows) * kKeyBlock - s.computed - 1; };
  while (room() < std::ssize(s.drafts)) {
    const int64_t block = cache_.pool().take();
    if (block == BlockPool::kNone) break;
    s.block_rows.push_back(block * kKeyBlock);
  }
  s.drafts.resize(static_cast<size_t>(std::min(room(), std::ssize(s.drafts))));
}

// A block for the next row of a decoding sequence (a starting one has all blocks of its prompt).
// Younger ones give way; false if the sequence itself was the youngest and had to. Those preempted
// are not in the plan yet: it goes from old to young.
bool Engine::grow(Sequence& s) {
  while (s.computed >= std::ssize(s.block_rows) * kKeyBlock) {
    const int64_t block = cache_.pool().take();
    if (block != BlockPool::kNone) {
      s.block_rows.push_back(block * kKeyBlock);
      continue;
    }
    const bool itself = running_.back().get() == &s;
    preempt_youngest();
    if (itself) return false;
  }
  return true;
}

void Engine::preempt_youngest() {
  waiting_.push_front(std::move(running_.back()));
  running_.pop_back();
  Sequence& s = *waiting_.front();
  give_back(s);
  s.computed = s.complete = s.published = s.prefill_end = 0;
  s.drafts.clear();
  s.guesses.clear();
  s.states.clear();
  ++stats_.preemptions;
}

void Engine::run_batch(int64_t prompt_rows, const PromptWatcher& watcher) {
  const int64_t vocab_size = model_.config().vocab_size;
  logits_.resize(logit_rows_.size() * static_cast<size_t>(vocab_size));
  const Rows logits{logits_.data(), std::ssize(logit_rows_), vocab_size, vocab_size};
  std::optional<Rows> hidden;
  if (mtp_) hidden = mtp_->hidden(std::ssize(tokens_));
  InferBatch batch{tokens_,        rows_.sequences, logit_rows_,
                   &cache_.view(), options_.form,   rows_.forms};
  std::function<void(int64_t)> after_layer;
  if (watcher && prompt_rows > 0) {
    after_layer = [&](int64_t layers) {
      watcher(prompt_rows * layers / model_.config().num_hidden_layers);
    };
    batch.after_layer = &after_layer;
  }
  model_.forward_infer(ctx_, batch, logits, hidden ? &*hidden : nullptr);
  log_sum_exp_.resize(logit_rows_.size());
  if (std::any_of(sampling_.begin(), sampling_.end(),
                  [](const Sequence* s) { return s->sampler.wants_logprobs(); })) {
    log_sum_exp(ctx_, logits, log_sum_exp_);
  }
}

void Engine::sample() {
  sampled_.resize(logit_rows_.size());
  ctx_.pool().run(std::ssize(sampling_),
                  [&](int64_t item, int) { sample_rows(*sampling_[static_cast<size_t>(item)]); });
}

// Position by position, as if each had been a step of its own, as long as the token is the one that
// the next row was computed of. The tokens count from here on; take_back() undoes it.
void Engine::sample_rows(Sequence& s) {
  const auto vocab_size = static_cast<size_t>(model_.config().vocab_size);
  const int64_t drafts = std::ssize(s.drafts);
  for (int64_t accepted = 0;; ++accepted) {
    s.rejected = drafts - accepted;
    const auto row = static_cast<size_t>(s.logit_row + accepted);
    sampled_[row] = s.sampler.sample(std::span(logits_).subspan(row * vocab_size, vocab_size),
                                     s.size(), log_sum_exp_[row]);
    if (!sampled_[row]) {
      s.finish = FinishReason::kNumericalError;
      return;
    }
    const int32_t token = sampled_[row]->token;
    s.push_generated(token);
    s.sampler.remember(token);
    s.finish = s.finish_of_last();
    if (s.finish != FinishReason::kNone || accepted == drafts ||
        token != s.drafts[static_cast<size_t>(accepted)])
      return;
  }
}

// Steps of decoding sequences cost 1 + row (rows - 1) of a step of one row, and yield at best
// somewhat more than a token for each.
Engine::DraftCosts Engine::draft_costs() const {
  constexpr double kGain = 1.3;
  const ModelConfig& config = model_.config();
  const double row = config.n_routed_experts > 0 ? kRowCostWithExperts : kRowCost;
  const auto sequences = static_cast<double>(std::max<int64_t>(1, std::ssize(sampling_)));
  const double tokens_for_cost = kGain * sequences / (1 + row * (sequences - 1));
  return {row * tokens_for_cost, kGain / static_cast<double>(config.num_hidden_layers)};
}

// Drafts for the next step, and the MTP layer's rows of this one.
void Engine::draft() {
  if (options_.speculation == Speculation::kOff) return;
  if (mtp_) mtp_->begin();
  const bool few = std::ssize(sampling_) <= kMostDraftingRows;
  const bool looks_up = options_.speculation != Speculation::kMtp;
  const DraftCosts costs = draft_costs();
  const int64_t hidden_size = model_.config().hidden_size;
  int64_t row = 0;  // of the step
  for (Sequence* planned : planned_) {
    Sequence& s = *planned;
    s.next_guesses.clear();
    const bool goes_on = s.finish == FinishReason::kNone && s.computed_then() >= s.prefill_end;
    // a step yields one token more than it confirms drafts
    const int64_t most =
        goes_on && few ? std::min(options_.draft_tokens, s.request.max_tokens - s.generated() - 1)
                       : 0;
    if (looks_up && most > 0) look_up(s, most);
    if (mtp_) {
      const bool guesses =
          most > 0 && (!options_.pause_drafts ||
                       (!s.pace.mtp_paused() && s.pace.mtp_gains(s.next_guesses, costs.mtp)));
      if (guesses) s.next_guesses.clear();
      const float* states = mtp_->hidden(std::ssize(tokens_)).row(row);
      draft_mtp(s, {states, s.rows - s.rejected, hidden_size, hidden_size},
                guesses ? (looks_up ? 1 : most) : 0);
    }
    row += s.rows;
  }
  if (mtp_) mtp_->run(ctx_);
  for (Sequence* planned : planned_) {
    Sequence& s = *planned;
    Guesses& guesses = s.next_guesses;
    if (s.mtp_guesses) {
      guesses.of_mtp = std::ssize(guesses.tokens);
      const int64_t most =
          std::min(options_.draft_tokens, s.request.max_tokens - s.generated() - 1);
      if (looks_up && guesses.of_mtp == 1 && most > 1) look_up(s, most - 1);
    }
    // A row behind the end of an answer is for nothing.
    const auto end = std::find_first_of(guesses.tokens.begin(), guesses.tokens.end(),
                                        s.request.stop_ids.begin(), s.request.stop_ids.end());
    s.next_drafts = end - guesses.tokens.begin();
    if (options_.pause_drafts)
      s.next_drafts = std::min(s.next_drafts, s.pace.worth(guesses, costs.row));
  }
}

// Appends what the drafter guesses to follow the text and the guesses so far.
void Engine::look_up(Sequence& s, int64_t most) {
  std::vector<int32_t>& guesses = s.next_guesses.tokens;
  const size_t before = guesses.size();
  struct Longer {  // has room: the answer may become so long
    Longer(std::vector<int32_t>& text_, std::span<const int32_t> with) : text(text_) {
      text.insert(text.end(), with.begin(), with.end());
    }
    ~Longer() { text.resize(size); }
    std::vector<int32_t>& text;
    const size_t size = text.size();
  } longer(s.tokens, guesses);
  s.next_guesses.match = options_.drafter(s.tokens, most, guesses);
  FATHOM_CHECK(std::ssize(guesses) - static_cast<int64_t>(before) <= most, guesses.size(), most);
}

void Engine::draft_mtp(Sequence& s, ConstRows fresh, int64_t most) {
  const int64_t end = s.computed_then();
  const bool block_full = end / kKeyBlock > s.complete / kKeyBlock;
  const bool kept = options_.prefix_cache && s.finish != FinishReason::kNone;
  s.mtp_guesses = most > 0;
  // of the last row of a numerical error nobody knows the next token
  s.completes = (end < s.prefill_end || most > 0 || block_full || kept) && s.size() > end;
  if (!s.completes) return;
  const auto next = std::span(s.tokens)
                        .first(static_cast<size_t>(end + 1))
                        .subspan(static_cast<size_t>(s.complete + 1));
  mtp_->add({.rows = {end - s.complete, s.complete, s.block_rows},
             .expanded_end = s.expanded_end,
             .next_tokens = next,
             .kept = {s.states.data(), s.computed - s.complete, fresh.cols, fresh.cols},
             .fresh = fresh,
             .sampler = &s.sampler,
             .most = most,
             .drafts = &s.next_guesses.tokens});
}

// The step has failed: its tokens were never sampled.
void Engine::take_back() {
  for (Sequence* s : sampling_) {
    for (; s->size() > s->size_before; s->pop_generated()) s->sampler.forget(s->tokens.back());
  }
}

// From here on nothing throws: the step happens as a whole. Returns its rows, without those of
// rejected drafts.
int64_t Engine::finish_step(std::vector<TokenEvent>& events) {
  const int64_t hidden_size = model_.config().hidden_size;
  int64_t row = 0;  // of the step
  int64_t kept_rows = 0;
  for (Sequence* planned : planned_) {
    Sequence& s = *planned;
    const int64_t drafted = std::ssize(s.drafts), kept = s.rows - s.rejected;
    s.computed += kept;
    kept_rows += kept;
    if (s.completes || !mtp_) {
      s.complete = s.computed;
      s.states.clear();
    } else if (s.finish == FinishReason::kNone) {
      const float* states = mtp_->hidden(std::ssize(tokens_)).row(row);
      s.states.insert(s.states.end(), states, states + kept * hidden_size);
    }
    row += s.rows;
    stats_.drafted += drafted;
    stats_.accepted += drafted - s.rejected;
    if (s.computed > s.prefill_end) {
      s.pace.note(s.guesses, drafted,
                  std::span(s.tokens).subspan(static_cast<size_t>(s.size_before)));
    }
    std::swap(s.guesses, s.next_guesses);
    s.drafts.assign(s.guesses.tokens.begin(), s.guesses.tokens.begin() + s.next_drafts);
    publish(s);
  }
  for (Sequence* sequence : sampling_) {
    Sequence& s = *sequence;
    const int64_t sampled = s.size() - s.size_before;
    for (int64_t i = 0; i < sampled; ++i) {
      SampledToken& token = *sampled_[static_cast<size_t>(s.logit_row + i)];
      const FinishReason finish = i + 1 == sampled ? s.finish : FinishReason::kNone;
      events.push_back(
          {s.id, token.token, token.logprob, std::move(token.top_logprobs), finish, s.reuse});
    }
    if (s.finish == FinishReason::kNumericalError)
      events.push_back({s.id, -1, 0, {}, s.finish, s.reuse});
    if (s.finish != FinishReason::kNone) give_back(s);
  }
  std::erase_if(running_, [](const auto& s) { return s->finish != FinishReason::kNone; });
  return kept_rows;
}

// Blocks that have become full can be found from now on. A block whose content somebody else has
// published meanwhile is given back for that one: same tokens in the same forms, same bits.
void Engine::publish(Sequence& s) {
  if (!options_.prefix_cache) return;
  s.extend_hashes(s.computed);
  for (; (s.published + 1) * kKeyBlock <= s.complete; ++s.published) {
    int64_t& row = s.block_rows[static_cast<size_t>(s.published)];
    row = cache_.pool().publish(row / kKeyBlock, content(s, s.published)) * kKeyBlock;
  }
}

// All its blocks; the last rows, of a block that never became full, can be found from now on too.
void Engine::give_back(Sequence& s) {
  const int64_t begin = s.published * kKeyBlock, rows = s.complete - begin;
  if (options_.prefix_cache && rows > 0) {
    const int64_t parent = s.block_before(s.published);
    const Hash128& before = s.hash_before(s.published);
    const std::span<const int32_t> names =
        std::span(s.names).subspan(static_cast<size_t>(begin), static_cast<size_t>(rows));
    BlockPool& pool = cache_.pool();
    const BlockPool::Alike alike = pool.most_alike(parent, before, names);
    int64_t& row = s.block_rows[static_cast<size_t>(s.published)];
    if (alike.tokens == rows) {
      pool.renew(alike.block);
    } else {
      const Hash128 hash = hash_chained(before, std::as_bytes(names));
      row = pool.publish(row / kKeyBlock, {parent, before, hash, names}) * kKeyBlock;
    }
  }
  cache_.release(s.block_rows);
}

void Engine::check() const {
  std::vector<int64_t> owned;
  uint64_t last_id = 0;
  for (const auto& s : running_) {
    FATHOM_CHECK(s->id > last_id && s->computed < s->size(), s->id, last_id, s->computed);
    FATHOM_CHECK(s->computed <= std::ssize(s->block_rows) * kKeyBlock, s->computed);
    FATHOM_CHECK(s->complete <= s->computed && s->published * kKeyBlock <= s->complete,
                 s->published, s->complete, s->computed);
    last_id = s->id;
    for (const int64_t row : s->block_rows) owned.push_back(row / kKeyBlock);
  }
  for (const auto& s : waiting_) {
    FATHOM_CHECK(s->id > last_id && s->block_rows.empty(), s->id, last_id);
    last_id = s->id;
  }
  cache_.pool().check(owned);
}

}  // namespace fathom
