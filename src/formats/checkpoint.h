// A model on disk, whatever its container: a Hugging Face folder (config.json beside one or several
// safetensors files), one .safetensors file, or a GGUF. Gives tensors by name and the small files
// beside them; knows nothing of models.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "formats/gguf.h"
#include "formats/safetensors.h"

namespace fathom {

class Checkpoint {
 public:
  enum class Kind { kFolder, kSafetensors, kGguf };

  // A folder must hold model.safetensors, or model.safetensors.index.json with its shards (each a
  // plain file name inside the folder; symlinks that leave the folder are refused; the index and
  // the shards must agree tensor for tensor), or exactly one GGUF model. A path to one file opens
  // that file; a .safetensors beside a config.json sees it through side_file().
  // Folders of the Hugging Face cache (models--x/snapshots/REVISION) may link into the blobs of
  // their own repository.
  static Checkpoint open(const std::filesystem::path& path);

  Kind kind() const { return kind_; }
  const std::filesystem::path& path() const { return path_; }
  const TensorInfo* find(std::string_view name) const;
  const std::vector<const TensorInfo*>& tensors() const { return tensors_; }  // all, in file order
  // The file that holds it; its path, for messages.
  const MappedFile& file(const TensorInfo& tensor) const;
  const std::string& file_name(const TensorInfo& tensor) const { return file(tensor).path(); }
  const Gguf* gguf() const { return gguf_ ? &*gguf_ : nullptr; }
  // The text of a file beside the weights ("config.json", "generation_config.json",
  // "tokenizer.json", ...); absent if there is none and for a lone GGUF, whose metadata holds
  // everything. A single .safetensors sees the files of its folder.
  std::optional<std::string> side_file(std::string_view name, uint64_t max_bytes) const;
  // Every mapped file is still what it was at open.
  void check_unchanged() const;

 private:
  void open_folder();
  void open_shards(const std::filesystem::path& index);

  Kind kind_ = Kind::kFolder;
  std::filesystem::path path_;
  std::vector<Safetensors> shards_;
  std::optional<Gguf> gguf_;
  std::vector<const TensorInfo*> tensors_;
  std::map<std::string_view, const TensorInfo*> by_name_;
};

}  // namespace fathom
