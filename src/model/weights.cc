#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "base/check.h"
#include "base/error.h"
#include "kernels/quantize.h"
#include "model/lora.h"
#include "model/tensor_names.h"
#include "model/tensor_walk.h"

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

// [rows, cols] -> [cols, rows]; BF16 stays BF16, all else becomes f32 (exact either way).
void transpose_weight(const WeightView& w, std::byte* out) {
  std::vector<float> row(static_cast<size_t>(w.cols));
  for (int64_t r = 0; r < w.rows; ++r) {
    dequantize_weight(Isa::kPortable, w, r, 0, w.cols, row.data());
    for (int64_t c = 0; c < w.cols; ++c) {
      const float value = row[static_cast<size_t>(c)];
      if (w.dtype == DType::kBF16) {
        reinterpret_cast<bf16*>(out)[c * w.rows + r] = f32_to_bf16(value);
      } else {
        reinterpret_cast<float*>(out)[c * w.rows + r] = value;
      }
    }
  }
}

// Takes tensors from a checkpoint by Hugging Face name and expected shape, and remembers what was
// asked for. A visitor of tensor_walk.h.
class Loader {
 public:
  Loader(const Checkpoint& checkpoint, const ModelConfig& config, ModelWeights& out)
      : checkpoint_(checkpoint), config_(config), out_(out), gguf_(checkpoint.gguf() != nullptr) {}

  void matrix(const std::string& name, Linear& w, int64_t rows, int64_t cols, ParameterKind) {
    w.weight = weight(name, rows, cols);
  }
  // Separate tensors in Hugging Face files, one stacked tensor in GGUF.
  void experts(const std::string& mlp, const std::string& part, Experts& w, int64_t rows,
               int64_t cols);
  // Any float tensor; widened to f32 if it is not.
  void vector(const std::string& name, std::span<const float>& w, std::vector<int64_t> shape,
              ParameterKind);
  void kv_b(const std::string& attn, int64_t layer, MlaWeights& w);
  // Absent when no tensor of the declared layer is in the files; half a layer is an error like any
  // other.
  bool has_mtp(int64_t layer) const {
    const std::string prefix = fmt::format("model.layers.{}", layer);
    return has(prefix + ".eh_proj.weight") || has(prefix + ".input_layernorm.weight");
  }
  void mtp_norm(const std::string& name, std::span<const float>& w, int64_t count,
                std::span<const float> model_norm) {
    if (gguf_ && !has(name)) {
      w = model_norm;
    } else {
      vector(name, w, {count}, ParameterKind::kVector);
    }
  }
  // Byte copies of the main model's embedding and head in DeepSeek's files: checked for shape, not
  // used twice.
  void mtp_copies(const std::string& prefix) {
    for (const char* copy : {".embed_tokens.weight", ".shared_head.head.weight"}) {
      if (has(prefix + copy)) weight(prefix + copy, config_.vocab_size, config_.hidden_size);
    }
  }

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
  bool has(const std::string& name) const { return checkpoint_.find(stored_name(name)) != nullptr; }

  // A weight of shape [rows, cols] in its own type.
  WeightView weight(const std::string& name, int64_t rows, int64_t cols) {
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

  void ignore(const std::string& stored) { used_.insert(stored); }

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

  std::byte* allocate(size_t bytes) {
    out_.owned.push_back(std::make_unique_for_overwrite<std::byte[]>(bytes));
    return out_.owned.back().get();
  }
  std::byte* own(size_t bytes) {
    out_.owned_bytes += bytes;
    return allocate(bytes);
  }

  WeightView own_f32(int64_t rows, int64_t cols) {
    return {DType::kF32, rows, cols, own(static_cast<size_t>(rows * cols) * 4), nullptr, 0};
  }
  static float* writable(const WeightView& owned) {
    return reinterpret_cast<float*>(const_cast<std::byte*>(owned.data));
  }

  WeightView transposed(const WeightView& w) {
    const DType dtype = w.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
    std::byte* data = own(static_cast<size_t>(w.cols * row_bytes(dtype, w.rows)));
    transpose_weight(w, data);
    return {.dtype = dtype, .rows = w.cols, .cols = w.rows, .data = data};
  }

  const Checkpoint& checkpoint_;
  const ModelConfig& config_;
  ModelWeights& out_;
  bool gguf_;
  std::set<std::string, std::less<>> used_;
};

void Loader::experts(const std::string& mlp, const std::string& part, Experts& w, int64_t rows,
                     int64_t cols) {
  std::vector<WeightView>& views = w.weight;
  if (!gguf_) {
    for (int64_t e = 0; e < config_.n_routed_experts; ++e) {
      views.push_back(weight(fmt::format("{}.experts.{}.{}.weight", mlp, e, part), rows, cols));
      if (views.back().dtype != views.front().dtype) {
        fail("{}: {}.experts.{}.{}: type {}, expected {} as its siblings",
             checkpoint_.path().string(), mlp, e, part, dtype_name(views.back().dtype),
             dtype_name(views.front().dtype));
      }
    }
    return;
  }
  const TensorInfo& stacked = require(stored_name(mlp + ".experts." + part + ".weight"),
                                      {config_.n_routed_experts, rows, cols});
  const WeightView all = view_of(stacked, config_.n_routed_experts * rows, cols);
  for (int64_t e = 0; e < config_.n_routed_experts; ++e) views.push_back(all.slice(e * rows, rows));
}

void Loader::vector(const std::string& name, std::span<const float>& w, std::vector<int64_t> shape,
                    ParameterKind) {
  const TensorInfo& tensor = require(stored_name(name), shape);
  if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kBF16 && tensor.dtype != DType::kF16) {
    fail_dtype(tensor, "F32, BF16 or F16");
  }
  int64_t count = 1;
  for (const int64_t d : shape) count *= d;
  const std::byte* data = aligned(tensor);
  if (tensor.dtype != DType::kF32) {
    std::byte* wide = allocate(static_cast<size_t>(count) * sizeof(float));
    dequantize_row(Isa::kPortable, tensor.dtype, data, count, reinterpret_cast<float*>(wide));
    data = wide;
  }
  w = {reinterpret_cast<const float*>(data), static_cast<size_t>(count)};
}

void Loader::kv_b(const std::string& attn, int64_t layer, MlaWeights& w) {
  const ModelConfig& c = config_;
  const int64_t heads = c.num_attention_heads, nope = c.qk_nope_head_dim, v = c.v_head_dim,
                rank = c.kv_lora_rank;
  const std::string blk = fmt::format("blk.{}.", layer);
  // Newer GGUF files store k transposed and v apart; some carry both layouts (models differ in
  // which is quantised how): kv_b, where present, is the checkpoint's own tensor.
  std::vector<WeightView>& k_up = w.absorbed.k_up_transposed;
  std::vector<WeightView>& v_up = w.absorbed.v_up;
  if (!gguf_ || has(attn + ".kv_b_proj.weight")) {
    if (gguf_) ignore(blk + "attn_k_b.weight"), ignore(blk + "attn_v_b.weight");
    WeightView kv_b = weight(attn + ".kv_b_proj.weight", heads * (nope + v), rank);
    if (kv_b.dtype == DType::kF8E4M3) {  // a head's rows need not start on a scale block: widen
      const WeightView wide = own_f32(heads * (nope + v), rank);
      for (int64_t r = 0; r < wide.rows; ++r)
        dequantize_weight(Isa::kPortable, kv_b, r, 0, rank, writable(wide) + r * rank);
      kv_b = wide;
    }
    for (int64_t i = 0; i < heads; ++i) {
      k_up.push_back(transposed(kv_b.slice(i * (nope + v), nope)));
      v_up.push_back(kv_b.slice(i * (nope + v) + nope, v));
    }
    w.kv_b_proj.weight = kv_b;
    return;
  }
  const WeightView k_b =
      view_of(require(blk + "attn_k_b.weight", {heads, rank, nope}), heads * rank, nope);
  const WeightView v_b =
      view_of(require(blk + "attn_v_b.weight", {heads, v, rank}), heads * v, rank);
  // BF16 parts make a BF16 whole: the very tensor they were cut from, computed with as that is. So
  // do quantised ones, which are less exact than that; products with it are twice as fast as in f32.
  const auto is_wide = [](const WeightView& part) {
    return part.dtype == DType::kF32 || part.dtype == DType::kF16;
  };
  const bool half = !is_wide(k_b) && !is_wide(v_b);
  const int64_t total = heads * (nope + v);
  WeightView& whole = w.kv_b_proj.weight;
  whole = half ? WeightView{DType::kBF16, total, rank, own(static_cast<size_t>(total * rank) * 2),
                            nullptr,      0}
               : own_f32(total, rank);
  auto* data = const_cast<std::byte*>(whole.data);
  const auto put = [&](int64_t r, int64_t column, float value) {
    if (half) {
      reinterpret_cast<bf16*>(data)[r * rank + column] = f32_to_bf16(value);
    } else {
      reinterpret_cast<float*>(data)[r * rank + column] = value;
    }
  };
  std::vector<float> row(static_cast<size_t>(std::max(nope, rank)));
  for (int64_t i = 0; i < heads; ++i) {
    k_up.push_back(k_b.slice(i * rank, rank));
    v_up.push_back(v_b.slice(i * v, v));
    const int64_t head = i * (nope + v);
    for (int64_t r = 0; r < rank; ++r) {
      dequantize_weight(Isa::kPortable, k_up.back(), r, 0, nope, row.data());
      for (int64_t d = 0; d < nope; ++d) put(head + d, r, row[static_cast<size_t>(d)]);
    }
    for (int64_t d = 0; d < v; ++d) {
      dequantize_weight(Isa::kPortable, v_up.back(), d, 0, rank, row.data());
      for (int64_t r = 0; r < rank; ++r) put(head + nope + d, r, row[static_cast<size_t>(r)]);
    }
  }
}

}  // namespace

namespace {

void absorb(const ModelConfig& c, MlaWeights& mla, ModelWeights& w) {
  const Linear& kv_b = mla.kv_b_proj;
  AbsorbedUpProjections& up = mla.absorbed;
  const int64_t nope = c.qk_nope_head_dim, v = c.v_head_dim, rank = c.kv_lora_rank;
  const auto own = [&](int64_t bytes) {
    w.owned.push_back(std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(bytes)));
    w.owned_bytes += static_cast<size_t>(bytes);
    return w.owned.back().get();
  };
  WeightView source = kv_b.weight;
  const bool fresh = up.k_up_transposed.empty();
  if (!kv_b.lora_a.empty()) {
    if (fresh) mla.absorbed.merged = reinterpret_cast<float*>(own(source.rows * rank * 4));
    merge_lora(kv_b, 0, source.rows, up.merged);
    source = {.dtype = DType::kF32,
              .rows = source.rows,
              .cols = rank,
              .data = reinterpret_cast<const std::byte*>(up.merged)};
  }
  const DType dtype = source.dtype == DType::kBF16 ? DType::kBF16 : DType::kF32;
  for (int64_t i = 0; i < c.num_attention_heads; ++i) {
    if (fresh) {
      std::byte* turned = own(rank * row_bytes(dtype, nope));
      up.k_up_transposed.push_back({.dtype = dtype, .rows = rank, .cols = nope, .data = turned});
      up.v_up.push_back(source.slice(i * (nope + v) + nope, v));
    }
    transpose_weight(source.slice(i * (nope + v), nope),
                     const_cast<std::byte*>(up.k_up_transposed[static_cast<size_t>(i)].data));
  }
}

}  // namespace

void refresh_absorbed(ModelWeights& w, const ModelConfig& config) {
  for (BlockWeights& block : w.layers) {
    if (block.mla) absorb(config, *block.mla, w);
  }
  if (w.mtp && w.mtp->block.mla) absorb(config, *w.mtp->block.mla, w);
}

void drop_absorbed(ModelWeights& w) {
  for (BlockWeights& block : w.layers) {
    if (block.mla) block.mla->absorbed = {};
  }
  if (w.mtp && w.mtp->block.mla) w.mtp->block.mla->absorbed = {};
}

ModelWeights load_weights(const Checkpoint& checkpoint, const ModelConfig& config) {
  ModelWeights w;
  Loader load(checkpoint, config, w);
  for_each_tensor(w, config, load);
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
