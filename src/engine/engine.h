// The engine: requests in, tokens out. One thread calls everything here; each step runs one batch
// that mixes decode rows of running sequences with prefill chunks of new ones.
//
// A request's tokens never depend on what runs beside it, on prefill_chunk, on threads or on
// cancellations of others: bit for bit.
//
// Order is first come, first served: the oldest waiting request starts as soon as a place and all
// cache blocks it can ever need are free, so a running request never has to give way, and none is
// overtaken.
// (Reserving less and preempting comes with prefix reuse.)
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "engine/kv_cache.h"
#include "engine/request.h"
#include "engine/sampler.h"
#include "model/model.h"

namespace fathom {

struct EngineOptions {
  int64_t context_tokens = 0;  // longest prompt + answer; 0 = min(max_position_embeddings, 4096)
  // rows of the whole cache, at least context_tokens; 0 = context_tokens
  int64_t cache_tokens = 0;
  int64_t prefill_chunk = 512;  // prompt tokens per step, all requests together
  int64_t max_sequences = 16;   // running at once; others wait
  DType cache_dtype = DType::kF32;
  MlaForm form = MlaForm::kAbsorbed;
};

// Cache type for a model without a wish: F32 for F32 weights, else BF16.
DType default_cache_dtype(const Checkpoint& checkpoint);
DType default_cache_dtype(const Model& model);

// Rows through the model and their time. A step with any prompt row counts whole as prefill, so
// tokens / seconds are true rates.
struct EngineStats {
  int64_t prefill_tokens = 0, decode_tokens = 0;
  double prefill_seconds = 0, decode_seconds = 0;
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
  // The request ends with kCancelled at the next step; unknown ids are ignored.
  void cancel(uint64_t request);
  // Runs one batch; appends to events: the cancelled first, then by age of the request. False if
  // there was nothing to do. If it throws, the requests are as before the step.
  bool step(std::vector<TokenEvent>& events);
  bool idle() const { return waiting_.empty() && running_.empty(); }

  const EngineStats& stats() const { return stats_; }
  const EngineOptions& options() const { return options_; }  // with defaults filled in
  const KvCache& cache() const { return cache_; }

 private:
  struct Sequence;
  void drop_cancelled(std::vector<TokenEvent>& events);
  void admit();
  int64_t plan();
  void run_batch();
  void sample();
  void finish_step(std::vector<TokenEvent>& events);

  const Model& model_;
  Context& ctx_;
  EngineOptions options_;
  KvCache cache_;
  std::deque<std::unique_ptr<Sequence>> waiting_;
  std::vector<std::unique_ptr<Sequence>> running_;  // oldest first
  uint64_t next_id_ = 1;
  EngineStats stats_;

  // The step under way; kept so that steps allocate nothing.
  std::vector<int32_t> tokens_;
  std::vector<SequenceRows> rows_;
  std::vector<int32_t> logit_rows_;
  std::vector<Sequence*> planned_;   // [rows_.size()]
  std::vector<Sequence*> sampling_;  // [logit_rows_.size()]
  // [logit_rows_.size(), vocab_size], [logit_rows_.size()]
  std::vector<float> logits_, log_sum_exp_;
  std::vector<std::optional<SampledToken>> sampled_;  // [logit_rows_.size()]
};

}  // namespace fathom
