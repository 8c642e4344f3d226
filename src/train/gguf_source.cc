#include "train/gguf_source.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/limits.h"
#include "formats/gguf_writer.h"
#include "formats/json.h"
#include "kernels/quantize.h"
#include "model/model.h"
#include "model/rope_table.h"
#include "model/tensor_names.h"
#include "model/tensor_walk.h"
#include "text/tokenizer.h"

namespace fathom {
namespace {

uint32_t u32(int64_t value) { return static_cast<uint32_t>(value); }
float f32(double value) { return static_cast<float>(value); }

// A visitor of tensor_walk.h over a loaded model: every tensor under its GGUF name.
class Collector {
 public:
  Collector(const ModelConfig& config, bool mtp, std::vector<GgufTensor>& out)
      : c_(config), mtp_(mtp), out_(out) {}

  void matrix(const std::string& name, Linear& w, int64_t rows, int64_t cols, ParameterKind) {
    // Llama's converters turn half-split heads into interleaved ones.
    const bool turned = c_.architecture == Architecture::kLlama &&
                        c_.rope.layout == RopeLayout::kHalfSplit &&
                        (name.ends_with("q_proj.weight") || name.ends_with("k_proj.weight"));
    out_.push_back({gguf_tensor_name(name), {rows, cols}, {w.weight}, turned ? c_.head_dim : 0});
  }
  void experts(const std::string& mlp, const std::string& part, Experts& w, int64_t rows,
               int64_t cols) {
    out_.push_back({gguf_tensor_name(mlp + ".experts." + part + ".weight"),
                    {std::ssize(w.weight), rows, cols},
                    w.weight});
  }
  void vector(const std::string& name, std::span<const float>& w, const std::vector<int64_t>& shape,
              ParameterKind) {
    out_.push_back({gguf_tensor_name(name), shape, {rows_of(w, shape.back())}});
  }
  void kv_b(const std::string&, int64_t layer, MlaWeights& w) {
    heads(fmt::format("blk.{}.attn_k_b.weight", layer), w.absorbed.k_up_transposed);
    heads(fmt::format("blk.{}.attn_v_b.weight", layer), w.absorbed.v_up);
  }
  bool has_mtp(int64_t) const { return mtp_; }
  void mtp_norm(const std::string& name, std::span<const float>& w, int64_t count,
                std::span<const float>) {
    vector(name, w, {count}, ParameterKind::kVector);
  }
  void mtp_copies(const std::string&) {}

  static WeightView rows_of(std::span<const float> values, int64_t cols) {
    return {.dtype = DType::kF32,
            .rows = std::ssize(values) / cols,
            .cols = cols,
            .data = reinterpret_cast<const std::byte*>(values.data())};
  }

 private:
  void heads(const std::string& name, const std::vector<WeightView>& views) {
    out_.push_back({name, {std::ssize(views), views[0].rows, views[0].cols}, views});
  }

  const ModelConfig& c_;
  bool mtp_;
  std::vector<GgufTensor>& out_;
};

void put_mla_keys(const ModelConfig& c, const std::string& arch, GgufWriter& w) {
  // 0: none. llama.cpp insists on the key
  w.key(arch + ".attention.q_lora_rank", u32(c.q_lora_rank));
  w.key(arch + ".attention.kv_lora_rank", u32(c.kv_lora_rank));
  w.key(arch + ".attention.key_length", u32(c.kv_lora_rank + c.qk_rope_head_dim));
  w.key(arch + ".attention.value_length", u32(c.kv_lora_rank));
  w.key(arch + ".attention.key_length_mla", u32(c.qk_head_dim()));
  w.key(arch + ".attention.value_length_mla", u32(c.v_head_dim));
  if (c.n_routed_experts == 0) {
    if (c.router.scoring_func == ScoringFunc::kSigmoid)
      w.key(arch + ".expert_gating_func", uint32_t{2});
    w.key(arch + ".leading_dense_block_count", u32(c.num_hidden_layers));
    return;
  }
  const RouterRule& r = c.router;
  w.key(arch + ".leading_dense_block_count", u32(c.first_k_dense_replace));
  w.key(arch + ".expert_count", u32(c.n_routed_experts));
  w.key(arch + ".expert_used_count", u32(r.num_experts_per_tok));
  w.key(arch + ".expert_shared_count", u32(c.n_shared_experts));
  w.key(arch + ".expert_feed_forward_length", u32(c.moe_intermediate_size));
  w.key(arch + ".expert_gating_func", uint32_t{r.scoring_func == ScoringFunc::kSigmoid ? 2u : 1u});
  w.key(arch + ".expert_weights_norm", r.norm_topk_prob);
  w.key(arch + ".expert_weights_scale", r.routed_scaling_factor);
  // readers group wherever there are groups
  if (r.n_group > 1 && r.topk_method != TopkMethod::kGreedy) {
    w.key(arch + ".expert_group_count", u32(r.n_group));
    w.key(arch + ".expert_group_used_count", u32(r.topk_group));
  }
}

// GGUF has no key for these: leaving them out would make another model.
void expect_expressible(const ModelConfig& c, const std::string& place) {
  if (c.moe_layer_freq != 1)
    fail("{}: moe_layer_freq: found {}, expected 1 (GGUF has no key for it)", place,
         c.moe_layer_freq);
  if (c.rope.type == RopeScalingType::kYarn && c.rope.mscale != c.rope.mscale_all_dim) {
    fail(
        "{}: rope_scaling: mscale {} and mscale_all_dim {}, expected the same (GGUF has one key "
        "for both)",
        place, c.rope.mscale, c.rope.mscale_all_dim);
  }
}

void put_config(const ModelConfig& c, bool mtp, const std::string& name, GgufWriter& w) {
  const std::string arch = c.is_mla()                               ? "deepseek2"
                           : c.architecture == Architecture::kQwen2 ? "qwen2"
                                                                    : "llama";
  w.key("general.architecture", arch);
  w.key("general.name", name);
  w.key("general.type", "model");
  w.key(arch + ".block_count", u32(c.num_hidden_layers + (mtp ? 1 : 0)));
  if (mtp) w.key(arch + ".nextn_predict_layers", uint32_t{1});
  w.key(arch + ".vocab_size", u32(c.vocab_size));
  w.key(arch + ".context_length", u32(c.max_position_embeddings));
  w.key(arch + ".embedding_length", u32(c.hidden_size));
  w.key(arch + ".feed_forward_length", u32(c.intermediate_size));
  w.key(arch + ".attention.head_count", u32(c.num_attention_heads));
  w.key(arch + ".attention.head_count_kv", u32(c.is_mla() ? 1 : c.num_key_value_heads));
  w.key(arch + ".attention.layer_norm_rms_epsilon", f32(c.rms_norm_eps));
  w.key(arch + ".rope.freq_base", f32(c.rope.rope_theta));
  w.key(arch + ".rope.dimension_count", u32(c.rope_dim()));
  if (c.rope.type == RopeScalingType::kYarn) {
    w.key(arch + ".rope.scaling.type", "yarn");
    w.key(arch + ".rope.scaling.factor", f32(c.rope.factor));
    w.key(arch + ".rope.scaling.original_context_length",
          u32(static_cast<int64_t>(c.rope.original_max_position_embeddings)));
    w.key(arch + ".rope.scaling.yarn_beta_fast", f32(c.rope.beta_fast));
    w.key(arch + ".rope.scaling.yarn_beta_slow", f32(c.rope.beta_slow));
    w.key(arch + ".rope.scaling.yarn_log_multiplier", f32(0.1 * c.rope.mscale_all_dim));
  }
  if (c.is_mla()) return put_mla_keys(c, arch, w);
  w.key(arch + ".attention.key_length", u32(c.head_dim));
  w.key(arch + ".attention.value_length", u32(c.head_dim));
}

// llama3's scaling is stored as what it divides the frequencies by.
std::vector<float> rope_divisors(const ModelConfig& c) {
  const std::vector<double> scaled = rope_inv_freq(c);
  std::vector<float> divisors;
  for (size_t i = 0; i < scaled.size(); ++i) {
    const double plain = std::pow(c.rope.rope_theta,
                                  -2.0 * static_cast<double>(i) / static_cast<double>(c.head_dim));
    divisors.push_back(f32(plain / scaled[i]));
  }
  return divisors;
}

// The tokenizer as its file has it; unused ids get a name of their own.
void put_tokenizer(const Checkpoint& checkpoint, const ModelConfig& c, GgufWriter& w) {
  const auto text = checkpoint.side_file("tokenizer.json", Limits{}.tokenizer_file_bytes);
  if (!text)
    fail("{}: tokenizer.json: missing, expected one to put into the file",
         checkpoint.path().string());
  const Tokenizer tokenizer = Tokenizer::from_checkpoint(checkpoint);
  const std::string place = (checkpoint.path() / "tokenizer.json").string();
  const nlohmann::json file = parse_json(*text, place);
  const JsonObject root(file, place);
  const JsonObject model(root.value("model"), place + ": model");
  enum : int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };
  const auto count = static_cast<size_t>(c.vocab_size);
  std::vector<std::string> tokens(count), merges;
  std::vector<int32_t> types(count, kUnused);
  for (size_t i = 0; i < count; ++i) tokens[i] = fmt::format("[PAD{}]", i);
  const auto put = [&](int64_t id, const std::string& token, int32_t type) {
    if (id < 0 || id >= c.vocab_size)
      fail("{}: token {}: id {}, expected below vocab_size {}", place, quoted(token), id,
           c.vocab_size);
    tokens[static_cast<size_t>(id)] = token;
    types[static_cast<size_t>(id)] = type;
  };
  for (const auto& [token, id] : model.value("vocab").items())
    put(id.get<int64_t>(), token, kNormal);
  const nlohmann::json none = nlohmann::json::array();
  for (const nlohmann::json& added : root.has("added_tokens") ? root.value("added_tokens") : none) {
    const JsonObject token(added, place + ": added_tokens");
    put(token.integer("id", 0, c.vocab_size - 1), token.string("content"),
        token.optional_boolean("special").value_or(false) ? kControl : kUserDefined);
  }
  for (const nlohmann::json& merge : model.value("merges")) {
    merges.push_back(merge.is_string()
                         ? merge.get<std::string>()
                         : merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>());
  }
  w.key("tokenizer.ggml.model", "gpt2");
  w.key("tokenizer.ggml.pre", tokenizer.gguf_pre_tokenizer());
  w.key("tokenizer.ggml.tokens", tokens);
  w.key("tokenizer.ggml.token_type", types);
  w.key("tokenizer.ggml.merges", merges);
  // The reader of a GGUF takes the model's ids from these keys too, so config.json's count where
  // the tokenizer names none.
  const int64_t bos = tokenizer.bos_id().value_or(static_cast<int32_t>(c.bos_token_id));
  if (bos >= 0) w.key("tokenizer.ggml.bos_token_id", u32(bos));
  std::vector<int64_t> ends;
  for (const int32_t id : tokenizer.eos_ids()) ends.push_back(id);
  for (const int64_t id : c.eos_token_ids) {
    if (std::find(ends.begin(), ends.end(), id) == ends.end()) ends.push_back(id);
  }
  constexpr const char* kEnds[] = {"eos", "eot", "eom"};
  if (ends.size() > std::size(kEnds))
    fail("{}: {} end tokens, expected at most {} (GGUF has no more keys)", place, ends.size(),
         std::size(kEnds));
  for (size_t i = 0; i < ends.size(); ++i)
    w.key(fmt::format("tokenizer.ggml.{}_token_id", kEnds[i]), u32(ends[i]));
  w.key("tokenizer.ggml.add_bos_token", tokenizer.add_bos());
  if (!tokenizer.chat_template_source().empty())
    w.key("tokenizer.chat_template", tokenizer.chat_template_source());
}

// Not taken over from a GGUF file: the writer says anew how tensors are stored, in one file.
bool is_storage_key(std::string_view key) {
  return key == "general.file_type" || key == "general.quantization_version" ||
         key == "general.alignment" || key.starts_with("split.") ||
         key.starts_with("quantize.imatrix.");
}

}  // namespace

std::pair<const WeightView*, int64_t> GgufTensor::place_of(int64_t r) const {
  // Row (i, j) of an interleaved head comes from (j, i) of the half-split one.
  const int64_t dim = turned_head_dim;
  const int64_t from = dim > 0 ? r / dim * dim + r % 2 * (dim / 2) + r % dim / 2 : r;
  return {&parts[static_cast<size_t>(from / parts[0].rows)], from % parts[0].rows};
}

const std::byte* GgufTensor::stored_row(int64_t r) const {
  const auto [part, row] = place_of(r);
  return part->row(row);
}

void GgufTensor::read_row(Isa isa, int64_t r, float* out) const {
  const auto [part, row] = place_of(r);
  dequantize_weight(isa, *part, row, 0, part->cols, out);
}

std::vector<GgufTensor> gguf_tensors(const Model& model, bool mtp) {
  std::vector<GgufTensor> tensors;
  Collector collector(model.config(), mtp, tensors);
  ModelTensors<AsWeights> views = model.weights();
  for_each_tensor(views, model.config(), collector);
  return tensors;
}

GgufSource::GgufSource(Checkpoint checkpoint, const Options& options)
    : options_(options), path_(checkpoint.path().string()) {
  if (checkpoint.gguf() != nullptr) {
    checkpoint_ = std::make_unique<Checkpoint>(std::move(checkpoint));
    take_gguf();
    return;
  }
  if (checkpoint.kind() != Checkpoint::Kind::kFolder)
    fail("{}: expected a Hugging Face folder or a GGUF file", path_);
  model_ = std::make_unique<Model>(std::move(checkpoint));
  take_folder(options.mtp && model_->has_mtp());
}

void GgufSource::take_folder(bool mtp) {
  options_.mtp = mtp;
  const ModelConfig& c = model_->config();
  expect_expressible(c, (model_->checkpoint().path() / "config.json").string());
  tensors_ = gguf_tensors(*model_, mtp);
  if (c.rope.type == RopeScalingType::kLlama3) {
    const std::vector<float>& divisors = owned_.emplace_back(rope_divisors(c));
    tensors_.push_back({"rope_freqs.weight",
                        {std::ssize(divisors)},
                        {Collector::rows_of(divisors, std::ssize(divisors))}});
  }
}

void GgufSource::take_gguf() {
  const Gguf& gguf = *checkpoint_->gguf();
  path_ = gguf.path();
  for (const TensorInfo& t : gguf.tensors()) {
    if (t.shape.empty() || t.bytes == 0)
      fail("{}: tensor {}: shape {}, expected at least one element in at least one dimension",
           path_, quoted(t.name), shape_text(t.shape));
    WeightView view{.dtype = t.dtype, .rows = 1, .cols = t.shape.back(), .data = t.data};
    for (size_t i = 0; i + 1 < t.shape.size(); ++i) view.rows *= t.shape[i];
    tensors_.push_back({t.name, t.shape, {view}});
  }
}

void GgufSource::put_metadata(GgufWriter& writer) const {
  if (model_ != nullptr) {
    put_config(model_->config(), options_.mtp, options_.name, writer);
    put_tokenizer(model_->checkpoint(), model_->config(), writer);
    return;
  }
  for (const auto& [key, value] : checkpoint_->gguf()->metadata()) {
    if (!is_storage_key(key)) writer.stored_key(key, value.stored);
  }
}

int64_t GgufSource::main_layers() const {
  if (model_ != nullptr) return model_->config().num_hidden_layers;
  const Gguf& gguf = *checkpoint_->gguf();
  const std::string* arch = gguf.optional_string("general.architecture");
  if (arch == nullptr) return -1;
  constexpr int64_t kMost = static_cast<int64_t>(Limits{}.layers);
  const auto layers = gguf.optional_integer(*arch + ".block_count", 0, kMost);
  const auto mtp = gguf.optional_integer(*arch + ".nextn_predict_layers", 0, kMost);
  return layers ? *layers - mtp.value_or(0) : -1;
}

}  // namespace fathom
