// Loading of the recorded vectors in tests/golden.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "engine/feeder.h"
#include "formats/safetensors.h"

namespace fathom {

inline std::string golden_path(const std::string& name) {
  return std::string(FATHOM_SOURCE_DIR) + "/tests/golden/" + name;
}

inline const std::vector<std::string>& golden_models() {
  static const std::vector<std::string> kNames = {"v3",     "moonlight", "v2",    "v2-lite",
                                                  "v3-fp8", "qwen2",     "llama3"};
  return kNames;
}

inline std::vector<int32_t> golden_ids(const std::string& model) {
  const Safetensors file =
      Safetensors::open(golden_path("models/" + model + "/golden.safetensors"));
  const TensorInfo* tensor = file.find("input_ids");
  std::vector<int32_t> ids;
  for (uint64_t i = 0; i < tensor->bytes / 8; ++i) {
    int64_t id = 0;
    __builtin_memcpy(&id, tensor->data + i * 8, 8);
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

inline std::vector<float> golden_values(const std::string& model, const std::string& name) {
  const Safetensors file =
      Safetensors::open(golden_path("models/" + model + "/golden.safetensors"));
  const TensorInfo* tensor = file.find(name);
  std::vector<float> values(tensor->bytes / 4);
  __builtin_memcpy(values.data(), tensor->data, tensor->bytes);
  return values;
}

// The training batch of a recorded model: the documents that share input_ids, every token but a
// document's first a target; and the settings it was run with ("full" where a model has them, else
// "plain").
struct RecordedBatch {
  explicit RecordedBatch(const std::string& model)
      : folder(golden_path("models/" + model)),
        tokens(golden_ids(model)),
        targets(tokens.size(), -1) {
    const auto info = nlohmann::json::parse(read_file(folder + "/info.json", 1 << 20));
    kind = info.contains("full") ? "full" : "plain";
    settings = info[kind];
    lengths = info["documents"].get<std::vector<int64_t>>();
    size_t begin = 0;
    for (const int64_t length : lengths) {
      for (size_t t = begin; t + 1 < begin + static_cast<size_t>(length); ++t)
        targets[t] = tokens[t + 1];
      begin += static_cast<size_t>(length);
    }
  }
  TrainBatch batch() const { return {tokens, lengths, targets}; }

  std::string folder, kind;
  nlohmann::json settings;
  std::vector<int32_t> tokens, targets;
  std::vector<int64_t> lengths;
};

// Logits of all positions, fed in chunks of the given sizes (repeated).
inline std::vector<float> feed_logits(const Model& model, Context& ctx,
                                      const std::vector<int32_t>& ids, std::vector<int64_t> chunks,
                                      MlaForm form, DType cache_dtype = DType::kF32) {
  const auto tokens = static_cast<int64_t>(ids.size());
  const int64_t vocab = model.config().vocab_size;
  std::vector<float> logits(static_cast<size_t>(tokens * vocab));
  Feeder feeder(model, ctx, tokens, cache_dtype, form);
  size_t turn = 0;
  for (int64_t first = 0; first < tokens;) {
    const int64_t count = std::min(chunks[turn++ % chunks.size()], tokens - first);
    feeder.feed(std::span(ids).subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
                {logits.data() + first * vocab, count, vocab, vocab});
    first += count;
  }
  return logits;
}

}  // namespace fathom
