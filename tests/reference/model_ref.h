// The plain twin of the whole model: double precision, loops, no cache, no SIMD, expanded MLA only.
// Reads the same weight views as the real one (each value widened exactly) and shares nothing else
// with it but the config and the rotation frequencies.
#pragma once

#include <span>
#include <vector>

#include "model/model.h"

namespace fathom::reference {

// Logits [tokens, vocab_size] of every position; hidden, if not null, receives the state after the
// final norm [tokens, hidden_size]. Precision::kNative rounds the input of every linear layer with
// BF16 or FP8 weights to bf16, as kernels/gemm.h defines; all else is exact.
std::vector<double> model_logits(const Model& model, std::span<const int32_t> tokens,
                                 Precision precision, std::vector<double>* hidden = nullptr);

// MTP logits [tokens - 1, vocab_size] from model_logits' hidden.
std::vector<double> mtp_logits(const Model& model, std::span<const int32_t> tokens,
                               Precision precision, std::span<const double> hidden);

}  // namespace fathom::reference
