// A tiny model with one token that makes every sum it meets NaN or infinite.
#pragma once

#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "formats/safetensors.h"
#include "model/model.h"

namespace fathom {

// A copy of `name` whose embedding of token 250 is `value`.
class PoisonedModel {
 public:
  PoisonedModel(const std::string& name, float value)
      : folder_(std::filesystem::temp_directory_path() /
                ("fathom_poisoned_" + std::to_string(getpid()))) {
    const std::filesystem::path source =
        std::filesystem::path(FATHOM_SOURCE_DIR "/tests/golden/models") / name;
    std::filesystem::create_directories(folder_);
    std::filesystem::copy_file(source / "config.json", folder_ / "config.json",
                               std::filesystem::copy_options::overwrite_existing);
    const Safetensors file = Safetensors::open(source / "model.safetensors");
    std::vector<TensorToWrite> tensors;
    std::vector<std::byte> embedding;
    for (const TensorInfo& t : file.tensors()) {
      tensors.push_back({t.name, t.dtype, t.shape, {t.data, t.bytes}});
      if (t.name != "model.embed_tokens.weight") continue;
      embedding.assign(t.data, t.data + t.bytes);
      for (int64_t i = 0; i < t.shape[1]; ++i)
        std::memcpy(embedding.data() + (250 * t.shape[1] + i) * 4, &value, 4);
      tensors.back().data = embedding;
    }
    write_safetensors(folder_ / "model.safetensors", tensors);
  }
  ~PoisonedModel() { std::filesystem::remove_all(folder_); }
  Model load() const { return Model::load(folder_); }

 private:
  std::filesystem::path folder_;
};

}  // namespace fathom
