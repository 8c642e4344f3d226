#include "engine/feeder.h"

#include <numeric>

#include "base/check.h"
#include "base/error.h"

namespace fathom {

Feeder::Feeder(const Model& model, Context& ctx, int64_t tokens, DType cache_dtype, MlaForm form)
    : model_(model), ctx_(ctx), cache_(model, cache_dtype, tokens), form_(form) {
  FATHOM_CHECK(cache_.reserve(block_rows_, tokens), tokens);
}

InferBatch Feeder::batch(std::span<const int32_t> tokens, const SequenceRows& sequence) {
  for (const int32_t id : tokens) {
    if (id < 0 || id >= model_.config().vocab_size) {
      fail("token {}: outside the vocabulary of {} ids", id, model_.config().vocab_size);
    }
  }
  all_rows_.resize(tokens.size());
  std::iota(all_rows_.begin(), all_rows_.end(), 0);
  return {tokens, {&sequence, 1}, all_rows_, &cache_.view(), form_};
}

void Feeder::feed(std::span<const int32_t> tokens, Rows logits, Rows* hidden_out,
                  ForwardTrace* trace) {
  const SequenceRows sequence{static_cast<int64_t>(tokens.size()), position_, block_rows_};
  model_.forward_infer(ctx_, batch(tokens, sequence), logits, hidden_out, trace);
  position_ += sequence.rows;
}

void Feeder::feed_mtp(std::span<const int32_t> next_tokens, ConstRows hidden, Rows logits) {
  const SequenceRows sequence{static_cast<int64_t>(next_tokens.size()), mtp_position_, block_rows_};
  model_.forward_mtp(ctx_, batch(next_tokens, sequence), hidden, logits);
  mtp_position_ += sequence.rows;
}

}  // namespace fathom
