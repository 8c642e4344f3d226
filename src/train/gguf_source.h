// A model as a GGUF file has it: metadata, and tensors under GGUF's names whose rows can be read as
// f32. Made of a Hugging Face folder, in llama.cpp's architectures deepseek2, qwen2 and llama: MLA
// in the newer layout (attn_k_b transposed, attn_v_b), experts stacked, Llama's q and k rows
// permuted, the tokenizer from tokenizer.json. Or of a GGUF file, whose metadata and tensors are
// taken as they are, whatever the architecture. write_gguf (quantize.h) makes files of it.
#pragma once

#include <deque>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "formats/gguf_writer.h"
#include "model/model.h"
#include "tensor/context.h"

namespace fathom {

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;     // outermost first, at least one dimension
  std::vector<WeightView> parts;  // whose rows follow each other: one part per expert or head
  int64_t turned_head_dim = 0;    // > 0: rows of each head of that many are interleaved (Llama)

  DType dtype() const { return parts.front().dtype; }
  int64_t cols() const { return shape.back(); }
  int64_t rows() const { return parts.front().rows * std::ssize(parts); }
  bool is_matrix() const { return shape.size() > 1; }
  // Row r where the source has it, and as f32 (all types that dtype_info calls computable).
  const std::byte* stored_row(int64_t r) const;
  void read_row(Isa isa, int64_t r, float* out) const;

 private:
  std::pair<const WeightView*, int64_t> place_of(int64_t r) const;
};

// The tensors of a loaded model under GGUF's names, views of its weights.
std::vector<GgufTensor> gguf_tensors(const Model& model, bool mtp);

class GgufSource {
 public:
  struct Options {
    bool mtp = true;   // with the MTP layer, if the model has one (folders only)
    std::string name;  // general.name (folders only)
  };
  // A folder is loaded as Model is; a GGUF file is only mapped. Throws Error naming file and
  // subject, also where GGUF has no key for what a config says.
  GgufSource(Checkpoint checkpoint, const Options& options);

  const std::vector<GgufTensor>& tensors() const { return tensors_; }
  // All keys but those that say how tensors are stored (general.file_type, quantization_version,
  // alignment) and how the file was split.
  void put_metadata(GgufWriter& writer) const;
  const std::string& path() const { return path_; }  // begins messages about its tensors
  // of the main model, so that a tensor of MTP can be told; -1 if unknown
  int64_t main_layers() const;

 private:
  void take_folder(bool mtp);
  void take_gguf();

  Options options_;
  std::string path_;
  std::unique_ptr<Model> model_;            // of a folder
  std::unique_ptr<Checkpoint> checkpoint_;  // of a GGUF file
  std::deque<std::vector<float>> owned_;    // numbers that no file has
  std::vector<GgufTensor> tensors_;
};

}  // namespace fathom
