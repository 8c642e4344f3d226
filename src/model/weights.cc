#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "base/check.h"
#include "base/error.h"
#include "kernels/quantize.h"
#include "model/tensor_names.h"

namespace fathom {
namespace {

size_t alignment_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    default:
      return 1;
  }
}

// Asks the checkpoint for tensors by Hugging Face name and expected shape, and remembers what was
// asked for.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ModelConfig& config, ModelWeights& out)
      : checkpoint_(checkpoint), config_(config), out_(out), gguf_(checkpoint.gguf() != nullptr) {}

  bool has(const std::string& name) const { return checkpoint_.find(stored_name(name)) != nullptr; }
  bool gguf() const { return gguf_; }

  // A weight of shape [rows, cols] in its own type.
  WeightView matrix(const std::string& name, int64_t rows, int64_t cols) {
    const TensorInfo& tensor = require(stored_name(name), {rows, cols});
    WeightView view = view_of(tensor, rows, cols);
    if (tensor.dtype == DType::kF8E4M3) {
      const int64_t scale_rows = (rows + 127) / 128;
      view.scale_cols = (cols + 127) / 128;
      const TensorInfo& scales =
          require(stored_name(name) + "_scale_inv", {scale_rows, view.scale_cols});
      if (scales.dtype != DType::kF32) fail_dtype(scales, "F32");
      view.block_scales = reinterpret_cast<const float*>(aligned(scales));
    }
    return view;
  }

  // n_routed_experts weights of one shape: separate tensors in Hugging Face files, one stacked
  // tensor in GGUF.
  std::vector<WeightView> experts(const std::string& mlp, const std::string& part, int64_t rows,
                                  int64_t cols) {
    std::vector<WeightView> views;
    if (!gguf_) {
      for (int64_t e = 0; e < config_.n_routed_experts; ++e) {
        views.push_back(matrix(fmt::format("{}.experts.{}.{}.weight", mlp, e, part), rows, cols));
        if (views.back().dtype != views.front().dtype) {
          fail("{}: {}.experts.{}.{}: type {}, expected {} as its siblings",
               checkpoint_.path().string(), mlp, e, part, dtype_name(views.back().dtype),
               dtype_name(views.front().dtype));
        }
      }
      return views;
    }
    const TensorInfo& stacked = require(stored_name(mlp + ".experts." + part + ".weight"),
                                        {config_.n_routed_experts, rows, cols});
    const WeightView all = view_of(stacked, config_.n_routed_experts * rows, cols);
    for (int64_t e = 0; e < config_.n_routed_experts; ++e)
      views.push_back(all.slice(e * rows, rows));
    return views;
  }

  // Any float tensor of `count` elements, widened to f32.
  std::vector<float> vector(const std::string& name, std::vector<int64_t> shape) {
    const TensorInfo& tensor = require(stored_name(name), shape);
    if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kBF16 &&
        tensor.dtype != DType::kF16) {
      fail_dtype(tensor, "F32, BF16 or F16");
    }
    int64_t count = 1;
    for (const int64_t d : shape) count *= d;
    std::vector<float> values(static_cast<size_t>(count));
    dequantize_row(Isa::kPortable, tensor.dtype, aligned(tensor), count, values.data());
    return values;
  }

  // The V2 §2.1.2 up-projections of one layer in the forms both kinds of attention want.
  void kv_b(const std::string& attn, int64_t layer, MlaWeights& w);

  void ignore(const std::string& stored) { used_.insert(stored); }

  // Everything in the files was asked for, or is known to carry nothing.
  void expect_nothing_left() const {
    for (const TensorInfo* tensor : checkpoint_.tensors()) {
      const std::string& name = tensor->name;
      const bool harmless = name.ends_with("rotary_emb.inv_freq") || name == "rope_freqs.weight" ||
                            (name == "lm_head.weight" && config_.tie_word_embeddings);
      if (!used_.contains(name) && !harmless) {
        fail("{}: tensor {}: not a tensor of {} with this config", checkpoint_.file_name(*tensor),
             quoted(name), architecture_name(config_.architecture));
      }
    }
  }

 private:
  std::string stored_name(const std::string& name) const {
    return gguf_ ? gguf_tensor_name(name) : name;
  }

  const TensorInfo& require(const std::string& stored, const std::vector<int64_t>& shape) {
    const TensorInfo* tensor = checkpoint_.find(stored);
    if (tensor == nullptr) {
      fail("{}: tensor {}: missing, expected shape {}", checkpoint_.path().string(), quoted(stored),
           shape_text(shape));
    }
    if (tensor->shape != shape) {
      fail("{}: tensor {}: shape {}, expected {}", checkpoint_.file_name(*tensor), quoted(stored),
           shape_text(tensor->shape), shape_text(shape));
    }
    used_.insert(stored);
    return *tensor;
  }

  [[noreturn]] void fail_dtype(const TensorInfo& tensor, std::string_view expected) const {
    fail("{}: tensor {}: type {}, expected {}", checkpoint_.file_name(tensor), quoted(tensor.name),
         dtype_name(tensor.dtype), expected);
  }

  WeightView view_of(const TensorInfo& tensor, int64_t rows, int64_t cols) {
    const DTypeInfo& info = dtype_info(tensor.dtype);
    if (!info.computable) fail_dtype(tensor, "a floating-point or quantised type");
    if (cols % info.block_elements != 0) {
      fail("{}: tensor {}: {} columns, expected a multiple of {} for {}",
           checkpoint_.file_name(tensor), quoted(tensor.name), cols, info.block_elements,
           info.name);
    }
    return {tensor.dtype, rows, cols, aligned(tensor), nullptr, 0};
  }

  // The tensor's bytes, copied only if the file put them at an address its element type cannot use.
  const std::byte* aligned(const TensorInfo& tensor) {
    if (reinterpret_cast<uintptr_t>(tensor.data) % alignment_of(tensor.dtype) == 0)
      return tensor.data;
    std::byte* copy = own(tensor.bytes);
    std::memcpy(copy, tensor.data, tensor.bytes);
    return copy;
  }

  std::byte* own(size_t bytes) {
    out_.owned.push_back(std::make_unique_for_overwrite<std::byte[]>(bytes));
    out_.owned_bytes += bytes;
    return out_.owned.back().get();
  }

  WeightView own_f32(int64_t rows, int64_t cols) {
    return {DType::kF32, rows, cols, own(static_cast<size_t>(rows * cols) * 4), nullptr, 0};
  }

  // [rows, cols] -> [cols, rows]; BF16 stays BF16, all else becomes f32 (exact either way).
  WeightView transposed(const WeightView& w) {
    std::vector<float> row(static_cast<size_t>(w.cols));
    const bool keep = w.dtype == DType::kBF16;
    WeightView t{keep ? DType::kBF16 : DType::kF32,
                 w.cols,
                 w.rows,
                 own(static_cast<size_t>(w.rows * w.cols) * (keep ? 2 : 4)),
                 nullptr,
                 0};
    auto* data = const_cast<std::byte*>(t.data);
    for (int64_t r = 0; r < w.rows; ++r) {
      dequantize_weight(Isa::kPortable, w, r, 0, w.cols, row.data());
      for (int64_t c = 0; c < w.cols; ++c) {
        const float value = row[static_cast<size_t>(c)];
        if (keep) {
          reinterpret_cast<bf16*>(data)[c * w.rows + r] = f32_to_bf16(value);
        } else {
          reinterpret_cast<float*>(data)[c * w.rows + r] = value;
        }
      }
    }
    return t;
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  ModelWeights& out_;
  bool gguf_;
  std::set<std::string, std::less<>> used_;
};

void Loader::kv_b(const std::string& attn, int64_t layer, MlaWeights& w) {
  const ModelConfig& c = config_;
  const int64_t heads = c.num_attention_heads, nope = c.qk_nope_head_dim, v = c.v_head_dim,
                rank = c.kv_lora_rank;
  const std::string blk = fmt::format("blk.{}.", layer);
  // Newer GGUF files store k transposed and v apart; some carry both layouts (models differ in
  // which is quantised how): kv_b, where present, is the checkpoint's own tensor.
  if (!gguf_ || has(attn + ".kv_b_proj.weight")) {
    if (gguf_) ignore(blk + "attn_k_b.weight"), ignore(blk + "attn_v_b.weight");
    w.kv_b_proj = matrix(attn + ".kv_b_proj.weight", heads * (nope + v), rank);
    if (w.kv_b_proj.dtype ==
        DType::kF8E4M3) {  // a head's rows need not start on a scale block: widen, exactly
      const WeightView wide = own_f32(heads * (nope + v), rank);
      auto* data = reinterpret_cast<float*>(const_cast<std::byte*>(wide.data));
      for (int64_t r = 0; r < wide.rows; ++r)
        dequantize_weight(Isa::kPortable, w.kv_b_proj, r, 0, rank, data + r * rank);
      w.kv_b_proj = wide;
    }
    for (int64_t i = 0; i < heads; ++i) {
      w.k_up_transposed.push_back(transposed(w.kv_b_proj.slice(i * (nope + v), nope)));
      w.v_up.push_back(w.kv_b_proj.slice(i * (nope + v) + nope, v));
    }
    return;
  }
  const WeightView k_b =
      view_of(require(blk + "attn_k_b.weight", {heads, rank, nope}), heads * rank, nope);
  const WeightView v_b =
      view_of(require(blk + "attn_v_b.weight", {heads, v, rank}), heads * v, rank);
  w.kv_b_proj = own_f32(heads * (nope + v), rank);
  auto* kv = reinterpret_cast<float*>(const_cast<std::byte*>(w.kv_b_proj.data));
  std::vector<float> row(static_cast<size_t>(nope));
  for (int64_t i = 0; i < heads; ++i) {
    w.k_up_transposed.push_back(k_b.slice(i * rank, rank));
    w.v_up.push_back(v_b.slice(i * v, v));
    float* head = kv + i * (nope + v) * rank;
    for (int64_t r = 0; r < rank; ++r) {
      dequantize_weight(Isa::kPortable, w.k_up_transposed.back(), r, 0, nope, row.data());
      for (int64_t d = 0; d < nope; ++d) head[d * rank + r] = row[static_cast<size_t>(d)];
    }
    for (int64_t d = 0; d < v; ++d)
      dequantize_weight(Isa::kPortable, w.v_up.back(), d, 0, rank, head + (nope + d) * rank);
  }
}

MlaWeights load_mla(Loader& load, const ModelConfig& c, int64_t layer, const std::string& attn) {
  const int64_t h = c.num_attention_heads;
  MlaWeights w;
  if (c.q_lora_rank > 0) {
    w.q_a_proj = load.matrix(attn + ".q_a_proj.weight", c.q_lora_rank, c.hidden_size);
    w.q_a_layernorm = load.vector(attn + ".q_a_layernorm.weight", {c.q_lora_rank});
    w.q_b_proj = load.matrix(attn + ".q_b_proj.weight", h * c.qk_head_dim(), c.q_lora_rank);
  } else {
    w.q_proj = load.matrix(attn + ".q_proj.weight", h * c.qk_head_dim(), c.hidden_size);
  }
  w.kv_a_proj_with_mqa = load.matrix(attn + ".kv_a_proj_with_mqa.weight",
                                     c.kv_lora_rank + c.qk_rope_head_dim, c.hidden_size);
  w.kv_a_layernorm = load.vector(attn + ".kv_a_layernorm.weight", {c.kv_lora_rank});
  load.kv_b(attn, layer, w);
  w.o_proj = load.matrix(attn + ".o_proj.weight", c.hidden_size, h * c.v_head_dim);
  return w;
}

GqaWeights load_gqa(Loader& load, const ModelConfig& c, const std::string& attn) {
  const int64_t q = c.num_attention_heads * c.head_dim, kv = c.num_key_value_heads * c.head_dim;
  GqaWeights w;
  w.q_proj = load.matrix(attn + ".q_proj.weight", q, c.hidden_size);
  w.k_proj = load.matrix(attn + ".k_proj.weight", kv, c.hidden_size);
  w.v_proj = load.matrix(attn + ".v_proj.weight", kv, c.hidden_size);
  if (c.attention_bias) {
    w.q_bias = load.vector(attn + ".q_proj.bias", {q});
    w.k_bias = load.vector(attn + ".k_proj.bias", {kv});
    w.v_bias = load.vector(attn + ".v_proj.bias", {kv});
  }
  w.o_proj = load.matrix(attn + ".o_proj.weight", c.hidden_size, q);
  return w;
}

MlpWeights load_mlp(Loader& load, const std::string& mlp, int64_t hidden_size,
                    int64_t intermediate_size) {
  return {load.matrix(mlp + ".gate_proj.weight", intermediate_size, hidden_size),
          load.matrix(mlp + ".up_proj.weight", intermediate_size, hidden_size),
          load.matrix(mlp + ".down_proj.weight", hidden_size, intermediate_size)};
}

MoeWeights load_moe(Loader& load, const ModelConfig& c, const std::string& mlp) {
  MoeWeights w;
  w.gate = load.vector(mlp + ".gate.weight", {c.n_routed_experts, c.hidden_size});
  if (c.router.topk_method == TopkMethod::kNoauxTc) {
    w.e_score_correction_bias =
        load.vector(mlp + ".gate.e_score_correction_bias", {c.n_routed_experts});
  }
  w.gate_proj = load.experts(mlp, "gate_proj", c.moe_intermediate_size, c.hidden_size);
  w.up_proj = load.experts(mlp, "up_proj", c.moe_intermediate_size, c.hidden_size);
  w.down_proj = load.experts(mlp, "down_proj", c.hidden_size, c.moe_intermediate_size);
  if (c.n_shared_experts > 0) {
    w.shared_experts = load_mlp(load, mlp + ".shared_experts", c.hidden_size,
                                c.n_shared_experts * c.moe_intermediate_size);
  }
  return w;
}

BlockWeights load_block(Loader& load, const ModelConfig& c, int64_t layer) {
  const std::string prefix = fmt::format("model.layers.{}", layer);
  BlockWeights w;
  w.input_layernorm = load.vector(prefix + ".input_layernorm.weight", {c.hidden_size});
  w.post_attention_layernorm =
      load.vector(prefix + ".post_attention_layernorm.weight", {c.hidden_size});
  if (c.is_mla()) {
    w.mla = load_mla(load, c, layer, prefix + ".self_attn");
  } else {
    w.gqa = load_gqa(load, c, prefix + ".self_attn");
  }
  if (c.is_moe_layer(layer)) {
    w.moe = load_moe(load, c, prefix + ".mlp");
  } else {
    w.mlp = load_mlp(load, prefix + ".mlp", c.hidden_size, c.intermediate_size);
  }
  return w;
}

// Absent when no tensor of the declared layer is in the files; half a layer is an error like any
// other.
std::optional<MtpWeights> load_mtp(Loader& load, const ModelConfig& c,
                                   const std::vector<float>& norm) {
  const int64_t layer = c.num_hidden_layers;
  const std::string prefix = fmt::format("model.layers.{}", layer);
  if (!load.has(prefix + ".eh_proj.weight") && !load.has(prefix + ".input_layernorm.weight"))
    return std::nullopt;
  MtpWeights w;
  w.enorm = load.vector(prefix + ".enorm.weight", {c.hidden_size});
  w.hnorm = load.vector(prefix + ".hnorm.weight", {c.hidden_size});
  w.eh_proj = load.matrix(prefix + ".eh_proj.weight", c.hidden_size, 2 * c.hidden_size);
  w.block = load_block(load, c, layer);
  const bool own_norm = !load.gguf() || load.has(prefix + ".shared_head.norm.weight");
  w.shared_head_norm =
      own_norm ? load.vector(prefix + ".shared_head.norm.weight", {c.hidden_size}) : norm;
  // Byte copies of the main model's embedding and head in DeepSeek's files: checked for shape, not
  // used twice.
  for (const char* copy : {".embed_tokens.weight", ".shared_head.head.weight"}) {
    if (load.has(prefix + copy)) load.matrix(prefix + copy, c.vocab_size, c.hidden_size);
  }
  return w;
}

}  // namespace

ModelWeights load_weights(const Checkpoint& checkpoint, const ModelConfig& c) {
  ModelWeights w;
  Loader load(checkpoint, c, w);
  w.embed_tokens = load.matrix("model.embed_tokens.weight", c.vocab_size, c.hidden_size);
  w.norm = load.vector("model.norm.weight", {c.hidden_size});
  w.lm_head = c.tie_word_embeddings ? w.embed_tokens
                                    : load.matrix("lm_head.weight", c.vocab_size, c.hidden_size);
  for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer)
    w.layers.push_back(load_block(load, c, layer));
  if (c.num_nextn_predict_layers > 0) w.mtp = load_mtp(load, c, w.norm);
  load.expect_nothing_left();
  return w;
}

void check_finite(const Checkpoint& checkpoint) {
  std::vector<float> values;
  for (const TensorInfo* tensor : checkpoint.tensors()) {
    const DTypeInfo& info = dtype_info(tensor->dtype);
    if (!info.computable) continue;
    int64_t total = 1;
    for (const int64_t d : tensor->shape) total *= d;
    constexpr int64_t kChunk = 1 << 16;  // a multiple of every block size
    for (int64_t begin = 0; begin < total; begin += kChunk) {
      const int64_t count = std::min(kChunk, total - begin);
      std::vector<std::byte> bytes(static_cast<size_t>(row_bytes(tensor->dtype, count)));
      std::memcpy(bytes.data(), tensor->data + row_bytes(tensor->dtype, begin), bytes.size());
      values.resize(static_cast<size_t>(count));
      dequantize_row(Isa::kPortable, tensor->dtype, bytes.data(), count, values.data());
      for (int64_t i = 0; i < count; ++i) {
        if (!std::isfinite(values[static_cast<size_t>(i)])) {
          fail("{}: tensor {}: element {} is {}, expected finite weights",
               checkpoint.file_name(*tensor), quoted(tensor->name), begin + i,
               values[static_cast<size_t>(i)]);
        }
      }
    }
  }
}

}  // namespace fathom
