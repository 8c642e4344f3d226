// A model as one GGUF file, for this program and other engines: metadata and tensor names of
// llama.cpp's architectures deepseek2, qwen2 and llama, MLA in the newer layout (attn_k_b
// transposed, attn_v_b), experts stacked, Llama's q and k rows permuted, the tokenizer from
// tokenizer.json.
#pragma once

#include <filesystem>

#include "formats/checkpoint.h"
#include "tensor/dtype.h"

namespace fathom {

struct ExportOptions {
  // F32, F16, BF16 or Q8_0; rows that are no multiple of a block become BF16
  DType matrices = DType::kBF16;
  bool mtp = true;  // with the MTP layer, if the model has one
};

// The model is named after the file. REQUIRES: a Hugging Face folder. Throws Error naming file and
// subject; the output is all or nothing.
void export_gguf(const Checkpoint& checkpoint, const std::filesystem::path& out,
                 const ExportOptions& options);

}  // namespace fathom
