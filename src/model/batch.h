// One forward step: rows of several sequences, where their positions are and where their keys and
// values live. The model declares what it needs of the cache; the engine (pages) or a caller with
// one contiguous buffer fills it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/attention.h"
#include "tensor/dtype.h"

namespace fathom {

// The two forms of MLA (V2 §2.1.2; same mathematics, different rounding). Results are bit-equal
// within one form whatever the chunking, batch or threads; across forms only within the bound of
// docs/numerics.md. GQA models have one form. Rows of one text may have different forms: what a row
// becomes depends on its own and on those of all rows before it.
enum class MlaForm { kExpanded, kAbsorbed };

struct KvCacheView {
  DType dtype = DType::kF32;  // F32, BF16 or I8 (kernels/cached_rows.h)
  int64_t row_width = 0;      // ModelConfig::cache_width()
  std::vector<std::byte*>
      layers;  // base of each layer's rows; the MTP layer, if any, is the last one
};

struct InferBatch {
  std::span<const int32_t>
      tokens;  // of all sequences, one after the other; each in [0, vocab_size)
  std::span<const SequenceRows> sequences;  // rows add up to tokens.size()
  std::span<const int32_t> logit_rows;      // batch rows whose logits are wanted, ascending
  const KvCacheView* cache = nullptr;
  MlaForm form = MlaForm::kAbsorbed;
  std::span<const MlaForm> forms = {};  // unless empty: of each of `sequences`, instead of `form`
  // Told how many layers are done, after each but perhaps the last; what it throws forward_infer()
  // throws.
  const std::function<void(int64_t layers)>* after_layer = nullptr;

  MlaForm form_of(size_t sequence) const { return forms.empty() ? form : forms[sequence]; }
};

// Packed documents of one training step or a part of it. Attention stays inside each document,
// whose positions start at 0.
struct TrainBatch {
  std::span<const int32_t> tokens;            // of all documents, one after the other
  std::span<const int64_t> document_lengths;  // each >= 1; they add up to tokens.size()
  // targets[t] = the token that row t shall predict, tokens[t + 1] of the same document, or -1
  // where it does not count: at a document's end and, in fine-tuning, everywhere but in the
  // assistant's words.
  std::span<const int32_t> targets;
};

// What a layer's attention reads: keys of the cache, or, in training, of the batch itself in f32.
// Both give the same bits in the expanded form with an F32 cache.
struct KeySource {
  const InferBatch* infer = nullptr;          // exactly one of the two
  std::span<const int64_t> document_lengths;  // TrainBatch's
  int64_t layer = 0;                          // of the cache
};

// What a check may want to see; filled when given. Costs a copy per layer.
struct ForwardTrace {
  std::vector<float> hidden;  // [num_hidden_layers + 1, tokens, hidden_size]: residual stream after
                              // the embedding and each layer
  std::vector<int32_t>
      experts;  // [MoE layers, tokens, num_experts_per_tok], sorted by id in each row
};

}  // namespace fathom
