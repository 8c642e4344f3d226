// A tokenizer as the two files that every checkpoint of a run carries.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "text/tokenizer.h"

namespace fathom {

struct TokenizerFiles {
  std::string json, config;  // tokenizer.json, tokenizer_config.json

  Tokenizer load(const std::string& place) const {
    return Tokenizer::from_json(json, place, config);
  }
  uint64_t fingerprint() const;  // of both
};

// "characters" (text/character_tokenizer.h), or a folder: what recipes and commands call a
// tokenizer.
TokenizerFiles read_tokenizer_files(const std::string& name);
TokenizerFiles read_tokenizer_folder(const std::filesystem::path& folder);

}  // namespace fathom
