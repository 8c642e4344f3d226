// The tiny golden checkpoints, for tests of the engine.
#pragma once

#include <string>

#include "model/model.h"

namespace fathom {

inline constexpr const char* kTinyModels[] = {"v3",    "v2",     "v2-lite", "moonlight",
                                              "qwen2", "llama3", "v3-fp8"};

inline Model load_tiny(const std::string& name) {
  return Model::load(std::string(FATHOM_SOURCE_DIR "/tests/golden/models/") + name);
}

}  // namespace fathom
