#include "train/train_state.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "formats/json.h"
#include "formats/safetensors.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kManifest = "manifest.json";
constexpr uint64_t kLargestSmallFile = 1 << 26;
constexpr int kFormatVersion = 1;

std::string folder_name(int64_t step) { return fmt::format("step-{:08}", step); }

// The step of a checkpoint folder's name.
std::optional<int64_t> step_of(const fs::path& path) {
  const std::string name = path.filename().string();
  if (!name.starts_with("step-") || name.size() < 6 || name.size() > 20) return std::nullopt;
  int64_t step = 0;
  for (const char c : name.substr(5)) {
    if (c < '0' || c > '9') return std::nullopt;
    step = step * 10 + (c - '0');
  }
  return step;
}

std::string hash_of(std::span<const std::byte> bytes) { return fmt::format("{:016x}", XXH3_64bits(bytes.data(), bytes.size())); }

template <class T>
std::span<const std::byte> bytes_of(std::span<const T> values) {
  return std::as_bytes(values);
}

void expect_finite(const TrainState& s) {
  for (const Parameter& p : s.table->parameters) {
    for (int64_t i = p.offset; i < p.offset + p.count; ++i) {
      const float value = s.master[static_cast<size_t>(i)];
      if (!std::isfinite(value)) {
        throw Error(ExitCode::kDiverged, fmt::format("checkpoint: tensor {}: element {} is {}, expected finite weights (nothing was saved)",
                                                     p.name, i - p.offset, value));
      }
    }
  }
}

// model.safetensors or adapter_model.safetensors.
void write_weights(const fs::path& path, const TrainState& s) {
  std::vector<std::vector<bf16>> narrow;
  narrow.reserve(s.table->parameters.size());
  std::vector<TensorToWrite> tensors;
  const auto add = [&](const Parameter& p, const std::string& name) {
    const auto values = s.master.subspan(static_cast<size_t>(p.offset), static_cast<size_t>(p.count));
    const bool matrix = p.kind == ParameterKind::kMatrix || p.kind == ParameterKind::kEmbedding;
    if (s.f32 || !matrix) {
      tensors.push_back({name, DType::kF32, p.shape, bytes_of(values)});
      return;
    }
    std::vector<bf16>& copy = narrow.emplace_back(values.size());
    std::transform(values.begin(), values.end(), copy.begin(), f32_to_bf16);
    tensors.push_back({name, DType::kBF16, p.shape, bytes_of(std::span<const bf16>(copy))});
  };
  const std::string mtp = fmt::format("model.layers.{}.", s.config->num_hidden_layers);
  const Parameter* embedding = nullptr;
  const Parameter* head = nullptr;
  bool has_mtp = false;
  for (const Parameter& p : s.table->parameters) {
    if (p.name == "model.embed_tokens.weight") embedding = head = &p;
    if (p.name == "lm_head.weight") head = &p;
    has_mtp = has_mtp || p.name.starts_with(mtp);
    add(p, p.name);
  }
  narrow.reserve(narrow.size() + 2);
  if (has_mtp && embedding != nullptr && !s.adapter) {
    add(*embedding, mtp + "embed_tokens.weight");
    add(*head, mtp + "shared_head.head.weight");
  }
  write_safetensors(path, tensors, {{"format", "pt"}});
}

std::string generation_config(const ModelConfig& c) {
  Json j;
  if (c.bos_token_id >= 0) j["bos_token_id"] = c.bos_token_id;
  if (c.eos_token_ids.size() == 1) j["eos_token_id"] = c.eos_token_ids[0];
  if (c.eos_token_ids.size() > 1) j["eos_token_id"] = c.eos_token_ids;
  j["do_sample"] = true;
  j["temperature"] = 1.0;
  return j.dump(2) + "\n";
}

void write_manifest(const fs::path& folder, int64_t step) {
  Json files = Json::object();
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder)) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  for (const fs::path& path : paths) {
    const MappedFile file(path);
    files[path.filename().string()] = {{"bytes", file.bytes().size()}, {"xxh3_64", hash_of(file.bytes())}};
  }
  const std::string listed = files.dump();
  const Json manifest = {{"format_version", kFormatVersion}, {"step", step}, {"files", files},
                         {"files_xxh3_64", hash_of(std::as_bytes(std::span(listed)))}};
  write_file_atomically(folder / kManifest, manifest.dump(2) + "\n");
}

// Why the checkpoint does not count; empty if it does.
std::string fault_of(const fs::path& folder) {
  try {
    const std::string place = (folder / kManifest).string();
    const nlohmann::json value = parse_json(read_file(folder / kManifest, kLargestSmallFile), place);
    const JsonObject manifest(value, place);
    const std::string listed = manifest.value("files").dump();  // sorted by name, as it was written
    if (hash_of(std::as_bytes(std::span(listed))) != manifest.string("files_xxh3_64")) return place + ": checksum of its list differs";
    if (manifest.integer("format_version", 0, 1 << 20) != kFormatVersion) return place + ": another format version";
    for (const auto& [name, entry] : manifest.value("files").items()) {
      if (name.find('/') != std::string::npos) return place + ": a file name with a slash";
      const JsonObject file(entry, place);
      const MappedFile mapped(folder / name);
      const auto size = static_cast<int64_t>(mapped.bytes().size());
      if (size != file.integer("bytes", 0, INT64_MAX)) {
        return fmt::format("{}: {} bytes, expected {}", (folder / name).string(), size, file.integer("bytes", 0, INT64_MAX));
      }
      if (hash_of(mapped.bytes()) != file.string("xxh3_64")) return (folder / name).string() + ": checksum differs from the manifest's";
    }
    if (!manifest.value("files").contains("state.json")) return place + ": no state.json";
    return "";
  } catch (const std::exception& e) {
    return e.what();
  }
}

// Newest first.
std::vector<std::pair<int64_t, fs::path>> checkpoints(const fs::path& run) {
  std::vector<std::pair<int64_t, fs::path>> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run, error)) {
    if (const auto step = step_of(entry.path())) found.emplace_back(*step, entry.path());
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

void write_files(const fs::path& folder, const TrainState& s) {
  write_weights(folder / (s.adapter ? "adapter_model.safetensors" : "model.safetensors"), s);
  write_file_atomically(folder / "config.json", write_config(*s.config));
  write_file_atomically(folder / "generation_config.json", generation_config(*s.config));
  for (const auto& [name, contents] : s.side_files) write_file_atomically(folder / name, contents);
}

}  // namespace

uint64_t checkpoint_bytes(const ParameterTable& table, bool f32) {
  return static_cast<uint64_t>(table.total) * (f32 ? 16 : 14);
}

void write_model_folder(const fs::path& folder, const TrainState& s) {
  expect_finite(s);
  fs::create_directories(folder);
  write_files(folder, s);
}

void save_checkpoint(const fs::path& run, const TrainState& s) {
  expect_finite(s);
  std::error_code error;
  fs::create_directories(run, error);
  const uint64_t need = checkpoint_bytes(*s.table, s.f32) + (1 << 20);
  const fs::space_info space = fs::space(run, error);
  if (!error && space.available < need) {
    fail_resource("{}: {} MB free, expected at least {} MB for a checkpoint", run.string(), space.available >> 20, need >> 20);
  }
  const fs::path final = run / folder_name(s.step), temporary = final.string() + ".tmp";
  // A resumed run comes by a step that was saved before: the same bits, if they are good.
  if (fs::exists(final, error) && fault_of(final).empty()) return;
  fs::remove_all(temporary, error);
  try {
    if (!fs::create_directory(temporary, error)) fail_resource("{}: cannot create: {}", temporary.string(), error.message());
    write_files(temporary, s);
    const auto total = static_cast<int64_t>(s.master.size());
    const TensorToWrite arrays[] = {{"master", DType::kF32, {total}, bytes_of(s.master)},
                                    {"first_moment", DType::kF32, {total}, bytes_of(s.first_moment)},
                                    {"second_moment", DType::kF32, {total}, bytes_of(s.second_moment)}};
    write_safetensors(temporary / "optimizer.safetensors", arrays);
    write_file_atomically(temporary / "state.json", s.state_json);
    write_manifest(temporary, s.step);
    sync_folder(temporary);
    fs::remove_all(final, error);  // damaged
    fs::rename(temporary, final);
    sync_folder(run);
  } catch (const fs::filesystem_error& e) {
    fs::remove_all(temporary, error);
    fail_resource("{}: cannot save: {}", final.string(), e.code().message());
  } catch (...) {
    fs::remove_all(temporary, error);
    throw;
  }
}

void prune_checkpoints(const fs::path& run, int64_t keep, std::optional<int64_t> best) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(run, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("step-") && name.ends_with(".tmp")) fs::remove_all(entry.path(), error);
  }
  int64_t good = 0;
  for (const auto& [step, path] : checkpoints(run)) {
    if (good < std::max<int64_t>(keep, 2)) {
      good += fault_of(path).empty() ? 1 : 0;
    } else if (step != best) {
      fs::remove_all(path, error);
    }
  }
}

std::optional<FoundCheckpoint> find_checkpoint(const fs::path& run) {
  FoundCheckpoint found;
  for (const auto& [step, path] : checkpoints(run)) {
    const std::string fault = fault_of(path);
    if (fault.empty()) {
      found.folder = path;
      found.step = step;
      found.state_json = read_file(path / "state.json", kLargestSmallFile);
      return found;
    }
    found.damaged.push_back(fault);
  }
  if (!found.damaged.empty()) {
    fail("{}: no good checkpoint: {}", run.string(), fmt::join(found.damaged, "; "));
  }
  return std::nullopt;
}

void load_optimizer(const fs::path& checkpoint, const ParameterTable& table, std::span<float> master,
                    std::span<float> first_moment, std::span<float> second_moment) {
  const fs::path path = checkpoint / "optimizer.safetensors";
  const Safetensors file = Safetensors::open(path);
  const auto read = [&](const char* name, std::span<float> out) {
    const TensorInfo* tensor = file.find(name);
    if (tensor == nullptr || tensor->dtype != DType::kF32 || tensor->shape != std::vector<int64_t>{table.total}) {
      fail("{}: tensor {}: found {}, expected F32 [{}] (the checkpoint of another model or recipe)", path.string(), quoted(name),
           tensor == nullptr ? "none" : shape_text(tensor->shape), table.total);
    }
    std::memcpy(out.data(), tensor->data, tensor->bytes);
  };
  read("master", master);
  read("first_moment", first_moment);
  read("second_moment", second_moment);
}

}  // namespace fathom
