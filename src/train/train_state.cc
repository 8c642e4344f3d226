#include "train/train_state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"
#include "formats/json.h"
#include "formats/safetensors.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr const char* kManifest = "manifest.json";
constexpr uint64_t kLargestSmallFile = 1 << 26;
constexpr uint64_t kLargestSideFile = 1 << 28;
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

std::string hash_of(std::string_view text) {
  return hash_text(hash_bytes(std::as_bytes(std::span(text))));
}

// What was written, by file name.
using Digests = std::map<std::string, FileDigest>;

DType stored_type(const Parameter& p, bool f32) {
  const bool matrix = p.kind == ParameterKind::kMatrix || p.kind == ParameterKind::kEmbedding;
  return matrix && !f32 ? DType::kBF16 : DType::kF32;
}

// Elements [begin, begin + count) of a parameter, in `buffer` where they are made.
std::span<const float> values_of(const TrainState& s, const Parameter& p, int64_t begin,
                                 size_t count, std::vector<float>& buffer) {
  if (!s.make) return s.master.subspan(static_cast<size_t>(p.offset + begin), count);
  buffer.resize(count);
  s.make(p, begin, buffer);
  return buffer;
}

void expect_finite(const TrainState& s) {
  constexpr int64_t kPiece = 1 << 18;
  std::vector<float> buffer;
  for (const Parameter& p : s.table->parameters) {
    const bool rounded = stored_type(p, s.f32) == DType::kBF16;
    for (int64_t begin = 0; begin < p.count; begin += kPiece) {
      const auto count = static_cast<size_t>(std::min(kPiece, p.count - begin));
      int64_t at = begin;
      for (const float value : values_of(s, p, begin, count, buffer)) {
        const float stored = rounded ? bf16_to_f32(f32_to_bf16(value)) : value;
        if (!std::isfinite(stored)) {
          throw Error(ExitCode::kDiverged,
                      fmt::format("checkpoint: tensor {}: element {} is {}, "
                                  "expected finite weights (nothing was saved)",
                                  p.name, at, stored));
        }
        ++at;
      }
    }
  }
}

// A tensor of the weights' file and the parameter it holds.
struct Stored {
  std::string name;
  const Parameter* parameter;
};

// The table in its order; then, for a model with an MTP layer, V3's copies of embedding and head,
// named after that layer.
std::vector<Stored> stored_tensors(const ParameterTable& table) {
  std::vector<Stored> tensors;
  const Parameter* embedding = nullptr;
  const Parameter* head = nullptr;
  std::string mtp;
  constexpr std::string_view kMtpOnly = "eh_proj.weight";
  for (const Parameter& p : table.parameters) {
    if (p.name == "model.embed_tokens.weight") embedding = &p;
    if (p.name == "lm_head.weight") head = &p;
    if (p.name.ends_with(kMtpOnly)) mtp = p.name.substr(0, p.name.size() - kMtpOnly.size());
    tensors.push_back({p.name, &p});
  }
  if (!mtp.empty() && embedding != nullptr) {
    tensors.push_back({mtp + "embed_tokens.weight", embedding});
    tensors.push_back({mtp + "shared_head.head.weight", head != nullptr ? head : embedding});
  }
  return tensors;
}

const char* weights_name(bool adapter) {
  return adapter ? "adapter_model.safetensors" : "model.safetensors";
}

FileDigest write_weights(const fs::path& path, const TrainState& s) {
  std::vector<TensorToWrite> tensors;
  std::vector<float> buffer;
  for (const auto& [name, p] : stored_tensors(*s.table)) {
    TensorToWrite& tensor = tensors.emplace_back();
    tensor.name = name;
    tensor.dtype = stored_type(*p, s.f32);
    tensor.shape = p->shape;
    if (tensor.dtype == DType::kF32 && !s.make) {
      tensor.data = std::as_bytes(values_of(s, *p, 0, static_cast<size_t>(p->count), buffer));
      continue;
    }
    tensor.make = [&s, &buffer, p = p, dtype = tensor.dtype](uint64_t begin,
                                                             std::span<std::byte> out) {
      const auto size = static_cast<uint64_t>(row_bytes(dtype, 1));
      const auto values =
          values_of(s, *p, static_cast<int64_t>(begin / size), out.size() / size, buffer);
      if (dtype == DType::kF32) {
        std::memcpy(out.data(), values.data(), out.size());
        return;
      }
      for (size_t i = 0; i < values.size(); ++i) {
        const bf16 value = f32_to_bf16(values[i]);
        std::memcpy(out.data() + i * sizeof value, &value, sizeof value);
      }
    };
  }
  return write_safetensors(path, tensors, {{"format", "pt"}});
}

FileDigest write_optimizer(const fs::path& path, const TrainState& s) {
  const auto total = static_cast<int64_t>(s.master.size());
  const TensorToWrite arrays[] = {
      {"master", DType::kF32, {total}, std::as_bytes(s.master)},
      {"first_moment", DType::kF32, {total}, std::as_bytes(s.first_moment)},
      {"second_moment", DType::kF32, {total}, std::as_bytes(s.second_moment)}};
  return write_safetensors(path, arrays);
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

void write_manifest(const fs::path& folder, int64_t step, const Digests& digests) {
  Json files = Json::object();
  for (const auto& [name, digest] : digests) {
    files[name] = {{"bytes", digest.bytes}, {"xxh3_64", hash_text(digest.hash)}};
  }
  const Json manifest = {{"format_version", kFormatVersion},
                         {"step", step},
                         {"files", files},
                         {"files_xxh3_64", hash_of(files.dump())}};
  write_file_atomically(folder / kManifest, manifest.dump(2) + "\n");
}

// Why the checkpoint does not count; empty if it does.
std::string fault_of(const fs::path& folder) {
  try {
    const std::string place = (folder / kManifest).string();
    const nlohmann::json value =
        parse_json(read_file(folder / kManifest, kLargestSmallFile), place);
    const JsonObject manifest(value, place);
    const std::string listed = manifest.value("files").dump();  // sorted by name, as it was written
    if (hash_of(listed) != manifest.string("files_xxh3_64"))
      return place + ": checksum of its list differs";
    if (manifest.integer("format_version", 0, 1 << 20) != kFormatVersion)
      return place + ": another format version";
    for (const auto& [name, entry] : manifest.value("files").items()) {
      if (name.find('/') != std::string::npos) return place + ": a file name with a slash";
      const JsonObject file(entry, place);
      const auto size = static_cast<uint64_t>(file.integer("bytes", 0, INT64_MAX));
      const FileDigest found = digest_file(folder / name);
      if (found.bytes != size)
        return fmt::format("{}: {} bytes, expected {}", (folder / name).string(), found.bytes,
                           size);
      if (hash_text(found.hash) != file.string("xxh3_64"))
        return (folder / name).string() + ": checksum differs from the manifest's";
    }
    if (!manifest.value("files").contains("state.json")) return place + ": no state.json";
    return "";
  } catch (const std::exception& e) {
    return e.what();
  }
}

// What is in the run's folder; nothing if there is no folder.
std::vector<fs::path> entries_of(const fs::path& run) {
  std::vector<fs::path> paths;
  std::error_code error;
  fs::directory_iterator it(run, error);
  if (error == std::errc::no_such_file_or_directory) return paths;
  for (; !error && it != fs::directory_iterator(); it.increment(error)) paths.push_back(it->path());
  if (error) fail_resource("{}: cannot list: {}", run.string(), error.message());
  return paths;
}

// Newest first.
std::vector<std::pair<int64_t, fs::path>> checkpoints(const fs::path& run) {
  std::vector<std::pair<int64_t, fs::path>> found;
  for (const fs::path& path : entries_of(run)) {
    if (const auto step = step_of(path)) found.emplace_back(*step, path);
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

// config.json and what the trainer puts beside it: what the run is made of.
std::vector<std::pair<std::string, std::string>> texts_of(const TrainState& s) {
  std::vector<std::pair<std::string, std::string>> texts = {
      {"config.json", write_config(*s.config)}};
  texts.insert(texts.end(), s.side_files.begin(), s.side_files.end());
  return texts;
}

Digests write_files(const fs::path& folder, const TrainState& s) {
  Digests digests;
  digests[weights_name(s.adapter)] = write_weights(folder / weights_name(s.adapter), s);
  digests["generation_config.json"] =
      write_file_atomically(folder / "generation_config.json", generation_config(*s.config));
  for (const auto& [name, contents] : texts_of(s))
    digests[name] = write_file_atomically(folder / name, contents);
  return digests;
}

// What a save will write, and something for the small files and the folder.
uint64_t bytes_to_write(const TrainState& s) {
  uint64_t bytes = checkpoint_bytes(*s.table, s.f32) + (1 << 20) +
                   s.table->parameters.size() * 512 + s.state_json.size();
  for (const auto& [name, contents] : s.side_files) bytes += contents.size();
  return bytes;
}

// "byte 17: 'here' there, 'other' here": around the first difference.
std::string difference_of(std::string_view there, std::string_view here) {
  const auto at = static_cast<size_t>(
      std::mismatch(there.begin(), there.end(), here.begin(), here.end()).first - there.begin());
  const size_t begin = at - std::min<size_t>(at, 20);
  return fmt::format("byte {}: {} there, {} here", at, quoted(there.substr(begin, 60)),
                     quoted(here.substr(begin, 60)));
}

// The weights' file lists the tensors as the table does, and nothing else but V3's copies.
void expect_same_tensors(const fs::path& checkpoint, const ParameterTable& table) {
  std::error_code error;
  const fs::path path =
      checkpoint / weights_name(fs::exists(checkpoint / weights_name(true), error));
  const Safetensors file = Safetensors::open(path);
  const std::vector<Stored> expected = stored_tensors(table);
  for (size_t i = 0; i < std::max(expected.size(), file.tensors().size()); ++i) {
    const auto text = [](const std::string& name, const std::vector<int64_t>& shape) {
      return quoted(name) + " " + shape_text(shape);
    };
    const std::string found =
        i < file.tensors().size() ? text(file.tensors()[i].name, file.tensors()[i].shape) : "none";
    const std::string wanted =
        i < expected.size() ? text(expected[i].name, expected[i].parameter->shape) : "none";
    if (found != wanted)
      fail("{}: tensor {}: found {}, expected {} (the checkpoint of another model)", path.string(),
           i, found, wanted);
  }
}

}  // namespace

uint64_t checkpoint_bytes(const ParameterTable& table, bool f32) {
  uint64_t bytes = static_cast<uint64_t>(table.total) * 3 * sizeof(float);  // optimizer.safetensors
  for (const Stored& tensor : stored_tensors(table)) {
    bytes += static_cast<uint64_t>(
        row_bytes(stored_type(*tensor.parameter, f32), tensor.parameter->count));
  }
  return bytes;
}

void write_model_folder(const fs::path& folder, const TrainState& s) {
  expect_finite(s);
  make_folders(folder);
  write_files(folder, s);
}

void save_checkpoint(const fs::path& run, const TrainState& s) {
  expect_finite(s);
  std::error_code error;
  fs::create_directories(run, error);
  const uint64_t need = bytes_to_write(s);
  const fs::space_info space = fs::space(run, error);
  if (!error && space.available < need) {
    fail_resource("{}: {} MB free, expected at least {} MB for a checkpoint", run.string(),
                  space.available >> 20, need >> 20);
  }
  const fs::path final = run / folder_name(s.step), temporary = final.string() + ".tmp";
  // A resumed run comes by a step that was saved before: the same bits, if they are good.
  if (fs::exists(final, error) && fault_of(final).empty()) return;
  try {
    fs::remove_all(temporary);
    fs::create_directory(temporary);
    Digests digests = write_files(temporary, s);
    digests["optimizer.safetensors"] = write_optimizer(temporary / "optimizer.safetensors", s);
    digests["state.json"] = write_file_atomically(temporary / "state.json", s.state_json);
    write_manifest(temporary, s.step, digests);
    sync_folder(temporary);
    fs::remove_all(final);  // damaged
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
  for (const fs::path& path : entries_of(run)) {
    const std::string name = path.filename().string();
    if (name.starts_with("step-") && name.ends_with(".tmp")) fs::remove_all(path, error);
  }
  keep = std::max<int64_t>(keep, 2);
  const auto found = checkpoints(run);
  if (std::ssize(found) <= keep) return;  // nothing to delete: nothing to read
  int64_t good = 0;
  for (const auto& [step, path] : found) {
    if (good < keep) {
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

void expect_same_run(const FoundCheckpoint& found, const TrainState& state) {
  for (const auto& [name, here] : texts_of(state)) {
    const fs::path path = found.folder / name;
    const std::string there = read_file(path, kLargestSideFile);
    if (there != here) {
      fail("{}: differs from this run's at {} (another {} is another run)", path.string(),
           difference_of(there, here), name);
    }
  }
}

void load_optimizer(const fs::path& checkpoint, const ParameterTable& table,
                    std::span<float> master, std::span<float> first_moment,
                    std::span<float> second_moment) {
  expect_same_tensors(checkpoint, table);
  const fs::path path = checkpoint / "optimizer.safetensors";
  const Safetensors file = Safetensors::open(path);
  const auto read = [&](const char* name, std::span<float> out) {
    const TensorInfo* tensor = file.find(name);
    if (tensor == nullptr || tensor->dtype != DType::kF32 ||
        tensor->shape != std::vector<int64_t>{table.total}) {
      fail("{}: tensor {}: found {}, expected F32 [{}] (the checkpoint of another model or recipe)",
           path.string(), quoted(name), tensor == nullptr ? "none" : shape_text(tensor->shape),
           table.total);
    }
    FATHOM_CHECK(std::ssize(out) == table.total, out.size());
    std::memcpy(out.data(), tensor->data, tensor->bytes);
  };
  read("master", master);
  read("first_moment", first_moment);
  read("second_moment", second_moment);
}

}  // namespace fathom
