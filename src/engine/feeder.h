// Feeds one known sequence through a model, chunk by chunk, with a cache of its own: logits of
// every position for `logits`, `eval`, `selftest` and tests. No sampling, no scheduling.
#pragma once

#include <span>

#include "engine/kv_cache.h"
#include "model/model.h"

namespace fathom {

class Feeder {
 public:
  // Room for `tokens` positions. Throws (exit code 3) if the cache does not fit.
  Feeder(const Model& model, Context& ctx, int64_t tokens, DType cache_dtype, MlaForm form);

  // The next tokens of the sequence. logits [tokens.size(), vocab_size]; hidden_out and trace as in
  // Model::forward_infer. Throws if a token is outside the vocabulary. REQUIRES: room left.
  void feed(std::span<const int32_t> tokens, Rows logits, Rows* hidden_out = nullptr,
            ForwardTrace* trace = nullptr);

  // The MTP layer over positions it has not seen: see Model::forward_mtp. Keeps its own position.
  void feed_mtp(std::span<const int32_t> next_tokens, ConstRows hidden, Rows logits);

 private:
  InferBatch batch(std::span<const int32_t> tokens, const SequenceRows& sequence);

  const Model& model_;
  Context& ctx_;
  KvCache cache_;
  MlaForm form_;
  std::vector<int64_t> block_rows_;
  std::vector<int32_t> all_rows_;
  int64_t position_ = 0, mtp_position_ = 0;
};

}  // namespace fathom
