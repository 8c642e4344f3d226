#include "train/tokenizer_files.h"

#include "base/file.h"
#include "base/limits.h"
#include "text/character_tokenizer.h"

namespace fathom {

uint64_t TokenizerFiles::fingerprint() const {
  Hasher hasher;
  hasher.add(std::as_bytes(std::span(json)));
  hasher.add(std::as_bytes(std::span(config)));
  return hasher.value();
}

TokenizerFiles read_tokenizer_files(const std::string& name) {
  if (name == "characters") return {character_tokenizer_json(), character_tokenizer_config_json()};
  return read_tokenizer_folder(name);
}

TokenizerFiles read_tokenizer_folder(const std::filesystem::path& folder) {
  const Limits limits;
  return {read_file(folder / "tokenizer.json", limits.tokenizer_file_bytes),
          read_file(folder / "tokenizer_config.json", limits.config_file_bytes)};
}

}  // namespace fathom
