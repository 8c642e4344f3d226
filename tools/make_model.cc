// Writes models of real shapes with random weights, for benchmarks and load tests where no real
// checkpoint is at hand.
//
// Nothing is held in memory: a list of tensors is made from the shape, the file's head from the
// list, and the data is generated piece by piece while it is written. Element weights are drawn
// from a table of 4096 normal samples; block formats are random bytes with scales put in so that
// the dequantised weights have mean 0 and standard deviation kSigma. A byte depends on the seed,
// the tensor and its place only.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <bit>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/random.h"
#include "base/utf8.h"
#include "kernels/quantize.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kSigma = 0.02;  // initializer_range of every published config
constexpr int64_t kFp8Block = 128;
constexpr uint64_t kShardBytes = uint64_t{5} << 30;

// ---- shapes, in the words of config.json ----

enum class Family { kDeepseekV2, kDeepseekV3, kQwen2 };

struct Shape {
  std::string_view name;
  Family family;
  int64_t vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads;
  int64_t num_key_value_heads = 0;  // qwen2 only
  int64_t q_lora_rank = 0, kv_lora_rank = 0, qk_nope_head_dim = 0, qk_rope_head_dim = 0,
          v_head_dim = 0;
  int64_t first_k_dense_replace = 0, moe_intermediate_size = 0, n_routed_experts = 0,
          n_shared_experts = 0;
  int64_t num_experts_per_tok = 0, n_group = 1, topk_group = 1;
  double routed_scaling_factor = 1, mscale = 1;

  bool is_moe_layer(int64_t layer) const {
    return n_routed_experts > 0 && layer >= first_k_dense_replace;
  }
  int64_t head_dim() const {
    return family == Family::kQwen2 ? hidden_size / num_attention_heads
                                    : qk_nope_head_dim + qk_rope_head_dim;
  }
};

// clang-format off
const std::vector<Shape>& presets() {
  static const std::vector<Shape> list = {
      {.name = "tiny", .family = Family::kDeepseekV3, .vocab_size = 512, .hidden_size = 256,
       .intermediate_size = 512, .num_hidden_layers = 3, .num_attention_heads = 4, .q_lora_rank = 128,
       .kv_lora_rank = 64, .qk_nope_head_dim = 32, .qk_rope_head_dim = 16, .v_head_dim = 32,
       .first_k_dense_replace = 1, .moe_intermediate_size = 128, .n_routed_experts = 8, .n_shared_experts = 1,
       .num_experts_per_tok = 2, .n_group = 4, .topk_group = 2, .routed_scaling_factor = 2.5},
      {.name = "v3-1b", .family = Family::kDeepseekV3, .vocab_size = 32768, .hidden_size = 1536,
       .intermediate_size = 4096, .num_hidden_layers = 16, .num_attention_heads = 16, .q_lora_rank = 768,
       .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128,
       .first_k_dense_replace = 1, .moe_intermediate_size = 512, .n_routed_experts = 32, .n_shared_experts = 1,
       .num_experts_per_tok = 4, .n_group = 4, .topk_group = 2, .routed_scaling_factor = 2.5},
      // bench/v2_claims.py: equal layers and heads, equal total parameters, one by MLA and experts as
      // V2 has them, one by multi-head attention and a dense MLP
      {.name = "claims-v2", .family = Family::kDeepseekV2, .vocab_size = 32768, .hidden_size = 1536,
       .intermediate_size = 4096, .num_hidden_layers = 16, .num_attention_heads = 16, .q_lora_rank = 768,
       .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128,
       .first_k_dense_replace = 1, .moe_intermediate_size = 384, .n_routed_experts = 64, .n_shared_experts = 2,
       .num_experts_per_tok = 6},
      {.name = "claims-dense", .family = Family::kQwen2, .vocab_size = 32768, .hidden_size = 2048,
       .intermediate_size = 16640, .num_hidden_layers = 16, .num_attention_heads = 16,
       .num_key_value_heads = 16},
      {.name = "qwen2-1.5b", .family = Family::kQwen2, .vocab_size = 151936, .hidden_size = 1536,
       .intermediate_size = 8960, .num_hidden_layers = 28, .num_attention_heads = 12, .num_key_value_heads = 2},
      {.name = "v2-lite", .family = Family::kDeepseekV2, .vocab_size = 102400, .hidden_size = 2048,
       .intermediate_size = 10944, .num_hidden_layers = 27, .num_attention_heads = 16, .kv_lora_rank = 512,
       .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128, .first_k_dense_replace = 1,
       .moe_intermediate_size = 1408, .n_routed_experts = 64, .n_shared_experts = 2, .num_experts_per_tok = 6,
       .mscale = 0.707},
      {.name = "r1-2layers", .family = Family::kDeepseekV3, .vocab_size = 129280, .hidden_size = 7168,
       .intermediate_size = 18432, .num_hidden_layers = 2, .num_attention_heads = 128, .q_lora_rank = 1536,
       .kv_lora_rank = 512, .qk_nope_head_dim = 128, .qk_rope_head_dim = 64, .v_head_dim = 128,
       .first_k_dense_replace = 1, .moe_intermediate_size = 2048, .n_routed_experts = 256, .n_shared_experts = 1,
       .num_experts_per_tok = 8, .n_group = 8, .topk_group = 4, .routed_scaling_factor = 2.5},
  };
  return list;
}
// clang-format on

// ---- the tensors of a model ----

// kExact is never quantised (router, biases); kScales belong to an FP8 weight.
enum class Kind { kMatrix, kExact, kNorm, kScales };

struct TensorPlan {
  std::string name;
  std::vector<int64_t> shape;  // outermost first
  Kind kind;
  DType dtype;
  int64_t cols() const { return shape.back(); }
  int64_t elements() const {
    return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
  }
  int64_t bytes() const { return elements() / cols() * row_bytes(dtype, cols()); }
};

// A tensor's two names; `gguf` and `hf` are empty where that format has no such tensor.
using Add =
    std::function<void(std::string hf, std::string gguf, std::vector<int64_t> shape, Kind kind)>;

void add_attention(const Shape& s, const std::string& hf, const std::string& gguf, const Add& add) {
  const int64_t d = s.hidden_size, heads = s.num_attention_heads, head = s.head_dim();
  if (s.family == Family::kQwen2) {
    for (const auto& [letter, n] :
         {std::pair{"q", heads}, {"k", s.num_key_value_heads}, {"v", s.num_key_value_heads}}) {
      const std::string h = fmt::format("{}self_attn.{}_proj.", hf, letter),
                        g = fmt::format("{}attn_{}.", gguf, letter);
      add(h + "weight", g + "weight", {n * head, d}, Kind::kMatrix);
      add(h + "bias", g + "bias", {n * head}, Kind::kExact);
    }
    add(hf + "self_attn.o_proj.weight", gguf + "attn_output.weight", {d, heads * head},
        Kind::kMatrix);
    return;
  }
  const int64_t rank = s.kv_lora_rank, nope = s.qk_nope_head_dim, v = s.v_head_dim;
  if (s.q_lora_rank == 0) {
    add(hf + "self_attn.q_proj.weight", gguf + "attn_q.weight", {heads * head, d}, Kind::kMatrix);
  } else {
    add(hf + "self_attn.q_a_proj.weight", gguf + "attn_q_a.weight", {s.q_lora_rank, d},
        Kind::kMatrix);
    add(hf + "self_attn.q_a_layernorm.weight", gguf + "attn_q_a_norm.weight", {s.q_lora_rank},
        Kind::kNorm);
    add(hf + "self_attn.q_b_proj.weight", gguf + "attn_q_b.weight", {heads * head, s.q_lora_rank},
        Kind::kMatrix);
  }
  add(hf + "self_attn.kv_a_proj_with_mqa.weight", gguf + "attn_kv_a_mqa.weight",
      {rank + s.qk_rope_head_dim, d}, Kind::kMatrix);
  add(hf + "self_attn.kv_a_layernorm.weight", gguf + "attn_kv_a_norm.weight", {rank}, Kind::kNorm);
  add(hf + "self_attn.kv_b_proj.weight", "", {heads * (nope + v), rank}, Kind::kMatrix);
  add("", gguf + "attn_k_b.weight", {heads, rank, nope}, Kind::kMatrix);
  add("", gguf + "attn_v_b.weight", {heads, v, rank}, Kind::kMatrix);
  add(hf + "self_attn.o_proj.weight", gguf + "attn_output.weight", {d, heads * v}, Kind::kMatrix);
}

// gate, up [width, d] and down [d, width] under the given prefixes; `suffix` ends the GGUF name.
void add_mlp(const std::string& hf, const std::string& gguf, const std::string& suffix, int64_t d,
             int64_t width, int64_t experts, const Add& add) {
  const auto stacked = [&](int64_t rows, int64_t cols) {
    return experts > 0 ? std::vector{experts, rows, cols} : std::vector{rows, cols};
  };
  for (const char* part : {"gate", "up", "down"}) {
    const bool down = part[0] == 'd';
    add(hf.empty() ? "" : fmt::format("{}{}_proj.weight", hf, part),
        gguf.empty() ? "" : fmt::format("{}ffn_{}{}.weight", gguf, part, suffix),
        down ? stacked(d, width) : stacked(width, d), Kind::kMatrix);
  }
}

void add_layer(const Shape& s, int64_t layer, const Add& add) {
  const std::string hf = fmt::format("model.layers.{}.", layer),
                    gguf = fmt::format("blk.{}.", layer);
  const int64_t d = s.hidden_size, experts = s.n_routed_experts;
  add(hf + "input_layernorm.weight", gguf + "attn_norm.weight", {d}, Kind::kNorm);
  add_attention(s, hf, gguf, add);
  add(hf + "post_attention_layernorm.weight", gguf + "ffn_norm.weight", {d}, Kind::kNorm);
  if (!s.is_moe_layer(layer)) return add_mlp(hf + "mlp.", gguf, "", d, s.intermediate_size, 0, add);
  add(hf + "mlp.gate.weight", gguf + "ffn_gate_inp.weight", {experts, d}, Kind::kExact);
  if (s.family == Family::kDeepseekV3) {
    add(hf + "mlp.gate.e_score_correction_bias", gguf + "exp_probs_b.bias", {experts},
        Kind::kExact);
  }
  for (int64_t e = 0; e < experts; ++e) {
    add_mlp(fmt::format("{}mlp.experts.{}.", hf, e), "", "", d, s.moe_intermediate_size, 0, add);
  }
  add_mlp("", gguf, "_exps", d, s.moe_intermediate_size, experts, add);
  add_mlp(hf + "mlp.shared_experts.", gguf, "_shexp", d,
          s.moe_intermediate_size * s.n_shared_experts, 0, add);
}

void add_all(const Shape& s, const Add& add) {
  add("model.embed_tokens.weight", "token_embd.weight", {s.vocab_size, s.hidden_size},
      Kind::kMatrix);
  for (int64_t layer = 0; layer < s.num_hidden_layers; ++layer) add_layer(s, layer, add);
  add("model.norm.weight", "output_norm.weight", {s.hidden_size}, Kind::kNorm);
  add("lm_head.weight", "output.weight", {s.vocab_size, s.hidden_size}, Kind::kMatrix);
}

// ---- types per tensor ----

std::optional<DType> find_dtype(std::string_view name) {
  for (int i = 0; i < kDTypeCount; ++i) {
    const DType dtype = static_cast<DType>(i);
    if (dtype_info(dtype).computable && dtype_name(dtype) == name) return dtype;
  }
  return std::nullopt;
}

// A row that is no multiple of the block gets llama.cpp's fallback.
DType fallback(DType dtype, int64_t cols) {
  if (cols % dtype_info(dtype).block_elements == 0) return dtype;
  switch (dtype) {
    case DType::kQ2_K:
    case DType::kQ3_K:
      return fallback(DType::kQ4_0, cols);
    case DType::kQ4_K:
      return fallback(DType::kQ5_0, cols);
    case DType::kQ5_K:
      return fallback(DType::kQ5_1, cols);
    case DType::kQ6_K:
      return fallback(DType::kQ8_0, cols);
    case DType::kIQ4_XS:
      return fallback(DType::kIQ4_NL, cols);
    default:
      return DType::kF16;
  }
}

// `type`: a dtype for all matrices, or Q4_K_M: Q6_K for values and down projections of about half
// the layers.
DType gguf_dtype(const Shape& s, const std::string& type, const std::string& name, int64_t cols) {
  const bool q4_k_m = type == "Q4_K_M";
  const DType base = q4_k_m ? DType::kQ4_K : *find_dtype(type);
  const bool small = dtype_info(base).block_elements > 1 && base != DType::kQ8_0;
  if (name == "output.weight" && small) return fallback(DType::kQ6_K, cols);
  if (q4_k_m && (name.ends_with("attn_v.weight") || name.find("ffn_down") != std::string::npos)) {
    const int64_t n = s.num_hidden_layers, eighth = n / 8;
    int64_t layer = 0;
    std::from_chars(name.data() + 4, name.data() + name.size(), layer);  // blk.N.
    if (layer < eighth || layer >= n - eighth || (layer - eighth) % 3 == 2)
      return fallback(DType::kQ6_K, cols);
  }
  return fallback(base, cols);
}

std::vector<TensorPlan> plan_gguf(const Shape& s, const std::string& type) {
  std::vector<TensorPlan> plans;
  add_all(s, [&](const std::string&, std::string name, std::vector<int64_t> shape, Kind kind) {
    if (name.empty()) return;
    const DType dtype =
        kind == Kind::kMatrix ? gguf_dtype(s, type, name, shape.back()) : DType::kF32;
    plans.push_back({std::move(name), std::move(shape), kind, dtype});
  });
  return plans;
}

std::vector<TensorPlan> plan_hf(const Shape& s, DType type) {
  std::vector<TensorPlan> plans;
  const DType plain = type == DType::kF8E4M3 ? DType::kBF16 : type;
  add_all(s, [&](std::string name, const std::string&, std::vector<int64_t> shape, Kind kind) {
    if (name.empty()) return;
    const bool outside = name.starts_with("lm_head") || name.starts_with("model.embed");
    if (type == DType::kF8E4M3 && kind == Kind::kMatrix && !outside) {
      const auto blocks = [](int64_t n) { return (n + kFp8Block - 1) / kFp8Block; };
      plans.push_back({name, shape, kind, type});
      plans.push_back(
          {name + "_scale_inv", {blocks(shape[0]), blocks(shape[1])}, Kind::kScales, DType::kF32});
    } else {
      const bool router_bias = name.ends_with("e_score_correction_bias");
      plans.push_back({std::move(name), std::move(shape), kind, router_bias ? DType::kF32 : plain});
    }
  });
  return plans;
}

// ---- a byte-level tokenizer: <bos>, <eos>, the 256 bytes, three merges, unused ids up to
// vocab_size ----

struct Vocabulary {
  std::vector<std::string> tokens;
  std::vector<std::string> merges = {"\u0120 t", "h e", "i n"};  // U+0120 stands for the space
  static constexpr size_t kSpecial = 2, kUsed = kSpecial + 256 + 3;

  explicit Vocabulary(int64_t size) : tokens{"<bos>", "<eos>"} {
    uint32_t next = 256;  // bytes that do not print are shown from U+0100 on, in order
    for (uint32_t byte = 0; byte < 256; ++byte) {
      const bool prints = (byte > 32 && byte < 127) || (byte > 160 && byte != 173);
      append_utf8(prints ? byte : next++, tokens.emplace_back());
    }
    for (std::string merge : merges) tokens.push_back(merge.erase(merge.find(' '), 1));
    while (static_cast<int64_t>(tokens.size()) < size)
      tokens.push_back(fmt::format("<unused_{}>", tokens.size()));
  }
};

Json tokenizer_json(const Vocabulary& vocabulary) {
  Json vocab = Json::object(), added = Json::array();
  for (size_t id = 0; id < Vocabulary::kUsed; ++id) {
    const std::string& token = vocabulary.tokens[id];
    if (id >= Vocabulary::kSpecial) {
      vocab[token] = id;
      continue;
    }
    added.push_back({{"id", id},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  const Json byte_level = {{"type", "ByteLevel"},
                           {"add_prefix_space", false},
                           {"trim_offsets", true},
                           {"use_regex", true}};
  return {{"version", "1.0"},
          {"truncation", nullptr},
          {"padding", nullptr},
          {"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", byte_level},
          {"post_processor", nullptr},
          {"decoder", byte_level},
          {"model",
           {{"type", "BPE"},
            {"dropout", nullptr},
            {"unk_token", nullptr},
            {"continuing_subword_prefix", nullptr},
            {"end_of_word_suffix", nullptr},
            {"fuse_unk", false},
            {"byte_fallback", false},
            {"vocab", vocab},
            {"merges", vocabulary.merges}}}};
}

// ---- what the files say about the model ----

Json config_json(const Shape& s, DType type) {
  Json c = {{"vocab_size", s.vocab_size},
            {"hidden_size", s.hidden_size},
            {"intermediate_size", s.intermediate_size},
            {"num_hidden_layers", s.num_hidden_layers},
            {"num_attention_heads", s.num_attention_heads},
            {"hidden_act", "silu"},
            {"rms_norm_eps", 1e-6},
            {"rope_theta", 10000.0},
            {"tie_word_embeddings", false},
            {"bos_token_id", 0},
            {"eos_token_id", 1},
            {"initializer_range", kSigma},
            {"torch_dtype", type == DType::kF32 ? "float32" : "bfloat16"}};
  if (s.family == Family::kQwen2) {
    c.update({{"architectures", {"Qwen2ForCausalLM"}},
              {"model_type", "qwen2"},
              {"max_position_embeddings", 131072},
              {"num_key_value_heads", s.num_key_value_heads},
              {"use_sliding_window", false}});
  } else {
    const bool v3 = s.family == Family::kDeepseekV3;
    c.update({{"architectures", {v3 ? "DeepseekV3ForCausalLM" : "DeepseekV2ForCausalLM"}},
              {"model_type", v3 ? "deepseek_v3" : "deepseek_v2"},
              {"max_position_embeddings", 163840},
              {"num_key_value_heads", s.num_attention_heads},
              {"attention_bias", false},
              {"q_lora_rank", s.q_lora_rank > 0 ? Json(s.q_lora_rank) : Json()},
              {"kv_lora_rank", s.kv_lora_rank},
              {"qk_nope_head_dim", s.qk_nope_head_dim},
              {"qk_rope_head_dim", s.qk_rope_head_dim},
              {"v_head_dim", s.v_head_dim},
              {"moe_intermediate_size", s.moe_intermediate_size},
              {"n_routed_experts", s.n_routed_experts},
              {"n_shared_experts", s.n_shared_experts},
              {"num_experts_per_tok", s.num_experts_per_tok},
              {"first_k_dense_replace", s.first_k_dense_replace},
              {"moe_layer_freq", 1},
              {"n_group", s.n_group},
              {"topk_group", s.topk_group},
              {"topk_method", v3 ? "noaux_tc" : "greedy"},
              {"scoring_func", v3 ? "sigmoid" : "softmax"},
              {"norm_topk_prob", v3},
              {"routed_scaling_factor", s.routed_scaling_factor},
              {"rope_scaling",
               {{"type", "yarn"},
                {"factor", 40},
                {"original_max_position_embeddings", 4096},
                {"beta_fast", 32},
                {"beta_slow", 1},
                {"mscale", s.mscale},
                {"mscale_all_dim", s.mscale}}}});
  }
  if (type == DType::kF8E4M3) {
    c["quantization_config"] = {{"quant_method", "fp8"},
                                {"fmt", "e4m3"},
                                {"activation_scheme", "dynamic"},
                                {"weight_block_size", {kFp8Block, kFp8Block}}};
  }
  return c;
}

// Little-endian bytes of a GGUF head; counts keys as they are put.
class GgufHead {
 public:
  template <class T>
  void raw(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void string(std::string_view text) {
    raw<uint64_t>(text.size());
    bytes_ += text;
  }
  void put(std::string_view key, std::string_view value) { start(key, 8).string(value); }
  void put(std::string_view key, const char* value) { put(key, std::string_view(value)); }
  void put(std::string_view key, bool value) { start(key, 7).raw<uint8_t>(value); }
  void put(std::string_view key, int64_t value) { start(key, 4).raw(static_cast<uint32_t>(value)); }
  void put(std::string_view key, double value) { start(key, 6).raw(static_cast<float>(value)); }
  void put(std::string_view key, const std::vector<std::string>& values) {
    array(key, 8, values.size());
    for (const std::string& value : values) string(value);
  }
  void put(std::string_view key, const std::vector<int32_t>& values) {
    array(key, 5, values.size());
    for (int32_t value : values) raw(value);
  }
  uint64_t keys() const { return keys_; }
  const std::string& bytes() const { return bytes_; }

 private:
  GgufHead& start(std::string_view key, uint32_t type) {
    ++keys_;
    string(key);
    raw(type);
    return *this;
  }
  void array(std::string_view key, uint32_t type, uint64_t count) {
    start(key, 9).raw(type);
    raw(count);
  }
  std::string bytes_;
  uint64_t keys_ = 0;
};

void put_metadata(const Shape& s, GgufHead& head) {
  const bool qwen2 = s.family == Family::kQwen2;
  const std::string arch = qwen2 ? "qwen2" : "deepseek2";
  const auto put = [&](std::string_view key, auto value) {
    head.put(fmt::format("{}.{}", arch, key), value);
  };
  head.put("general.architecture", arch);
  head.put("general.name", fmt::format("{} with random weights", s.name));
  head.put("general.quantization_version", int64_t{2});
  head.put("general.alignment", int64_t{32});
  put("block_count", s.num_hidden_layers);
  put("context_length", int64_t{qwen2 ? 131072 : 163840});
  put("embedding_length", s.hidden_size);
  put("feed_forward_length", s.intermediate_size);
  put("attention.head_count", s.num_attention_heads);
  put("attention.layer_norm_rms_epsilon", 1e-6);
  put("rope.freq_base", 10000.0);
  put("vocab_size", s.vocab_size);
  if (qwen2) {
    put("attention.head_count_kv", s.num_key_value_heads);
  } else {
    const bool v3 = s.family == Family::kDeepseekV3;
    put("attention.head_count_kv", int64_t{1});
    put("attention.key_length", s.kv_lora_rank + s.qk_rope_head_dim);
    put("attention.value_length", s.kv_lora_rank);
    put("attention.key_length_mla", s.head_dim());
    put("attention.value_length_mla", s.v_head_dim);
    if (s.q_lora_rank > 0) put("attention.q_lora_rank", s.q_lora_rank);
    put("attention.kv_lora_rank", s.kv_lora_rank);
    put("leading_dense_block_count", s.first_k_dense_replace);
    put("expert_count", s.n_routed_experts);
    put("expert_used_count", s.num_experts_per_tok);
    put("expert_shared_count", s.n_shared_experts);
    put("expert_feed_forward_length", s.moe_intermediate_size);
    put("expert_weights_scale", s.routed_scaling_factor);
    put("expert_weights_norm", v3);
    put("expert_gating_func", int64_t{v3 ? 2 : 1});
    put("expert_group_count", s.n_group);
    put("expert_group_used_count", s.topk_group);
    put("rope.dimension_count", s.qk_rope_head_dim);
    put("rope.scaling.type", "yarn");
    put("rope.scaling.factor", 40.0);
    put("rope.scaling.original_context_length", int64_t{4096});
    put("rope.scaling.yarn_log_multiplier", 0.1 * s.mscale);
  }
  const Vocabulary vocabulary(s.vocab_size);
  std::vector<int32_t> kinds(vocabulary.tokens.size(), 5);  // unused
  std::fill_n(kinds.begin(), Vocabulary::kUsed, 1);         // normal
  std::fill_n(kinds.begin(), Vocabulary::kSpecial, 3);      // control
  head.put("tokenizer.ggml.model", "gpt2");
  head.put("tokenizer.ggml.pre", qwen2                             ? "qwen2"
                                 : s.family == Family::kDeepseekV3 ? "deepseek-v3"
                                                                   : "deepseek-llm");
  head.put("tokenizer.ggml.tokens", vocabulary.tokens);
  head.put("tokenizer.ggml.token_type", kinds);
  head.put("tokenizer.ggml.merges", vocabulary.merges);
  head.put("tokenizer.ggml.bos_token_id", int64_t{0});
  head.put("tokenizer.ggml.eos_token_id", int64_t{1});
  head.put("tokenizer.ggml.add_bos_token", !qwen2);
}

uint32_t ggml_type(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 0;
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ4_1:
      return 3;
    case DType::kQ5_0:
      return 6;
    case DType::kQ5_1:
      return 7;
    case DType::kQ8_0:
      return 8;
    case DType::kQ2_K:
      return 10;
    case DType::kQ3_K:
      return 11;
    case DType::kQ4_K:
      return 12;
    case DType::kQ5_K:
      return 13;
    case DType::kQ6_K:
      return 14;
    case DType::kIQ4_NL:
      return 20;
    case DType::kIQ4_XS:
      return 23;
    case DType::kBF16:
      return 30;
    case DType::kMXFP4:
      return 39;
    default:
      FATHOM_CHECK(false, dtype_name(dtype));
      return 0;
  }
}

// ---- random data ----

// 4096 samples of N(mean, sigma), encoded.
std::vector<uint32_t> sample_table(DType dtype, double mean, double sigma, uint64_t seed) {
  std::vector<uint32_t> table;
  for (uint64_t i = 0; i < 4096; ++i) {
    const auto x =
        static_cast<float>(mean + sigma * random_normal({seed, RandomPurpose::kInit, 0}, i));
    switch (dtype) {
      case DType::kF32:
        table.push_back(std::bit_cast<uint32_t>(x));
        break;
      case DType::kF16:
        table.push_back(f32_to_f16(x));
        break;
      case DType::kBF16:
        table.push_back(f32_to_bf16(x));
        break;
      case DType::kF8E4M3: {
        uint32_t best = 0;
        for (uint32_t code = 0; code < 256; ++code) {  // NaN is never nearer
          const auto distance = [&](uint32_t c) {
            return std::fabs(f8e4m3_to_f32(static_cast<uint8_t>(c)) - x);
          };
          if (distance(code) < distance(best)) best = code;
        }
        table.push_back(best);
        break;
      }
      default:
        FATHOM_CHECK(false, dtype_name(dtype));
    }
  }
  return table;
}

// Where a block keeps its f16 scale and minimum, and the minimum (in scales) that makes the mean 0.
struct BlockFields {
  int64_t scale_at = 0, minimum_at = -1;
  float minimum = 0;
};
BlockFields block_fields(DType dtype) {
  switch (dtype) {
    case DType::kQ4_1:
      return {0, 2, -7.5f};
    case DType::kQ5_1:
      return {0, 2, -15.5f};
    case DType::kQ2_K:
      return {80, 82, 1.5f};
    case DType::kQ3_K:
      return {108};
    case DType::kQ4_K:
      return {0, 2, 7.5f};
    case DType::kQ5_K:
      return {0, 2, 15.5f};
    case DType::kQ6_K:
      return {208};
    default:
      return {};
  }
}

// Makes random bytes a block whose values have mean 0 and a deviation proportional to `scale`.
void finish_block(DType dtype, const BlockFields& fields, float scale, std::byte* block) {
  auto* b = reinterpret_cast<uint8_t*>(block);
  if (dtype == DType::kMXFP4) {
    b[0] = static_cast<uint8_t>(119 + b[0] % 3);  // 2^-8 .. 2^-6; the code book's deviation is 2.9
    return;
  }
  if (dtype == DType::kQ4_K || dtype == DType::kQ5_K) {  // minimum j = scale j
    for (int i = 4; i < 8; ++i) b[i + 4] = b[i];
    for (int i = 12; i < 16; ++i) b[i] = static_cast<uint8_t>((b[i] & 15) * 17);
  }
  if (dtype == DType::kQ2_K) {
    for (int i = 0; i < 16; ++i) b[i] = static_cast<uint8_t>(((b[i] & 7) + 8) * 17);
  }
  uint8_t* at = b + fields.scale_at;
  const float d = scale * (0.75f + static_cast<float>(at[0]) / 512) * (at[1] & 1 ? -1.0f : 1.0f);
  const auto put = [&](int64_t offset, float value) {
    const uint16_t half = f32_to_f16(value);
    std::memcpy(b + offset, &half, sizeof half);
  };
  put(fields.scale_at, d);
  if (fields.minimum_at >= 0) put(fields.minimum_at, d * fields.minimum);
}

// Deviation of finished blocks of scale 1, measured.
float unit_deviation(DType dtype) {
  const DTypeInfo& info = dtype_info(dtype);
  std::vector<float> values(static_cast<size_t>(info.block_elements));
  std::vector<std::byte> block(static_cast<size_t>(info.block_bytes));
  double sum = 0;
  constexpr int kBlocks = 512;
  for (uint64_t i = 0; i < kBlocks; ++i) {
    for (size_t k = 0; k < block.size(); ++k)
      block[k] = static_cast<std::byte>(random_bits({1, RandomPurpose::kInit, i}, k));
    finish_block(dtype, block_fields(dtype), 1, block.data());
    dequantize_row(Isa::kPortable, dtype, block.data(), info.block_elements, values.data());
    for (float v : values) sum += double{v} * v;
  }
  return static_cast<float>(std::sqrt(sum / static_cast<double>(kBlocks * info.block_elements)));
}

class DataWriter {
 public:
  explicit DataWriter(const std::filesystem::path& path)
      : path_(path.string()), out_(path, std::ios::binary) {
    check();
  }
  void bytes(const void* data, int64_t n) {
    out_.write(static_cast<const char*>(data), n);
    check();
    written_ += n;
  }
  void pad(int64_t alignment) {
    const std::string zeros(static_cast<size_t>((alignment - written_ % alignment) % alignment),
                            '\0');
    bytes(zeros.data(), static_cast<int64_t>(zeros.size()));
  }
  void close() {
    out_.close();
    check();
  }

 private:
  void check() const {
    if (!out_) fail_resource("{}: write: {}", path_, std::strerror(errno));
  }
  std::string path_;
  std::ofstream out_;
  int64_t written_ = 0;
};

// 4 samples from each 64 random bits, 12 bits each.
template <class T>
void fill_elements(const std::vector<uint32_t>& table, uint64_t key, int64_t first, int64_t n,
                   void* out) {
  T* values = static_cast<T*>(out);
  for (int64_t i = 0; i < n; i += 4) {
    const uint64_t bits = mix_bits(key ^ static_cast<uint64_t>(first + i));
    for (int64_t j = 0; j < 4; ++j) values[i + j] = static_cast<T>(table[bits >> (16 * j) & 4095]);
  }
}

// Random weights; keeps what is the same for all tensors of a type.
class Generator {
 public:
  explicit Generator(uint64_t seed) : seed_(seed) {}

  // `index` is the tensor's number in the model.
  void write(const TensorPlan& t, uint64_t index, DataWriter& out) {
    const DTypeInfo& info = dtype_info(t.dtype);
    const int64_t blocks = t.elements() / info.block_elements;
    const uint64_t key = random_bits({seed_, RandomPurpose::kInit, index}, 0);
    const int64_t piece = (int64_t{1} << 20) / info.block_bytes / 8 * 8;  // blocks, or elements
    buffer_.resize(static_cast<size_t>((std::min(piece, blocks) + 7) / 8 * 8 * info.block_bytes));
    for (int64_t first = 0; first < blocks; first += piece) {
      const int64_t n = std::min(piece, blocks - first);
      if (info.block_elements > 1) {
        fill_blocks(t.dtype, key, first, n);
      } else {
        const std::vector<uint32_t>& samples = table(t.dtype, t.kind);
        if (info.block_bytes == 4) fill_elements<uint32_t>(samples, key, first, n, buffer_.data());
        if (info.block_bytes == 2) fill_elements<uint16_t>(samples, key, first, n, buffer_.data());
        if (info.block_bytes == 1) fill_elements<uint8_t>(samples, key, first, n, buffer_.data());
      }
      out.bytes(buffer_.data(), n * info.block_bytes);
    }
  }

 private:
  void fill_blocks(DType dtype, uint64_t key, int64_t first, int64_t n) {
    const int64_t bytes = dtype_info(dtype).block_bytes,
                  start = first * bytes / 8;  // first is a multiple of 8
    for (int64_t i = 0; i < (n * bytes + 7) / 8; ++i) {
      const uint64_t bits = mix_bits(key ^ static_cast<uint64_t>(start + i));
      std::memcpy(buffer_.data() + 8 * i, &bits, sizeof bits);
    }
    float& scale = scales_[dtype];
    if (scale == 0) scale = static_cast<float>(kSigma) / unit_deviation(dtype);
    const BlockFields fields = block_fields(dtype);
    for (int64_t b = 0; b < n; ++b) finish_block(dtype, fields, scale, buffer_.data() + b * bytes);
  }

  const std::vector<uint32_t>& table(DType dtype, Kind kind) {
    std::vector<uint32_t>& samples = tables_[{dtype, kind}];
    if (!samples.empty()) return samples;
    // FP8 fills its range to about 4.5 deviations, as a quantiser by the largest of 16384 values
    // does.
    const double fp8_sigma = 100;
    if (kind == Kind::kNorm) return samples = sample_table(dtype, 1, kSigma, seed_);
    if (kind == Kind::kScales)
      return samples = sample_table(dtype, kSigma / fp8_sigma, kSigma / fp8_sigma / 10, seed_);
    return samples = sample_table(dtype, 0, dtype == DType::kF8E4M3 ? fp8_sigma : kSigma, seed_);
  }

  uint64_t seed_;
  std::map<std::pair<DType, Kind>, std::vector<uint32_t>> tables_;
  std::map<DType, float> scales_;
  std::vector<std::byte> buffer_;
};

int64_t total_bytes(const std::vector<TensorPlan>& plans) {
  return std::accumulate(plans.begin(), plans.end(), int64_t{0},
                         [](int64_t sum, const TensorPlan& t) { return sum + t.bytes(); });
}

void check_space(const std::filesystem::path& folder, int64_t bytes) {
  const auto free = std::filesystem::space(folder).available;
  if (free < static_cast<uint64_t>(bytes)) {
    fail_resource("{}: {:.1f} GB free, expected {:.1f} GB", folder.string(),
                  static_cast<double>(free) * 1e-9, static_cast<double>(bytes) * 1e-9);
  }
}

// ---- the two formats ----

void write_gguf(const Shape& s, const std::string& type, uint64_t seed,
                const std::filesystem::path& path) {
  constexpr int64_t kAlignment = 32;
  const std::vector<TensorPlan> plans = plan_gguf(s, type);
  GgufHead metadata, head;
  put_metadata(s, metadata);
  head.raw<uint32_t>(0x46554747);  // "GGUF"
  head.raw<uint32_t>(3);
  head.raw<uint64_t>(plans.size());
  head.raw<uint64_t>(metadata.keys());
  GgufHead tensors;
  int64_t offset = 0;
  for (const TensorPlan& t : plans) {
    tensors.string(t.name);
    tensors.raw(static_cast<uint32_t>(t.shape.size()));
    for (size_t i = t.shape.size(); i > 0; --i)
      tensors.raw<uint64_t>(static_cast<uint64_t>(t.shape[i - 1]));
    tensors.raw(ggml_type(t.dtype));
    tensors.raw<uint64_t>(static_cast<uint64_t>(offset));
    offset += (t.bytes() + kAlignment - 1) / kAlignment * kAlignment;
  }
  check_space(path.has_parent_path() ? path.parent_path() : ".", offset);
  const std::filesystem::path temporary = path.string() + ".tmp";
  DataWriter out(temporary);
  for (const GgufHead* part : {&head, &metadata, &tensors}) {
    out.bytes(part->bytes().data(), static_cast<int64_t>(part->bytes().size()));
  }
  out.pad(kAlignment);
  Generator generator(seed);
  for (size_t i = 0; i < plans.size(); ++i) {
    generator.write(plans[i], i, out);
    out.pad(kAlignment);
  }
  out.close();
  std::filesystem::rename(temporary, path);
}

void write_text(const std::filesystem::path& path, const Json& json) {
  const std::string text = json.dump(1) + "\n";
  DataWriter out(path);
  out.bytes(text.data(), static_cast<int64_t>(text.size()));
  out.close();
}

void write_safetensors(std::span<const TensorPlan> plans, uint64_t first_index,
                       Generator& generator, const std::filesystem::path& path) {
  Json header = {{"__metadata__", {{"format", "pt"}}}};
  int64_t offset = 0;
  for (const TensorPlan& t : plans) {
    header[t.name] = {{"dtype", dtype_name(t.dtype)},
                      {"shape", t.shape},
                      {"data_offsets", {offset, offset + t.bytes()}}};
    offset += t.bytes();
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  DataWriter out(path);
  out.bytes(&length, sizeof length);
  out.bytes(text.data(), static_cast<int64_t>(length));
  for (size_t i = 0; i < plans.size(); ++i) generator.write(plans[i], first_index + i, out);
  out.close();
}

void write_hf(const Shape& s, DType type, uint64_t seed, const std::filesystem::path& folder) {
  const std::vector<TensorPlan> plans = plan_hf(s, type);
  std::filesystem::create_directories(folder);
  check_space(folder, total_bytes(plans));
  write_text(folder / "config.json", config_json(s, type));
  write_text(folder / "tokenizer.json", tokenizer_json(Vocabulary(s.vocab_size)));
  write_text(folder / "tokenizer_config.json", {{"tokenizer_class", "PreTrainedTokenizerFast"},
                                                {"bos_token", "<bos>"},
                                                {"eos_token", "<eos>"},
                                                {"add_bos_token", s.family != Family::kQwen2}});
  std::vector<size_t> shards = {0};  // first tensor of each
  uint64_t size = 0;
  for (size_t i = 0; i < plans.size(); ++i) {
    const auto bytes = static_cast<uint64_t>(plans[i].bytes());
    if (size > 0 && size + bytes > kShardBytes) {
      shards.push_back(i);
      size = 0;
    }
    size += bytes;
  }
  const size_t count = shards.size();
  shards.push_back(plans.size());
  Generator generator(seed);
  Json map = Json::object();
  for (size_t k = 0; k < count; ++k) {
    const std::string name = count == 1
                                 ? "model.safetensors"
                                 : fmt::format("model-{:05}-of-{:05}.safetensors", k + 1, count);
    const auto part = std::span(plans).subspan(shards[k], shards[k + 1] - shards[k]);
    for (const TensorPlan& t : part) map[t.name] = name;
    write_safetensors(part, shards[k], generator, folder / name);
  }
  if (count == 1) return;
  write_text(folder / "model.safetensors.index.json",
             {{"metadata", {{"total_size", total_bytes(plans)}}}, {"weight_map", map}});
}

void list_presets() {
  fmt::print("{:<12} {:>10} {:>9} {:>9} {:>9} {:>9}\n", "preset", "parameters", "BF16", "FP8",
             "Q8_0", "Q4_K_M");
  for (const Shape& s : presets()) {
    int64_t parameters = 0;
    for (const TensorPlan& t : plan_hf(s, DType::kBF16)) parameters += t.elements();
    const auto gb = [](const std::vector<TensorPlan>& plans) {
      return fmt::format("{:.3f} GB", static_cast<double>(total_bytes(plans)) * 1e-9);
    };
    fmt::print("{:<12} {:>10} {:>9} {:>9} {:>9} {:>9}\n", s.name,
               fmt::format("{:.3f} B", static_cast<double>(parameters) * 1e-9),
               gb(plan_hf(s, DType::kBF16)), gb(plan_hf(s, DType::kF8E4M3)),
               gb(plan_gguf(s, "Q8_0")), gb(plan_gguf(s, "Q4_K_M")));
  }
}

void make_model(const std::string& preset, int64_t layers, std::string type, uint64_t seed,
                const std::string& out) {
  const auto found = std::find_if(presets().begin(), presets().end(),
                                  [&](const Shape& s) { return s.name == preset; });
  if (found == presets().end()) fail("PRESET: {}, expected one of those of --list", quoted(preset));
  Shape shape = *found;
  if (layers > 0) shape.num_hidden_layers = layers;
  const bool gguf = out.ends_with(".gguf");
  if (type.empty()) type = gguf ? "Q4_K_M" : "BF16";
  std::transform(type.begin(), type.end(), type.begin(),
                 [](unsigned char c) { return std::toupper(c); });
  const std::optional<DType> dtype = find_dtype(type == "FP8" ? "F8_E4M3" : type);
  const double start = seconds_now();
  if (gguf) {
    if (type != "Q4_K_M" && (!dtype || *dtype == DType::kF8E4M3)) {
      fail("--type: {}, expected Q4_K_M or one GGUF type such as Q8_0, Q4_0, F16, BF16",
           quoted(type));
    }
    write_gguf(shape, type, seed, out);
  } else {
    if (!dtype || (*dtype != DType::kF32 && *dtype != DType::kBF16 && *dtype != DType::kF8E4M3)) {
      fail(
          "--type: {}, expected F32, BF16 or FP8 (Hugging Face folder; name OUT *.gguf for the "
          "others)",
          quoted(type));
    }
    write_hf(shape, *dtype, seed, out);
  }
  const auto bytes =
      static_cast<double>(total_bytes(gguf ? plan_gguf(shape, type) : plan_hf(shape, *dtype)));
  fmt::print("{}: {} {}, {:.3f} GB, {:.0f} MB/s\n", out, preset, type, bytes * 1e-9,
             bytes * 1e-6 / (seconds_now() - start));
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  CLI::App app("Writes a model of a real shape with random weights.");
  app.footer(
      "Examples:\n"
      "  make_model tiny tiny/                          Hugging Face folder, BF16\n"
      "  make_model r1-2layers r1/ --type FP8           E4M3 with 128 x 128 block scales\n"
      "  make_model v2-lite v2-lite.gguf                GGUF, Q4_K_M\n"
      "  make_model v2-lite v2.gguf --type Q8_0 --layers 4\n");
  std::string preset, out, type;
  int64_t layers = 0;
  uint64_t seed = 1;
  bool list = false;
  app.add_flag("--list", list, "presets and their sizes");
  app.add_option("PRESET", preset, "shape, one of --list");
  app.add_option("OUT", out, "folder (Hugging Face) or FILE.gguf");
  app.add_option("--type", type,
                 "F32, BF16, FP8; GGUF: Q4_K_M (default) or one type for all matrices");
  app.add_option("--layers", layers, "fewer or more layers than the preset")
      ->check(CLI::Range(1, 1024));
  app.add_option("--seed", seed, "same seed, same bytes");
  CLI11_PARSE(app, argc, argv);
  try {
    if (list) {
      fathom::list_presets();
    } else if (preset.empty() || out.empty()) {
      fmt::print("{}", app.help());
      return static_cast<int>(fathom::ExitCode::kBadInput);
    } else {
      fathom::make_model(preset, layers, type, seed, out);
    }
  } catch (const fathom::Error& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    return static_cast<int>(e.code());
  } catch (const std::exception& e) {
    fmt::print(stderr, "error: {}\n", e.what());
    return static_cast<int>(fathom::ExitCode::kNoResources);
  }
}
