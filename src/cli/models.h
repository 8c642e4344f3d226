// Finding, naming, measuring and opening models for the commands.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/output.h"
#include "engine/request.h"
#include "formats/checkpoint.h"
#include "model/config.h"
#include "model/model.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace fathom {

// Models in `folder` (default ./models): GGUF files, .safetensors files, folders of either; sorted.
// Names only, nothing is opened.
std::vector<std::filesystem::path> find_models(const std::filesystem::path& folder = "models");

// The path to open: `wanted`, else $FATHOM_MODEL, else the only model in ./models. A name that is
// no path is looked up in ./models.
// Throws and says what to do otherwise.
std::filesystem::path resolve_model(const std::string& wanted);
// The small model that comes with this project, found from where the program lies: what `fathom
// run` takes where there is no other.
std::optional<std::filesystem::path> bundled_model();

// What kind of work a tensor does, by its name in either container.
enum class TensorKind {
  kAttention,
  kExperts,
  kSharedExperts,
  kDenseMlp,
  kEmbedding,
  kNormsAndRouter,
  kMtp,
  kOther
};
inline constexpr int kTensorKinds = static_cast<int>(TensorKind::kOther) + 1;
std::string_view tensor_kind_name(TensorKind kind);
// num_hidden_layers: layers at or above it are multi-token prediction; -1 if unknown.
TensorKind tensor_kind(std::string_view tensor_name, int64_t num_hidden_layers);

struct ModelSizes {
  uint64_t bytes = 0;  // of all tensors in the files
  uint64_t kind_bytes[kTensorKinds] = {};
  std::map<std::string_view, uint64_t> dtype_bytes;
  uint64_t parameters = 0;  // without MTP and block scales, as the papers count
  // per token, embedding and head included (README_WEIGHTS of V3); = parameters without experts
  uint64_t active_parameters = 0;
};
ModelSizes measure_model(const Checkpoint& checkpoint, const ModelConfig* config);

// Layers the cache will hold: the MTP layer counts if it is declared and in the files
// (Model::cache_layers, before loading).
int64_t cache_layers(const ModelConfig& config, const ModelSizes& sizes);

// What a model will take; UINT64_MAX where 64 bits do not count it.
struct MemoryNeeds {
  uint64_t weights = 0;  // of the mapped files
  uint64_t rebuilt = 0;  // added by loading: projections for the two forms of MLA (model/weights.h)
  uint64_t cache = 0;
  // one step of `chunk` tokens, roughly: the widest activations and the logits
  uint64_t work = 0;
  uint64_t total = 0;
  int64_t chunk = 0;  // for EngineOptions::long_chunk
};
MemoryNeeds memory_needs(const Checkpoint& checkpoint, const ModelConfig& config,
                         const ModelSizes& sizes, int64_t context, DType cache_dtype,
                         int64_t chunk);
uint64_t rebuilt_bytes(const Checkpoint& checkpoint, const ModelConfig& config);

// What the model is, for people: "R1 distilled into Qwen2, 7.6 B parameters", never just the
// family's famous name.
std::string true_name(const Checkpoint& checkpoint, const ModelConfig& config,
                      std::optional<ChatFormat> format, const ModelSizes& sizes);

// The vendor's sampling advice from generation_config.json, the family's own where there is none.
// `source` says which.
struct SamplingAdvice {
  SamplingParams params;
  std::string source;
};
SamplingAdvice sampling_advice(const Checkpoint& checkpoint, const ModelConfig& config,
                               std::optional<ChatFormat> format);

// How a model larger than memory runs (cli/streaming.h makes it).
struct StreamPlan {
  int64_t experts = 0, slots = 0;  // routed ones, over all layers; those that stay in memory
  uint64_t expert_bytes = 0, cache_bytes = 0;
  double token_read_bytes = 0;       // from disk for each token, if all experts are equally likely
  double disk_bytes_per_second = 0;  // measured on the model's own files
  double kept() const { return static_cast<double>(slots) / static_cast<double>(experts); }
  // What the disk allows: computing takes its time besides.
  double tokens_per_second() const { return disk_bytes_per_second / token_read_bytes; }
};

// How it can run in what is available (0 = unknown): with chunks as long as the engine would have
// them, else with short ones, else (may_stream) with its experts streamed, read once for each
// chunk, which may be long if that takes little of the memory. Neither fits nor streamed: `needs`
// are the least there are. The disk is not measured yet.
struct MemoryPlan {
  MemoryNeeds needs;
  bool fits = false;
  std::optional<StreamPlan> streaming;
};
MemoryPlan plan_memory(const Checkpoint& checkpoint, const ModelConfig& config,
                       const ModelSizes& sizes, int64_t context, DType cache_dtype,
                       uint64_t available, bool may_stream);

struct OpenedModel {
  Model model;
  Tokenizer tokenizer;
  std::optional<ChatFormat> format;  // absent: a base model
  ModelSizes sizes;
  std::string name;
  SamplingAdvice advice;
  // end-of-sequence ids of config, generation_config.json and tokenizer
  std::vector<int32_t> stop_ids;
  std::optional<StreamPlan> streaming;  // absent: all of it is in memory
  uint64_t tile_bytes = 0;              // memory that tiles have taken already
  int64_t long_chunk = 0;               // EngineOptions', as memory allows
};

struct OpenOptions {
  int64_t context_tokens = 0;        // 0 = the engine's default
  std::optional<DType> cache_dtype;  // absent = the engine's default
  std::string template_name;         // "" = detect
  bool ignore_memory = false;
  double memory_gib = 0;  // as if no more were available; 0 = what is
  bool stream = true;     // experts that do not fit are read as they are needed
  bool warm = true;       // read the files once, with a bar
  // Whose threads give the weights tiles (Model::make_tiles) where there is memory for them; null:
  // they stay in the mapping.
  Context* tiles = nullptr;
};
// Opens everything a conversation needs. Before memory is taken, weights + cache are compared with
// what is available: what does not fit is streamed, with a note that says how fast that can be, or
// refused (exit code 3).
OpenedModel open_model(const std::filesystem::path& path, const OpenOptions& options,
                       const OutputOptions& output);

// "f32", "bf16" or "int8", as flags spell it. Throws otherwise.
std::optional<DType> parse_cache_dtype(const std::string& name);  // "" = absent
int64_t parse_mla(const std::string& name);  // EngineOptions::expand_by of "fast" or "strict"
// "" = the CPU's best; refuses what the CPU lacks
Isa parse_isa(const std::string& name);
int thread_count(int wanted);  // 0 = available_cores()

}  // namespace fathom
