#include "formats/checkpoint.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"
#include "formats/json.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSingle = "model.safetensors";
constexpr std::string_view kIndex = "model.safetensors.index.json";

bool is_plain_component(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == name.npos;
}

// `name` inside `folder`, or absent. A symlink may not lead out of the folder; in a Hugging Face
// cache (models--x/snapshots/REVISION, all links into models--x/blobs) not out of the repository.
std::optional<fs::path> file_inside(const fs::path& folder, std::string_view name) {
  if (!is_plain_component(name))
    fail("{}: file name {}, expected a plain name", folder.string(), quoted(name));
  const fs::path path = folder / name;
  std::error_code error;
  if (!fs::exists(path, error)) return std::nullopt;
  fs::path root = fs::canonical(folder, error);
  if (root.parent_path().filename() == "snapshots") root = root.parent_path().parent_path();
  const fs::path target = fs::canonical(path, error);
  if (error) fail("{}: cannot resolve: {}", path.string(), error.message());
  if (std::mismatch(root.begin(), root.end(), target.begin(), target.end()).first != root.end()) {
    fail("{}: is a link that leaves its folder", path.string());
  }
  return path;
}

// The GGUF models of a folder, sorted; of a split model the first part only.
std::vector<std::string> gguf_names(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const size_t part = name.rfind("-of-");
    const bool later_part = part != name.npos && part >= 6 && name[part - 6] == '-' &&
                            name.substr(part - 5, 5) != "00001";
    if (name.ends_with(".gguf") && !later_part) names.push_back(name);
  }
  if (error) fail("{}: cannot list: {}", folder.string(), error.message());
  std::sort(names.begin(), names.end());
  return names;
}

bool is_gguf(const fs::path& path) {
  if (path.extension() == ".gguf") return true;
  if (path.extension() == ".safetensors") return false;
  const MappedFile file(path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()),
                              file.bytes().size());
  if (!text.starts_with("GGUF"))
    fail("{}: expected a folder, a .safetensors file or a GGUF", path.string());
  return true;
}

}  // namespace

Checkpoint Checkpoint::open(const fs::path& path) {
  Checkpoint model;
  model.path_ = path;
  std::error_code error;
  if (fs::is_directory(path, error)) {
    model.open_folder();
  } else if (is_gguf(path)) {
    model.kind_ = Kind::kGguf;
    model.gguf_ = Gguf::open(path);
  } else {
    model.kind_ = Kind::kSafetensors;
    model.shards_.push_back(Safetensors::open(path));
  }
  const auto add = [&](const std::vector<TensorInfo>& tensors) {
    for (const TensorInfo& tensor : tensors) {
      model.tensors_.push_back(&tensor);
      model.by_name_.emplace(tensor.name, &tensor);
    }
  };
  for (const Safetensors& shard : model.shards_) add(shard.tensors());
  if (model.gguf_) add(model.gguf_->tensors());
  return model;
}

void Checkpoint::open_folder() {
  const auto single = file_inside(path_, kSingle);
  const auto index = file_inside(path_, kIndex);
  if (single && index)
    fail("{}: holds both {} and {}, expected one", path_.string(), kSingle, kIndex);
  if (single) {
    shards_.push_back(Safetensors::open(*single));
  } else if (index) {
    open_shards(*index);
  } else {
    const std::vector<std::string> names = gguf_names(path_);
    if (names.empty())
      fail("{}: holds no model, expected {}, {} or a .gguf file", path_.string(), kSingle, kIndex);
    if (names.size() > 1) {
      fail("{}: holds {} GGUF models ({}, {}, ...), expected one: name the file", path_.string(),
           names.size(), quoted(names[0]), quoted(names[1]));
    }
    const auto file = file_inside(path_, names[0]);
    if (!file)
      fail("{}: cannot open {}: a link that leads nowhere", path_.string(), quoted(names[0]));
    gguf_ = Gguf::open(*file);
  }
}

// The index maps each tensor to its file; both must tell the same story.
void Checkpoint::open_shards(const fs::path& index) {
  const std::string place = index.string();
  const auto json = parse_json(read_file(index, Limits{}.config_file_bytes), place);
  const JsonObject root(json, place);
  const nlohmann::json& weight_map = root.value("weight_map");
  const JsonObject files(weight_map, place + ": weight_map");

  std::map<std::string, uint32_t> numbers;  // of the files, in the order of their names
  for (const auto& [tensor, file] : weight_map.items()) {
    if (!file.is_string())
      fail("{}: {}: found {}, expected a file name", files.place(), quoted(tensor), describe(file));
    numbers.emplace(file.get_ref<const std::string&>(), 0);
  }
  if (numbers.size() > Limits{}.split_files) {
    fail("{}: {} files, expected at most {}", files.place(), numbers.size(), Limits{}.split_files);
  }
  for (auto& [name, number] : numbers) {
    const auto file = file_inside(path_, name);
    if (!file) fail("{}: file {}: missing", files.place(), quoted(name));
    number = static_cast<uint32_t>(shards_.size());
    shards_.push_back(Safetensors::open(*file, number));
  }

  for (const auto& [tensor, file] : weight_map.items()) {
    const Safetensors& shard = shards_[numbers.at(file.get_ref<const std::string&>())];
    if (shard.find(tensor) == nullptr)
      fail("{}: tensor {}: missing (the index places it here)", shard.file().path(),
           quoted(tensor));
  }
  for (const Safetensors& shard : shards_) {
    for (const TensorInfo& tensor : shard.tensors()) {
      const auto entry = weight_map.find(tensor.name);
      if (entry == weight_map.end())
        fail("{}: tensor {}: not in the index", shard.file().path(), quoted(tensor.name));
      const auto& file = entry->get_ref<const std::string&>();
      if (numbers.at(file) != tensor.file) {
        fail("{}: tensor {}: the index places it in {}", shard.file().path(), quoted(tensor.name),
             quoted(file));
      }
    }
  }
}

const TensorInfo* Checkpoint::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found != by_name_.end() ? found->second : nullptr;
}

const MappedFile& Checkpoint::file(const TensorInfo& tensor) const {
  return gguf_ ? gguf_->files()[tensor.file] : shards_[tensor.file].file();
}

std::optional<std::string> Checkpoint::side_file(std::string_view name, uint64_t max_bytes) const {
  if (kind_ == Kind::kGguf) return std::nullopt;
  fs::path folder = kind_ == Kind::kFolder ? path_ : path_.parent_path();
  if (folder.empty()) folder = ".";
  const auto file = file_inside(folder, name);
  return file ? std::optional(read_file(*file, max_bytes)) : std::nullopt;
}

void Checkpoint::check_unchanged() const {
  for (const Safetensors& shard : shards_) shard.file().check_unchanged();
  if (gguf_) {
    for (const MappedFile& file : gguf_->files()) file.check_unchanged();
  }
}

}  // namespace fathom
