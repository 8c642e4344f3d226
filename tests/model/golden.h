// Loading of the recorded vectors in tests/golden.
#pragma once

#include <string>
#include <vector>

#include "base/error.h"
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
