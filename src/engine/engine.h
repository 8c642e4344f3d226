// The engine: requests in, tokens out. One thread calls everything here; each step runs one batch
// that mixes decode rows of running sequences with prefill chunks of new ones.
//
// A request's tokens never depend on what runs beside it, on either chunk, on threads, on the
// cache and what it still held, on preemption or on cancellations of others: bit for bit. (The rows
// of a position depend on the tokens up to it alone and, in fast mode, on the length of the
// request's opening; random draws on (seed, choice, position).)
//
// Policy. Requests have an order, that of submit(). At any time all running ones are older than all
// waiting ones.
//   Start: the oldest waiting request starts as soon as a place is free and there are blocks for
//     its tokens and, if others run, one more for each sequence that still grows. Nobody overtakes.
//   Step: every sequence that has computed its prompt decodes one row, and its drafts, in every
//     step; beside these, prefill_chunk rows of prompts are computed, the oldest first. So neither
//     holds up the other. If nobody decodes, the oldest prompt takes up to long_chunk rows: weights
//     and keys before it are read less often, and whoever is behind it waits for its end anyway.
//     (In fast mode a prompt that would get less than kExpandedRows of the chunk and need more
//     waits for the next, as expanding its keys would not pay.)
//   Room: a block is taken when its first row is. If none is left (cached ones are evicted first),
//     the youngest running request is preempted: it gives its blocks back, becomes the first to
//     wait and later computes its tokens again, as far as the cache does not still hold them. No
//     event is sent twice.
//   End: the oldest request is preempted by nobody, and a whole context fits into the cache; so it
//     goes on in every step until it ends, then the next is the oldest. Nothing starves or blocks.
//
// Prefix cache. Blocks of kKeyBlock rows can be found by their tokens (in fast mode together with
// the forms of their rows) and all before them (block_pool.h) as soon as they are full, or else
// when their request ends or is preempted, generated tokens included, and stay until their room is
// needed. A request starts behind the full blocks it finds and behind the rows that a partly equal
// block or an equal sequence under way has for it (copied); at least its last token is computed.
// While a running request is about to compute what the next one would have in common with it, that
// one waits instead of computing it as well.
//
// Speculation (draft.h). A decoding sequence may add drafts to its row: guesses at what follows,
// computed in the same batch. Rows of drafts that were not confirmed lie behind `computed`, where
// the next step's rows go; nobody else sees them, as blocks are published up to `computed` only.
// Drafts take free or cached blocks but no running request's place, count for no chunk, and
// are not made beside more than kMostDraftingRows decode rows. How many there are follows from how
// often such guesses were right in this sequence (DraftPace) and from how many rows there are
// beside them, never from a clock.
// The MTP layer's cache row of a position depends on the next token too. Rows are filled in at the
// end of the step that learns it, or, while drafts are paused, at the latest when their block
// becomes full or the answer ends, and before it can be found. Of copied rows the last is computed
// again, as it may belong to another next token than the finder's. So may the last row of a full
// block that is shared: it is left as it is and makes drafts after it a little worse.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "engine/draft.h"
#include "engine/kv_cache.h"
#include "engine/prefix_store.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "engine/step_rows.h"
#include "model/model.h"

namespace fathom {

struct EngineOptions {
  int64_t context_tokens = 0;  // longest prompt + answer; 0 = min(max_position_embeddings, 4096)
  // rows of the whole cache, at least context_tokens; 0 = context_tokens
  int64_t cache_tokens = 0;
  // prompt tokens of a step beside sequences that decode, all requests together
  int64_t prefill_chunk = 512;
  int64_t max_sequences = 16;  // running at once; others wait
  DType cache_dtype = DType::kF32;
  MlaForm form = MlaForm::kAbsorbed;
  bool prefix_cache = true;  // find and keep computed blocks
  // prompt tokens of the oldest request in a step in which nobody decodes; 0 = 4 prefill_chunk
  int64_t long_chunk = 0;
  // Fast mode of MLA (step_rows.h): rows of a request's opening are expanded up to a multiple of
  // this, mostly kExpandedRows, all others in `form`, which must be absorbed. 0: strict mode, all
  // rows in `form`. A prefill_chunk much below kExpandedRows makes fast mode slow.
  int64_t expand_by = 0;
  // Changes no token, only how many a step yields.
  Speculation speculation = Speculation::kOff;
  int64_t draft_tokens = 0;   // at most, per sequence and step; 0 = what mostly pays
  bool pause_drafts = true;   // fewer or none where too few would be accepted
  TokenDrafter drafter = {};  // instead of the lookup

  int64_t longest_chunk() const { return long_chunk != 0 ? long_chunk : 4 * prefill_chunk; }
};

// Cache type for a model without a wish: F32 for F32 weights, else BF16.
DType default_cache_dtype(const Checkpoint& checkpoint);
DType default_cache_dtype(const Model& model);

// Rows through the model, without those of rejected drafts, and their time. A step with any prompt
// row counts whole as prefill, so tokens / seconds are true rates.
struct EngineStats {
  int64_t prefill_tokens = 0, decode_tokens = 0;
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t cached_tokens = 0;  // rows that starting requests found instead of computing them
  int64_t preemptions = 0;
  int64_t drafted = 0, accepted = 0;  // draft tokens put through the model, and confirmed
};

class Engine {
 public:
  // model and ctx outlive the engine. Throws on options out of range, or (exit code 3) if the cache
  // does not fit.
  Engine(const Model& model, Context& ctx, const EngineOptions& options);
  ~Engine();

  // Returns the request's id. Throws on an impossible request (empty prompt, ids outside the
  // vocabulary, prompt + max_tokens beyond the context, naming both numbers; sampling out of
  // range).
  uint64_t submit(Request request);
  // The request ends with kCancelled at the next step, wherever it is; unknown ids are ignored.
  void cancel(uint64_t request);
  using PromptWatcher = std::function<void(int64_t rows)>;
  // Runs one batch; appends to events: the cancelled first, then by age of the request (with
  // speculation several of one request, in order). False if there was nothing to do. Once warm, a
  // step that only decodes allocates nothing, unless log-probabilities are wanted or `events`
  // grows.
  //
  // watcher: told between layers, on this thread, how many prompt rows' worth of the step is done,
  // if it has any. It may throw, so that a long step is given up, but may not call the engine.
  //
  // If it throws, no token is lost, repeated or changed: the cancelled that it reported are gone,
  // and for all others the next step does what this one would have done. (Requests may have been
  // started or preempted, which no event shows.)
  bool step(std::vector<TokenEvent>& events, const PromptWatcher& watcher = {});
  bool idle() const { return waiting_.empty() && running_.empty(); }

  // Forgets all cached content: the model's weights have changed. REQUIRES: idle(), no store.
  void forget_cached();

  // From now on blocks that are not in memory are looked for in the store, which was made for this
  // model, context, form and cache and outlives the engine. REQUIRES: prefix_cache.
  void use_store(PrefixStore* store);
  // Writes the cached blocks that the store lacks and renews the age of the others; those in use
  // follow when they are free. Waits for the disk, so the caller says when: between steps, best
  // when idle.
  void save_to_store();

  const EngineStats& stats() const { return stats_; }
  const EngineOptions& options() const { return options_; }  // with defaults filled in
  const KvCache& cache() const { return cache_; }

  // Aborts unless every block has exactly the owners that hold it, and the order above holds.
  // O(blocks). For tests.
  void check() const;

 private:
  struct Sequence;
  void drop_cancelled(std::vector<TokenEvent>& events);
  void admit();
  void reserve_step();
  bool start(Sequence& s);
  int64_t share_found(Sequence& s, int64_t growing);
  int64_t load_stored(const Sequence& s, int64_t growing, const BlockPool::Content& content);
  bool has_room(const Sequence& s, int64_t growing) const;
  bool better_wait(const Sequence& s, int64_t found) const;
  struct Copied {
    int64_t rows = 0;
    bool token_differs = false;  // the one behind them; else whoever had them has no more
  };
  void renew_alike(const Sequence& s, int64_t found);
  Copied copy_alike(Sequence& s, int64_t found);
  void give_back(Sequence& s);
  ReuseEnd reuse_end(const Sequence& s, int64_t found, Copied copied) const;
  int64_t plan();
  int64_t step_chunk() const;
  int64_t prompt_rows(const Sequence& s, int64_t budget, bool shared) const;
  bool grow(Sequence& s);
  void fit_drafts(Sequence& s);
  void preempt_youngest();
  void run_batch(int64_t prompt_rows, const PromptWatcher& watcher);
  void sample();
  void sample_rows(Sequence& s);
  struct DraftCosts {
    double row, mtp;  // what a draft's row and an MTP guess must gain, in tokens
  };
  DraftCosts draft_costs() const;
  void draft();
  void look_up(Sequence& s, int64_t most);
  void draft_mtp(Sequence& s, ConstRows fresh, int64_t most);
  void take_back();
  int64_t finish_step(std::vector<TokenEvent>& events);
  void publish(Sequence& s);
  BlockPool::Content content(const Sequence& s, int64_t block) const;

  const Model& model_;
  Context& ctx_;
  EngineOptions options_;
  KvCache cache_;
  PrefixStore* store_ = nullptr;
  std::deque<std::unique_ptr<Sequence>> waiting_;   // oldest first
  std::vector<std::unique_ptr<Sequence>> running_;  // oldest first
  uint64_t next_id_ = 1;
  EngineStats stats_;
  std::optional<MtpDrafter> mtp_;

  // The step under way; kept so that steps allocate nothing.
  std::vector<int32_t> tokens_;
  StepRows rows_;
  std::vector<int32_t> logit_rows_;
  std::vector<Sequence*> planned_;
  std::vector<Sequence*> sampling_;  // those with logit rows, 1 + drafts each
  // [logit_rows_.size(), vocab_size], [logit_rows_.size()]
  std::vector<float> logits_, log_sum_exp_;
  std::vector<std::optional<SampledToken>> sampled_;  // [logit_rows_.size()]
};

}  // namespace fathom
