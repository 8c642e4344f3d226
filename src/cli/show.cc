#include "cli/show.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/limits.h"
#include "cli/models.h"
#include "engine/kv_cache.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

// A file may be a model or only tensors; the tokenizer may be missing or of an unknown kind. What
// cannot be read is said, not fatal.
struct Inspected {
  explicit Inspected(const std::filesystem::path& path) : checkpoint(Checkpoint::open(path)) {}

  Checkpoint checkpoint;
  std::optional<ModelConfig> config;
  std::string config_problem;
  std::optional<Tokenizer> tokenizer;
  std::string tokenizer_problem;
  std::optional<ChatFormat> format;
  ModelSizes sizes;
};

Inspected inspect(const std::filesystem::path& path) {
  Inspected seen(path);
  try {
    seen.config = load_config(seen.checkpoint);
  } catch (const Error& error) {
    seen.config_problem = error.what();
  }
  try {
    seen.tokenizer = Tokenizer::from_checkpoint(seen.checkpoint);
    if (has_chat_format(*seen.tokenizer)) seen.format = detect_chat_format(*seen.tokenizer);
  } catch (const Error& error) {
    seen.tokenizer_problem = error.what();
  }
  seen.sizes = measure_model(seen.checkpoint, seen.config ? &*seen.config : nullptr);
  return seen;
}

std::string template_text(const Inspected& seen) {
  if (!seen.tokenizer) return "none";
  if (seen.format) return std::string(chat_format_name(*seen.format));
  return seen.tokenizer->chat_template_source().empty()
             ? "none (base model)"
             : "unknown to fathom (choose with --template)";
}

bool has_mtp(const Inspected& seen) {
  return cache_layers(*seen.config, seen.sizes) > seen.config->num_hidden_layers;
}

int64_t cache_bytes(const Inspected& seen, DType dtype) {
  return KvCache::bytes_per_token(*seen.config, cache_layers(*seen.config, seen.sizes), dtype);
}

Json config_json(const Inspected& seen) {
  const ModelConfig& c = *seen.config;
  Json j;
  j["name"] = true_name(seen.checkpoint, c, seen.format, seen.sizes);
  j["architecture"] = architecture_name(c.architecture);
  j["num_hidden_layers"] = c.num_hidden_layers;
  j["num_nextn_predict_layers"] = c.num_nextn_predict_layers;
  j["mtp_in_files"] = has_mtp(seen);
  j["hidden_size"] = c.hidden_size;
  j["num_attention_heads"] = c.num_attention_heads;
  j["num_key_value_heads"] = c.num_key_value_heads;
  if (c.is_mla()) j["kv_lora_rank"] = c.kv_lora_rank;
  if (c.n_routed_experts > 0) {
    j["n_routed_experts"] = c.n_routed_experts;
    j["num_experts_per_tok"] = c.router.num_experts_per_tok;
    j["n_shared_experts"] = c.n_shared_experts;
  }
  j["vocab_size"] = c.vocab_size;
  j["max_position_embeddings"] = c.max_position_embeddings;
  j["cache_bytes_per_token"] = {{"f32", cache_bytes(seen, DType::kF32)},
                                {"bf16", cache_bytes(seen, DType::kBF16)}};
  if (takes_cache_dtype(c, DType::kI8))
    j["cache_bytes_per_token"]["int8"] = cache_bytes(seen, DType::kI8);
  return j;
}

void print_as_json(const Inspected& seen, const ShowOptions& options) {
  Json j = seen.config ? config_json(seen) : Json::object();
  j["path"] = seen.checkpoint.path().string();
  if (!seen.config) j["config_error"] = seen.config_problem;
  if (!seen.tokenizer) j["tokenizer_error"] = seen.tokenizer_problem;
  if (seen.tokenizer) j["tokenizer"] = {{"tokens", seen.tokenizer->vocab_size()}};
  j["template"] = seen.format ? Json(chat_format_name(*seen.format)) : Json(nullptr);
  j["parameters"] = seen.sizes.parameters;
  j["active_parameters"] = seen.sizes.active_parameters;
  j["bytes"] = seen.sizes.bytes;
  for (int k = 0; k < kTensorKinds; ++k) {
    if (seen.sizes.kind_bytes[k] > 0)
      j["bytes_by_kind"][std::string(tensor_kind_name(static_cast<TensorKind>(k)))] =
          seen.sizes.kind_bytes[k];
  }
  for (const auto& [dtype, bytes] : seen.sizes.dtype_bytes)
    j["bytes_by_dtype"][std::string(dtype)] = bytes;
  j["tensors"] = seen.checkpoint.tensors().size();
  print_json(j);
  if (!options.tensors) return;
  for (const TensorInfo* tensor : seen.checkpoint.tensors()) {
    print_json({{"tensor", tensor->name},
                {"dtype", dtype_name(tensor->dtype)},
                {"shape", tensor->shape},
                {"bytes", tensor->bytes}});
  }
}

void print_config(const Inspected& seen) {
  const ModelConfig& c = *seen.config;
  out("{}\n\n", true_name(seen.checkpoint, c, seen.format, seen.sizes));
  out("  architecture   {}\n", architecture_name(c.architecture));
  out("  layers         {}{}\n", c.num_hidden_layers,
      has_mtp(seen) ? " + 1 for multi-token prediction"
      : c.num_nextn_predict_layers > 0
          ? " (one more is declared, for multi-token prediction: not in the files)"
          : "");
  if (c.is_mla()) {
    out("  attention      MLA, {} heads, latent of {} + {} rotary\n", c.num_attention_heads,
        c.kv_lora_rank, c.qk_rope_head_dim);
  } else {
    out("  attention      {} heads, {} for keys and values, {} wide\n", c.num_attention_heads,
        c.num_key_value_heads, c.head_dim);
  }
  if (c.n_routed_experts > 0) {
    out("  experts        {}, {} per token, {} shared; the first {} layers are dense\n",
        c.n_routed_experts, c.router.num_experts_per_tok, c.n_shared_experts,
        c.first_k_dense_replace);
  }
  out("  hidden size    {}\n", c.hidden_size);
  out("  context        {} tokens\n", c.max_position_embeddings);
  const auto cache = [&](DType dtype) {
    return bytes_text(static_cast<uint64_t>(cache_bytes(seen, dtype)));
  };
  out("  cache          {} per token in f32, {} in bf16{}\n", cache(DType::kF32),
      cache(DType::kBF16),
      takes_cache_dtype(c, DType::kI8) ? fmt::format(", {} in int8", cache(DType::kI8)) : "");
}

void print_for_people(const Inspected& seen, const ShowOptions& options) {
  if (seen.config) {
    print_config(seen);
  } else {
    out("{}\n\n  not a model fathom can run: {}\n",
        without_controls(seen.checkpoint.path().string()), seen.config_problem);
  }
  if (seen.tokenizer) {
    out("  tokenizer      {} tokens\n  template       {}\n", seen.tokenizer->vocab_size(),
        template_text(seen));
  } else {
    out("  tokenizer      none: {}\n", seen.tokenizer_problem);
  }
  out("  parameters     {}", seen.sizes.parameters);
  if (seen.sizes.active_parameters != seen.sizes.parameters)
    out(", active per token {}", seen.sizes.active_parameters);
  out("\n\n  {:<24} {:>10}   share\n", "bytes", bytes_text(seen.sizes.bytes));
  const auto row = [&](std::string_view what, uint64_t bytes) {
    if (bytes == 0) return;
    out("    {:<22} {:>10}   {:4.1f} %\n", what, bytes_text(bytes),
        100.0 * static_cast<double>(bytes) / static_cast<double>(seen.sizes.bytes));
  };
  for (int k = 0; k < kTensorKinds; ++k)
    row(tensor_kind_name(static_cast<TensorKind>(k)), seen.sizes.kind_bytes[k]);
  out("  by type\n");
  for (const auto& [dtype, bytes] : seen.sizes.dtype_bytes) row(dtype, bytes);
  if (!options.tensors) return;
  out("\n  {} tensors\n", seen.checkpoint.tensors().size());
  for (const TensorInfo* tensor : seen.checkpoint.tensors()) {
    out("    {:<56} {:<8} {}\n", without_controls(tensor->name), dtype_name(tensor->dtype),
        shape_text(tensor->shape));
  }
}

}  // namespace

int run_show(const ShowOptions& options) {
  const Inspected seen = inspect(resolve_model(options.model));
  if (options.json) {
    print_as_json(seen, options);
  } else {
    print_for_people(seen, options);
  }
  if (options.check_finite) {
    check_finite(seen.checkpoint);
    if (!options.output.quiet) note("all weights are finite");
  }
  return 0;
}

}  // namespace fathom
