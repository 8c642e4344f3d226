#include "cli/models.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <new>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/checked.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/thread_pool.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/streaming.h"
#include "engine/engine.h"
#include "formats/json.h"
#include "model/mla.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

bool looks_like_model(const fs::path& path) {
  std::error_code error;
  if (fs::is_directory(path, error)) {
    if (fs::exists(path / "config.json", error)) return true;
    for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
      if (it->path().extension() == ".gguf") return true;
    }
    return false;
  }
  return path.extension() == ".gguf" || path.extension() == ".safetensors";
}

// The layer number in "model.layers.12.x" or "blk.12.x"; -1 if there is none.
int64_t layer_of(std::string_view name) {
  for (const std::string_view prefix : {"model.layers.", "blk."}) {
    if (!name.starts_with(prefix)) continue;
    int64_t layer = -1;
    std::from_chars(name.data() + prefix.size(), name.data() + name.size(), layer);
    return layer;
  }
  return -1;
}

bool contains(std::string_view text, std::string_view part) { return text.find(part) != text.npos; }

uint64_t element_count(const TensorInfo& tensor) {
  uint64_t count = 1;
  for (const int64_t d : tensor.shape) count *= static_cast<uint64_t>(d);
  return count;
}

std::string size_text(uint64_t parameters) {
  return count_text(static_cast<double>(parameters)) + " parameters";
}

std::string family_name(const ModelConfig& config) {
  switch (config.architecture) {
    case Architecture::kDeepseekV2:
      return "DeepSeek-V2 architecture";
    case Architecture::kDeepseekV3:
      return "DeepSeek-V3 architecture";
    case Architecture::kQwen2:
      return "Qwen2 architecture";
    case Architecture::kLlama:
      return "Llama architecture";
  }
  return "?";
}

// The name its publisher gave: GGUF's general.name, the repository of a Hugging Face cache, else
// the file or folder.
std::string given_name(const Checkpoint& checkpoint, const ModelConfig& config) {
  if (!config.name.empty()) return config.name;
  fs::path path = fs::absolute(checkpoint.path()).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  if (path.parent_path().filename() == "snapshots") {
    std::string name = path.parent_path().parent_path().filename().string();
    const size_t owner_end = name.rfind("--");
    return owner_end == name.npos ? name : name.substr(owner_end + 2);
  }
  return path.stem().empty() || fs::is_directory(path) ? path.filename().string()
                                                       : path.stem().string();
}

// What generation_config.json says about sampling. Its end-of-sequence ids are the tokenizer's
// (text/tokenizer.h).
void apply_generation_config(const std::string& text, const std::string& place, int64_t vocab_size,
                             SamplingAdvice& advice) {
  const nlohmann::json document = parse_json(text, place);
  const JsonObject json(document, place);
  const auto temperature = json.optional_number("temperature");
  const auto top_p = json.optional_number("top_p");
  const auto top_k = json.optional_integer("top_k", 0, 1 << 30);
  const auto repetition_penalty = json.optional_number("repetition_penalty");
  const bool greedy = json.optional_boolean("do_sample") == false;
  SamplingParams& p = advice.params;
  if (greedy) {
    p = SamplingParams();
  } else if (temperature || top_p || top_k) {
    p.temperature = temperature.value_or(1.0);
    p.top_p = top_p.value_or(1.0);
    p.top_k = static_cast<int>(top_k.value_or(0));
  } else if (!repetition_penalty) {
    return;
  }
  p.repetition_penalty = repetition_penalty.value_or(1.0);
  advice.source = "generation_config.json";
  try {
    validate_sampling(p, vocab_size);
  } catch (const Error& error) {
    fail("{}: {}", place, error.what());
  }
}

std::vector<int32_t> all_stop_ids(const Checkpoint& checkpoint, const ModelConfig& config,
                                  const Tokenizer& tokenizer) {
  std::vector<int32_t> ids(config.eos_token_ids.begin(), config.eos_token_ids.end());
  for (const int32_t id : tokenizer.eos_ids()) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  if (!ids.empty() && ids.back() >= config.vocab_size) {
    fail("{}: eos_token_id: found {}, expected ids below {} (vocab_size)",
         checkpoint.path().string(), ids.back(), config.vocab_size);
  }
  return ids;
}

// Sizes of a config are positive and at most 2^31; what products of them exceed 64 bits is more
// than any machine has.
Checked counted(int64_t size) { return static_cast<uint64_t>(size); }
uint64_t or_too_many(Checked bytes) { return bytes.value().value_or(UINT64_MAX); }

// `rows` rows of a step, the last of a sequence of `context` tokens.
uint64_t activation_bytes(const ModelConfig& c, int64_t rows, int64_t context) {
  const int64_t per_head = c.is_mla() ? 2 * (c.kv_lora_rank + c.qk_rope_head_dim) : 2 * c.head_dim;
  const int64_t mlp =
      std::max(3 * c.intermediate_size, static_cast<int64_t>(c.router.num_experts_per_tok) *
                                            (3 * c.moe_intermediate_size + 2 * c.hidden_size));
  // below 2^40: each factor has its limit
  const int64_t width = 4 * c.hidden_size + c.num_attention_heads * per_head + mlp;
  const Checked whole =
      counted(4) * (counted(rows) * counted(width) + counted(16) * counted(c.vocab_size));
  return or_too_many(whole + Checked(expanded_bytes(c, context)));
}

[[noreturn]] void refuse(const Checkpoint& checkpoint, const MemoryNeeds& needs, int64_t context,
                         const MemoryState& memory, const OpenOptions& options) {
  const auto without_cache = Checked(needs.weights) + Checked(needs.rebuilt) + Checked(needs.work);
  fail_resource(
      "{}: needs {} of memory (weights {}, rebuilt {}, cache for {} tokens {}, work {}), available "
      "are {}{}: {}",
      checkpoint.path().string(), bytes_text(needs.total), bytes_text(needs.weights),
      bytes_text(needs.rebuilt), context, bytes_text(needs.cache), bytes_text(needs.work),
      bytes_text(memory.available), memory_limit_text(memory, options.memory_gib),
      or_too_many(without_cache) > memory.available
          ? "use a smaller quantisation, or --ignore-memory to let weights be read from disk again "
            "and again (slow)"
          : "use a smaller --ctx or a smaller type of --cache");
}

bool is_expert(const TensorInfo& tensor) {
  return contains(tensor.name, ".experts.") || contains(tensor.name, "_exps.");
}

// Reads every page of the weights once, so that the first answer does not wait for the disk unseen;
// but neither experts that are streamed nor what lies in tiles.
void warm_files(const Model& model, const OutputOptions& output) {
  constexpr size_t kPageBytes = 4096;
  constexpr size_t kStepBytes = 4 << 20;
  const Checkpoint& checkpoint = model.checkpoint();
  const bool streamed = model.expert_cache() != nullptr;
  const auto wanted = [&](const TensorInfo& tensor) {
    return !(streamed && is_expert(tensor)) && !model.is_tiled(tensor);
  };
  uint64_t total = 0;
  for (const TensorInfo* tensor : checkpoint.tensors()) {
    if (wanted(*tensor)) total += tensor->bytes;
  }
  InterruptScope scope;
  Progress bar(output, "reading", Progress::Unit::kBytes, total);
  uint64_t done = 0;
  unsigned sum = 0;
  for (const TensorInfo* tensor : checkpoint.tensors()) {
    if (!wanted(*tensor)) continue;
    for (size_t begin = 0; begin < tensor->bytes; begin += kStepBytes) {
      const size_t end = std::min<size_t>(tensor->bytes, begin + kStepBytes);
      for (size_t i = begin; i < end; i += kPageBytes)
        sum += static_cast<unsigned>(tensor->data[i]);
      done += end - begin;
      bar.at(done);
      check_interrupt();
    }
  }
  [[maybe_unused]] volatile unsigned keep = sum;  // or the compiler drops the loop
}

// Tiles instead of the mapping, where they fit; the bytes they took. A model that does not fit as a
// whole (--ignore-memory) leaves the memory to the pages of its files. The answer is the same.
uint64_t tile_weights(Model& model, const MemoryNeeds& needs, uint64_t available, Context& ctx,
                      const OutputOptions& output) {
  const uint64_t bytes = model.tile_bytes();
  if (bytes == 0 || needs.total > available) return 0;
  const auto leave_out = [&] {
    if (output.verbose)
      note(
          "note: too little memory to arrange the weights ({}): they are read as they lie in the "
          "file, which is slower",
          bytes_text(bytes));
    return uint64_t{0};
  };
  const uint64_t own = needs.total - needs.weights + bytes;
  if (own + own / 16 > std::min(available, own_memory_left().value_or(UINT64_MAX)))
    return leave_out();
  InterruptScope scope;
  Progress bar(output, "arranging", Progress::Unit::kBytes, bytes);
  try {
    model.make_tiles(ctx, [&](uint64_t done) {
      bar.at(done);
      check_interrupt();
    });
  } catch (const std::bad_alloc&) {  // the mapping does, too
    return leave_out();
  }
  return bytes;
}

}  // namespace

std::vector<fs::path> find_models(const fs::path& folder) {
  std::vector<fs::path> found;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (looks_like_model(it->path())) found.push_back(it->path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::optional<fs::path> bundled_model() {
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  if (error) return std::nullopt;
  // build/release/fathom in a source tree, bin/fathom where it was installed.
  for (const char* folder : {"../../bundled", "../share/fathom"}) {
    const fs::path model =
        (program.parent_path() / folder / "countdown-12m.gguf").lexically_normal();
    if (fs::exists(model, error)) return model;
  }
  return std::nullopt;
}

fs::path resolve_model(const std::string& wanted) {
  const char* variable = std::getenv("FATHOM_MODEL");
  const std::string name = !wanted.empty() ? wanted : variable != nullptr ? variable : "";
  const std::vector<fs::path> models = find_models();
  if (!name.empty()) {
    std::error_code error;
    // what may not be looked at (error) is there: opening it says why not
    if (fs::exists(name, error) || error) return name;
    for (const fs::path& model : models) {
      if (model.filename() == name || model.stem() == name) return model;
    }
    fail("{}: no such file or folder{}", quoted(name),
         models.empty() ? ", and ./models holds no models"
                        : ", nor a model in ./models (type `fathom` for the list)");
  }
  if (models.size() == 1) return models.front();
  if (models.empty()) {
    fail(
        "no model given: name one (`fathom run MODEL`: a GGUF file, or a Hugging Face folder with "
        "config.json and *.safetensors), "
        "put one into ./models, or set FATHOM_MODEL");
  }
  std::string list;
  for (const fs::path& model : models) list += "\n  " + model.string();
  fail("no model given, and ./models holds {}: name one of{}", models.size(), list);
}

std::string_view tensor_kind_name(TensorKind kind) {
  constexpr std::string_view kNames[kTensorKinds] = {
      "attention",          "experts",          "shared experts",         "dense MLP",
      "embedding and head", "norms and router", "multi-token prediction", "other"};
  return kNames[static_cast<int>(kind)];
}

TensorKind tensor_kind(std::string_view name, int64_t num_hidden_layers) {
  const int64_t layer = layer_of(name);
  if (num_hidden_layers >= 0 && layer >= num_hidden_layers) return TensorKind::kMtp;
  if (contains(name, "norm.") || contains(name, "layernorm") || contains(name, "mlp.gate.") ||
      contains(name, "ffn_gate_inp") || contains(name, "exp_probs_b")) {
    return TensorKind::kNormsAndRouter;
  }
  if (contains(name, "shared_expert") || contains(name, "_shexp."))
    return TensorKind::kSharedExperts;
  if (contains(name, ".experts.") || contains(name, "_exps.")) return TensorKind::kExperts;
  if (contains(name, "self_attn.") || contains(name, ".attn_")) return TensorKind::kAttention;
  if (contains(name, "mlp.") || contains(name, ".ffn_")) return TensorKind::kDenseMlp;
  if (contains(name, "embed_tokens") || contains(name, "lm_head") || name == "token_embd.weight" ||
      name == "output.weight") {
    return TensorKind::kEmbedding;
  }
  return TensorKind::kOther;
}

ModelSizes measure_model(const Checkpoint& checkpoint, const ModelConfig* config) {
  ModelSizes sizes;
  uint64_t expert_parameters = 0;
  for (const TensorInfo* tensor : checkpoint.tensors()) {
    const TensorKind kind =
        tensor_kind(tensor->name, config != nullptr ? config->num_hidden_layers : -1);
    sizes.bytes += tensor->bytes;
    sizes.kind_bytes[static_cast<int>(kind)] += tensor->bytes;
    sizes.dtype_bytes[dtype_name(tensor->dtype)] += tensor->bytes;
    // A GGUF may hold the up-projections of MLA twice, whole and split by side.
    const int64_t layer = layer_of(tensor->name);
    const bool twice =
        (contains(tensor->name, "attn_k_b.") || contains(tensor->name, "attn_v_b.")) &&
        checkpoint.find(fmt::format("blk.{}.attn_kv_b.weight", layer)) != nullptr;
    if (kind == TensorKind::kMtp || tensor->name.ends_with("_scale_inv") ||
        tensor->name == "rope_freqs.weight" || twice)
      continue;
    const uint64_t count = element_count(*tensor);
    sizes.parameters += count;
    if (kind == TensorKind::kExperts) expert_parameters += count;
  }
  sizes.active_parameters = sizes.parameters;
  if (config != nullptr && config->n_routed_experts > 0) {
    const auto routed = static_cast<uint64_t>(config->n_routed_experts);
    sizes.active_parameters -= expert_parameters / routed *
                               (routed - static_cast<uint64_t>(config->router.num_experts_per_tok));
  }
  return sizes;
}

int64_t cache_layers(const ModelConfig& config, const ModelSizes& sizes) {
  const bool mtp = config.num_nextn_predict_layers > 0 &&
                   sizes.kind_bytes[static_cast<int>(TensorKind::kMtp)] > 0;
  return config.num_hidden_layers + (mtp ? 1 : 0);
}

uint64_t rebuilt_bytes(const Checkpoint& checkpoint, const ModelConfig& c) {
  if (!c.is_mla()) return 0;
  const auto elements = [&](int64_t per_head) {
    return counted(c.num_attention_heads) * counted(per_head) * counted(c.kv_lora_rank);
  };
  Checked bytes = 0;
  for (int64_t layer = 0; layer < c.num_hidden_layers + c.num_nextn_predict_layers; ++layer) {
    const bool gguf = checkpoint.gguf() != nullptr;
    const TensorInfo* whole =
        checkpoint.find(gguf ? fmt::format("blk.{}.attn_kv_b.weight", layer)
                             : fmt::format("model.layers.{}.self_attn.kv_b_proj.weight", layer));
    // stored by side: the whole is rebuilt, in f32 unless both parts are BF16
    if (whole == nullptr) {
      const auto part = [&](const char* name) {
        return gguf ? checkpoint.find(fmt::format("blk.{}.{}.weight", layer, name)) : nullptr;
      };
      const TensorInfo *k_b = part("attn_k_b"), *v_b = part("attn_v_b");
      const bool both_bf16 = k_b != nullptr && v_b != nullptr && k_b->dtype == DType::kBF16 &&
                             v_b->dtype == DType::kBF16;
      if (k_b != nullptr)
        bytes = bytes + counted(both_bf16 ? 2 : 4) * elements(c.qk_nope_head_dim + c.v_head_dim);
      continue;
    }
    bytes = bytes + elements(c.qk_nope_head_dim) * counted(whole->dtype == DType::kBF16 ? 2 : 4);
    if (whole->dtype == DType::kF8E4M3)
      bytes = bytes + counted(4) * elements(c.qk_nope_head_dim + c.v_head_dim);
  }
  return or_too_many(bytes);
}

MemoryNeeds memory_needs(const Checkpoint& checkpoint, const ModelConfig& config,
                         const ModelSizes& sizes, int64_t context, DType cache_dtype,
                         int64_t chunk) {
  const int64_t row = KvCache::bytes_per_token(config, cache_layers(config, sizes), cache_dtype);
  MemoryNeeds needs{.weights = sizes.bytes,
                    .rebuilt = rebuilt_bytes(checkpoint, config),
                    .cache = or_too_many(counted(row) * counted(context)),
                    .work = activation_bytes(config, chunk, context),
                    .chunk = chunk};
  needs.total = or_too_many(Checked(needs.weights) + Checked(needs.rebuilt) + Checked(needs.cache) +
                            Checked(needs.work));
  return needs;
}

MemoryPlan plan_memory(const Checkpoint& checkpoint, const ModelConfig& config,
                       const ModelSizes& sizes, int64_t context, DType cache_dtype,
                       uint64_t available, bool may_stream) {
  const EngineOptions engine;
  const auto with_chunk = [&](int64_t chunk) {
    return memory_needs(checkpoint, config, sizes, context, cache_dtype, chunk);
  };
  const MemoryNeeds most = with_chunk(
                        std::clamp(context, engine.prefill_chunk, engine.longest_chunk())),
                    least = with_chunk(engine.prefill_chunk);
  // tiles want a sixteenth to be left, and every generated token wants tiles
  const Checked roomy = Checked(most.total) + Checked(most.total / 16);
  if (available == 0 || or_too_many(roomy) <= available) return {most, true, {}};
  if (least.total <= available) return {least, true, {}};
  if (may_stream) {
    for (const MemoryNeeds& needs : {most, least}) {
      if (needs.chunk > least.chunk && needs.work > available / 8) continue;
      if (auto plan = plan_streaming(checkpoint, config, needs, available))
        return {needs, false, std::move(plan)};
    }
  }
  return {least, false, {}};
}

std::string true_name(const Checkpoint& checkpoint, const ModelConfig& config,
                      std::optional<ChatFormat> format, const ModelSizes& sizes) {
  const std::string given = given_name(checkpoint, config);
  std::string lower = given;
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return std::tolower(c); });
  const bool dense_host =
      config.architecture == Architecture::kQwen2 || config.architecture == Architecture::kLlama;
  const bool distilled = dense_host && (format == ChatFormat::kR1DistillQwen ||
                                        format == ChatFormat::kR1DistillLlama ||
                                        (contains(lower, "deepseek") && contains(lower, "r1")));
  const std::string what =
      distilled ? fmt::format("R1 distilled into {}",
                              config.architecture == Architecture::kQwen2 ? "Qwen2" : "Llama 3")
                : family_name(config);
  std::string size = size_text(sizes.parameters);
  if (sizes.active_parameters != sizes.parameters) {
    size += fmt::format(" ({} active per token)",
                        count_text(static_cast<double>(sizes.active_parameters)));
  }
  return fmt::format("{}: {}, {}", without_controls(given), what, size);
}

SamplingAdvice sampling_advice(const Checkpoint& checkpoint, const ModelConfig& config,
                               std::optional<ChatFormat> format) {
  SamplingAdvice advice;
  if (format && thinking_marks(*format, {})) {
    advice.params.temperature = 0.6;  // R1's README: 0.5 to 0.7, top-p 0.95; greedy decoding loops
    advice.params.top_p = 0.95;
    advice.source = "R1's recommendation";
  } else if (config.is_mla()) {
    advice.params.temperature = 0.3;  // the V2 and V3 model cards
    advice.params.top_p = 0.95;
    advice.source = "DeepSeek's recommendation for chat models";
  } else {
    advice.params.temperature = 0.7;
    advice.params.top_p = 0.9;
    advice.source = "fathom's default";
  }
  if (const auto text =
          checkpoint.side_file("generation_config.json", Limits{}.config_file_bytes)) {
    const fs::path folder = checkpoint.kind() == Checkpoint::Kind::kSafetensors
                                ? checkpoint.path().parent_path()
                                : checkpoint.path();
    apply_generation_config(*text, (folder / "generation_config.json").string(), config.vocab_size,
                            advice);
  }
  return advice;
}

OpenedModel open_model(const fs::path& path, const OpenOptions& options,
                       const OutputOptions& output) {
  Checkpoint checkpoint = Checkpoint::open(path);
  const ModelConfig config = load_config(checkpoint);
  const ModelSizes sizes = measure_model(checkpoint, &config);
  const int64_t context = std::min(options.context_tokens > 0 ? options.context_tokens : 4096,
                                   config.max_position_embeddings);
  const MemoryState memory = usable_memory(options.memory_gib);
  MemoryPlan memory_plan =
      plan_memory(checkpoint, config, sizes, context,
                  options.cache_dtype.value_or(default_cache_dtype(checkpoint)), memory.available,
                  options.stream && !options.ignore_memory);
  const MemoryNeeds& needs = memory_plan.needs;
  std::optional<StreamPlan>& plan = memory_plan.streaming;
  if (!memory_plan.fits && !plan && !options.ignore_memory)
    refuse(checkpoint, needs, context, memory, options);
  if (plan) plan->disk_bytes_per_second = measure_expert_reads(checkpoint, config, kProbeSeconds);
  if (plan && !output.quiet) note("larger than memory: {}", stream_text(*plan));
  Tokenizer tokenizer = Tokenizer::from_checkpoint(checkpoint);
  std::optional<ChatFormat> format;
  if (!options.template_name.empty()) {
    format = chat_format_by_name(options.template_name);
  } else if (has_chat_format(tokenizer)) {
    format = detect_chat_format(tokenizer);
  }
  std::string name = true_name(checkpoint, config, format, sizes);
  SamplingAdvice advice = sampling_advice(checkpoint, config, format);
  std::vector<int32_t> stop_ids = all_stop_ids(checkpoint, config, tokenizer);
  Model model(std::move(checkpoint));
  if (plan) model.stream_experts(plan->cache_bytes);
  const uint64_t tile_bytes =
      !plan && options.tiles != nullptr
          ? tile_weights(model, needs, memory.available, *options.tiles, output)
          : 0;
  if (options.warm) warm_files(model, output);
  return {std::move(model),  std::move(tokenizer), format, sizes,      std::move(name),
          std::move(advice), std::move(stop_ids),  plan,   tile_bytes, needs.chunk};
}

std::optional<DType> parse_cache_dtype(const std::string& name) {
  if (name.empty()) return std::nullopt;
  if (name == "f32") return DType::kF32;
  if (name == "bf16") return DType::kBF16;
  if (name == "int8") return DType::kI8;
  fail("--cache: found {}, expected f32, bf16 or int8", quoted(name));
}

int64_t parse_mla(const std::string& name) {
  if (name == "fast") return kExpandedRows;
  if (name == "strict") return 0;
  fail("--mla: found {}, expected fast or strict", quoted(name));
}

Isa parse_isa(const std::string& name) {
  if (name.empty()) return detect_isa();
  const std::optional<Isa> isa = isa_named(name);
  if (!isa) fail("--isa: found {}, expected portable, avx2, avxvnni or avx512", quoted(name));
  if (!has_isa(*isa))
    fail("--isa: found {}, which this CPU lacks; its best is {}", name, isa_name(detect_isa()));
  return *isa;
}

int thread_count(int wanted) { return wanted > 0 ? wanted : available_cores(); }

}  // namespace fathom
