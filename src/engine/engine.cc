#include "engine/engine.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/clock.h"
#include "base/error.h"
#include "kernels/attention.h"
#include "kernels/softmax.h"

namespace fathom {

struct Engine::Sequence {
  Sequence(uint64_t id_, Request request_)
      : id(id_),
        request(std::move(request_)),
        prompt_tokens(std::ssize(request.prompt)),
        scope(hash_chained({}, std::as_bytes(std::span(request.cache_scope)))),
        sampler(request.sampling, request.prompt, request.max_tokens),
        tokens(std::move(request.prompt)) {}

  int64_t size() const { return std::ssize(tokens); }
  int64_t generated() const { return size() - prompt_tokens; }
  bool prefilling() const { return computed < prefill_end; }
  // Blocks it will ever need: the last token of the answer is never fed back, so it needs no row.
  int64_t most_blocks() const {
    return (prompt_tokens + request.max_tokens - 1 + kKeyBlock - 1) / kKeyBlock;
  }
  bool still_grows() const { return std::ssize(block_rows) < most_blocks(); }
  // Full blocks that it may find instead of computing them: its last token must be computed.
  int64_t findable_blocks() const { return (size() - 1) / kKeyBlock; }
  std::span<const int32_t> block_tokens(int64_t block) const {
    return std::span(tokens).subspan(static_cast<size_t>(block * kKeyBlock), kKeyBlock);
  }
  // Those behind the first `found` blocks.
  std::span<const int32_t> findable_tokens(int64_t found) const {
    return std::span(tokens)
        .first(static_cast<size_t>(size() - 1))
        .subspan(static_cast<size_t>(found * kKeyBlock));
  }
  const Hash128& hash_before(int64_t block) const {
    return block == 0 ? scope : hashes[static_cast<size_t>(block - 1)];
  }
  int64_t block_before(int64_t block) const {
    return block == 0 ? BlockPool::kNone : block_rows[static_cast<size_t>(block - 1)] / kKeyBlock;
  }
  // Room for all it will ever hold, and the names of the full blocks so far.
  void prepare() {
    tokens.reserve(static_cast<size_t>(prompt_tokens + request.max_tokens));
    hashes.reserve(static_cast<size_t>(most_blocks()));
    block_rows.reserve(static_cast<size_t>(most_blocks()));
    extend_hashes(size() - 1);
  }
  void extend_hashes(int64_t end) {
    for (int64_t block = std::ssize(hashes); (block + 1) * kKeyBlock <= end; ++block)
      hashes.push_back(hash_chained(hash_before(block), std::as_bytes(block_tokens(block))));
  }

  uint64_t id;
  Request request;  // without the prompt, which moves into `tokens`
  int64_t prompt_tokens;
  Hash128 scope;
  Sampler sampler;
  std::vector<int32_t> tokens;  // prompt and answer so far
  std::vector<Hash128> hashes;  // of the full blocks
  std::vector<int64_t> block_rows;
  int64_t computed = 0;     // rows in the cache
  int64_t published = 0;    // blocks that can be found
  int64_t prefill_end = 0;  // tokens when it started; rows before are its prompt, or computed again
  PrefixReuse reuse;        // of its first start
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
  const auto cancelled = [](const auto& s) { return s->cancelled; };
  make_room(events, std::count_if(running_.begin(), running_.end(), cancelled) +
                        std::count_if(waiting_.begin(), waiting_.end(), cancelled));
  const auto drop = [&](std::unique_ptr<Sequence>& s) {
    if (!s->cancelled) return false;
    cache_.release(s->block_rows);
    events.push_back({s->id, -1, 0, {}, FinishReason::kCancelled, s->reuse});
    return true;
  };
  std::erase_if(running_, drop);
  std::erase_if(waiting_, drop);
}

void Engine::admit() {
  running_.reserve(static_cast<size_t>(
      std::min(options_.max_sequences, std::ssize(running_) + std::ssize(waiting_))));
  while (!waiting_.empty() && std::ssize(running_) < options_.max_sequences &&
         start(*waiting_.front())) {
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
}

BlockPool::Content Engine::content(const Sequence& s, int64_t block) const {
  const auto i = static_cast<size_t>(block);
  return {s.block_before(block), s.hash_before(block), s.hashes[i], s.block_tokens(block)};
}

// Gives the sequence its blocks: those found, then own ones for the rest of its tokens. False, and
// nothing taken, if it has to wait.
bool Engine::start(Sequence& s) {
  s.prepare();
  const int64_t growing = std::count_if(running_.begin(), running_.end(),
                                        [](const auto& other) { return other->still_grows(); });
  int64_t found = 0;
  try {
    if (options_.prefix_cache) found = share_found(s, growing);
  } catch (...) {
    cache_.release(s.block_rows);
    throw;
  }
  if ((options_.prefix_cache && better_wait(s, found)) || !has_room(s, growing)) {
    cache_.release(s.block_rows);
    return false;
  }
  ReuseEnd end = ReuseEnd::kDisabled;
  Copied copied;
  FATHOM_CHECK(cache_.reserve(s.block_rows, s.size()), s.size());
  if (options_.prefix_cache) {
    copied = copy_alike(s, found);
    end = reuse_end(s, found, copied);
  }
  s.published = found;
  s.computed = found * kKeyBlock + copied.rows;
  s.prefill_end = s.size();
  stats_.cached_tokens += s.computed;
  if (s.reuse.end == ReuseEnd::kNotStarted) s.reuse = {s.computed, end};
  return true;
}

// A block of its own that holds this content, from the store; kNone if that has none, or if the
// sequence cannot start anyway (a loaded block takes the room of a computed one).
int64_t Engine::load_stored(const Sequence& s, int64_t growing, const BlockPool::Content& content) {
  if (store_ == nullptr || !store_->has(content.hash) || !has_room(s, growing))
    return BlockPool::kNone;
  const int64_t block = cache_.pool().take();
  bool loaded = false;
  try {
    loaded = store_->load(content, cache_.view(), block * kKeyBlock);
  } catch (...) {
    cache_.pool().release(block);
    throw;
  }
  if (loaded) return cache_.pool().publish(block, content);
  cache_.pool().release(block);
  return BlockPool::kNone;
}

// Shares the longest beginning that is cached, in memory or in the store; returns its blocks.
int64_t Engine::share_found(Sequence& s, int64_t growing) {
  int64_t found = 0;
  for (; found < s.findable_blocks(); ++found) {
    const BlockPool::Content wanted = content(s, found);
    int64_t block = cache_.pool().find(wanted);
    if (block != BlockPool::kNone) {
      cache_.pool().share(block);
    } else if (block = load_stored(s, growing, wanted); block == BlockPool::kNone) {
      break;
    }
    s.block_rows.push_back(block * kKeyBlock);
  }
  return found;
}

// One block more than it needs now for everyone who grows (`growing` of the running), itself too:
// else it would soon be preempted, or preempt, for nothing. Alone it always has room: the cache
// holds a whole context.
bool Engine::has_room(const Sequence& s, int64_t growing) const {
  const int64_t missing = (s.size() + kKeyBlock - 1) / kKeyBlock - std::ssize(s.block_rows);
  if (!running_.empty() && missing < s.most_blocks() - std::ssize(s.block_rows)) ++growing;
  return missing + growing <= cache_.pool().available();
}

// Somebody's prefill has not yet come to a block that this sequence lacks, or, where no whole block
// is missing, to the rest of its prompt. That prefill goes on in every step (it is older), so the
// wait ends.
bool Engine::better_wait(const Sequence& s, int64_t found) const {
  const std::span<const int32_t> wanted = s.findable_tokens(found);
  return std::any_of(running_.begin(), running_.end(), [&](const auto& other) {
    const Sequence& o = *other;
    if (!o.prefilling() || std::ssize(o.hashes) < found ||
        o.hash_before(found) != s.hash_before(found))
      return false;
    if (found < s.findable_blocks())
      return found < std::ssize(o.hashes) &&
             o.hashes[static_cast<size_t>(found)] == s.hashes[static_cast<size_t>(found)];
    const auto has = std::span(o.tokens).subspan(static_cast<size_t>(found * kKeyBlock));
    return !wanted.empty() && o.computed < s.size() - 1 && has.size() >= wanted.size() &&
           std::equal(wanted.begin(), wanted.end(), has.begin());
  });
}

// Copies rows of the block behind the shared ones from whoever has the most equal tokens there: a
// cached block or a running sequence.
Engine::Copied Engine::copy_alike(Sequence& s, int64_t found) {
  const std::span<const int32_t> wanted = s.findable_tokens(found);
  const int64_t parent = s.block_before(found);
  const BlockPool::Alike alike = cache_.pool().most_alike(parent, s.hash_before(found), wanted);
  Copied copied{alike.tokens, alike.block != BlockPool::kNone &&
                                  alike.tokens < std::min(kKeyBlock, std::ssize(wanted))};
  int64_t from = alike.block * kKeyBlock;
  for (const auto& other : running_) {
    const Sequence& o = *other;
    if (o.published != found || o.hash_before(found) != s.hash_before(found) ||
        o.block_before(found) != parent)
      continue;  // `found` is not the block it is filling, or it follows another text
    const auto has = std::span(o.tokens)
                         .first(static_cast<size_t>(o.computed))
                         .subspan(static_cast<size_t>(found * kKeyBlock));
    const int64_t equal =
        std::mismatch(has.begin(), has.end(), wanted.begin(), wanted.end()).first - has.begin();
    const bool differs = equal < std::min(std::ssize(has), std::ssize(wanted));
    if (equal == copied.rows) copied.token_differs |= differs;
    if (equal <= copied.rows) continue;
    copied = {equal, differs};
    from = o.block_rows[static_cast<size_t>(found)];
  }
  if (copied.rows > 0)
    cache_.copy_rows(from, s.block_rows[static_cast<size_t>(found)], copied.rows);
  return copied;
}

ReuseEnd Engine::reuse_end(const Sequence& s, int64_t found, Copied copied) const {
  const bool all_blocks = found == s.findable_blocks();
  if (found * kKeyBlock + copied.rows == s.size() - 1) return ReuseEnd::kPromptEnd;
  if (!all_blocks && cache_.pool().was_evicted(s.hashes[static_cast<size_t>(found)]))
    return ReuseEnd::kEvicted;
  if (copied.token_differs) return ReuseEnd::kTokenDiffers;
  return all_blocks && found > 0 ? ReuseEnd::kPromptEnd : ReuseEnd::kNothingCached;
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
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& s = *running_[i];
    const int64_t left = s.size() - s.computed;
    const int64_t rows = s.prefilling() ? std::min(left, budget) : 1;
    if (rows == 0) continue;
    if (!grow(s)) break;  // it was the youngest, and has been preempted
    if (s.prefilling()) budget -= rows;
    const auto first = s.tokens.begin() + s.computed;
    tokens_.insert(tokens_.end(), first, first + rows);
    rows_.push_back({rows, s.computed, s.block_rows});
    planned_.push_back(&s);
    if (rows == left) {
      logit_rows_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
      sampling_.push_back(&s);
    }
  }
  return options_.prefill_chunk - budget;
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
  cache_.release(s.block_rows);
  s.computed = s.published = s.prefill_end = 0;
  ++stats_.preemptions;
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
    sampled_[i] = s.sampler.sample(std::span(logits_).subspan(i * vocab_size, vocab_size), s.size(),
                                   log_sum_exp_[i]);
  });
}

// From here on nothing throws: the step happens as a whole.
void Engine::finish_step(std::vector<TokenEvent>& events) {
  make_room(events, std::ssize(sampling_));
  for (size_t i = 0; i < planned_.size(); ++i) {
    planned_[i]->computed += rows_[i].rows;
    publish(*planned_[i]);
  }
  for (size_t i = 0; i < sampling_.size(); ++i) {
    Sequence& s = *sampling_[i];
    TokenEvent event{s.id, -1, 0, {}, FinishReason::kNone, s.reuse};
    if (sampled_[i]) {
      event.token = sampled_[i]->token;
      event.logprob = sampled_[i]->logprob;
      event.top_logprobs = std::move(sampled_[i]->top_logprobs);
      s.tokens.push_back(event.token);
      s.sampler.remember(event.token);
      const std::vector<int32_t>& stops = s.request.stop_ids;
      if (std::find(stops.begin(), stops.end(), event.token) != stops.end()) {
        event.finish = FinishReason::kStop;
      } else if (s.generated() == s.request.max_tokens) {
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

// Blocks that have become full can be found from now on. A block whose content somebody else has
// published meanwhile is given back for that one: same tokens, same bits.
void Engine::publish(Sequence& s) {
  if (!options_.prefix_cache) return;
  s.extend_hashes(s.computed);
  for (; (s.published + 1) * kKeyBlock <= s.computed; ++s.published) {
    int64_t& row = s.block_rows[static_cast<size_t>(s.published)];
    row = cache_.pool().publish(row / kKeyBlock, content(s, s.published)) * kKeyBlock;
  }
}

void Engine::check() const {
  std::vector<int64_t> owned;
  uint64_t last_id = 0;
  for (const auto& s : running_) {
    FATHOM_CHECK(s->id > last_id && s->computed < s->size(), s->id, last_id, s->computed);
    FATHOM_CHECK(s->computed <= std::ssize(s->block_rows) * kKeyBlock, s->computed);
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
