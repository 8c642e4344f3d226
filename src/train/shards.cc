#include "train/shards.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "formats/json.h"
#include "formats/safetensors.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr const char* kManifest = "shards.json";
constexpr int64_t kHoldOut = 20;
constexpr int64_t kMostFiles = 100'000;

fs::path shard_path(const fs::path& folder, int64_t index) {
  return folder / fmt::format("shard-{:05}.safetensors", index);
}

// A tensor of the shard as an array. REQUIRES: T is the dtype's.
template <class T>
std::span<const T> array(const Safetensors& file, std::string_view name, DType dtype) {
  const TensorInfo* const tensor = file.find(name);
  if (tensor == nullptr) fail("{}: tensor {}: missing", file.file().path(), quoted(name));
  if (tensor->dtype != dtype || tensor->shape.size() != 1) {
    fail("{}: tensor {}: found {} with {} dimensions, expected {} with 1", file.file().path(),
         quoted(name), dtype_name(tensor->dtype), tensor->shape.size(), dtype_name(dtype));
  }
  return {reinterpret_cast<const T*>(tensor->data), static_cast<size_t>(tensor->shape[0])};
}

}  // namespace

class Shards {
 public:
  struct Range {
    size_t begin, end;
    uint32_t file;
  };

  Shards(const fs::path& folder, uint64_t tokenizer, int64_t vocab_size)
      : place_((folder / kManifest).string()) {
    const std::string text = read_file(folder / kManifest, Limits{}.config_file_bytes);
    fingerprint_ = hash_bytes(std::as_bytes(std::span(text)));
    const nlohmann::json value = parse_json(text, place_);
    const JsonObject manifest(value, place_);
    if (const std::string made_by = manifest.string("tokenizer"); made_by != hash_text(tokenizer)) {
      fail(
          "{}: tokenizer: found {}, expected the run's own {} (the shards were made with another "
          "one: prepare them anew)",
          place_, made_by, hash_text(tokenizer));
    }
    const nlohmann::json& files = manifest.value("files");
    if (!files.is_array() || files.empty() || static_cast<int64_t>(files.size()) > kMostFiles) {
      fail("{}: files: expected an array of 1 to {} files", place_, kMostFiles);
    }
    for (size_t i = 0; i < files.size(); ++i) {
      const JsonObject file(files[i], fmt::format("{}: files[{}]", place_, i));
      open_file(shard_path(folder, static_cast<int64_t>(i)), file, vocab_size);
    }
  }

  const std::string& place() const { return place_; }
  uint64_t fingerprint() const { return fingerprint_; }
  std::span<const int32_t> tokens(uint32_t file) const { return files_[file].tokens; }
  const std::vector<Range>& documents() const { return documents_; }

 private:
  struct File {
    Safetensors mapped;
    std::span<const int32_t> tokens;
  };

  void open_file(const fs::path& path, const JsonObject& expected, int64_t vocab_size) {
    const FileDigest found = digest_file(path);
    const auto bytes = static_cast<uint64_t>(expected.integer("bytes", 0, INT64_MAX));
    if (found.bytes != bytes) fail("{}: {} bytes, expected {}", path.string(), found.bytes, bytes);
    if (const std::string hash = expected.string("hash"); hash_text(found.hash) != hash) {
      fail("{}: its content has changed: hash {}, expected {}", path.string(),
           hash_text(found.hash), hash);
    }
    File file{Safetensors::open(path), {}};
    file.tokens = array<int32_t>(file.mapped, "tokens", DType::kI32);
    const auto end = std::find_if(file.tokens.begin(), file.tokens.end(),
                                  [&](int32_t id) { return id < 0 || id >= vocab_size; });
    if (end != file.tokens.end()) {
      fail("{}: token {}: found id {}, expected 0 to {}", path.string(), end - file.tokens.begin(),
           *end, vocab_size - 1);
    }
    size_t begin = 0;
    for (const int64_t document_end : array<int64_t>(file.mapped, "ends", DType::kI64)) {
      if (document_end < static_cast<int64_t>(begin) || document_end > std::ssize(file.tokens)) {
        fail("{}: tensor 'ends': found {} after {}, expected rising numbers up to {}",
             path.string(), document_end, begin, file.tokens.size());
      }
      documents_.push_back(
          {begin, static_cast<size_t>(document_end), static_cast<uint32_t>(files_.size())});
      begin = static_cast<size_t>(document_end);
    }
    files_.push_back(std::move(file));
  }

  std::string place_;
  uint64_t fingerprint_ = 0;
  std::vector<File> files_;
  std::vector<Range> documents_;
};

namespace {

class ShardDocuments : public DocumentSource {
 public:
  ShardDocuments(std::shared_ptr<const Shards> shards, int64_t sequence_length, uint64_t seed,
                 Split split)
      : shards_(std::move(shards)), seed_(seed) {
    const bool validation = split != Split::kTrain;
    const auto documents = std::ssize(shards_->documents());
    int64_t tokens = 0;
    for (int64_t i = 0; i < documents; ++i) {
      Shards::Range r = shards_->documents()[static_cast<size_t>(i)];
      tokens += static_cast<int64_t>(r.end - r.begin);
      if (documents >= kHoldOut) {
        if (((i + 1) % kHoldOut == 0) != validation) continue;
      } else {
        const size_t border = r.end - (r.end - r.begin) / kHoldOut;
        (validation ? r.begin : r.end) = border;
      }
      for (; r.begin < r.end; r.begin += static_cast<size_t>(sequence_length)) {
        const size_t count = std::min(static_cast<size_t>(sequence_length), r.end - r.begin);
        // a lone token predicts nothing
        if (count > 1) pieces_.push_back({r.begin, r.file, static_cast<uint32_t>(count)});
      }
    }
    if (pieces_.empty()) {
      fail(
          "{}: {} documents of {} tokens in all, expected more: a twentieth is held out to "
          "validate with",
          shards_->place(), documents, tokens);
    }
  }

  void document(uint64_t index, Document& out) const override {
    const Piece& piece = pieces_[static_cast<size_t>(shuffled(seed_, index, pieces_.size()))];
    const auto tokens = shards_->tokens(piece.file).subspan(piece.begin, piece.count);
    out.tokens.assign(tokens.begin(), tokens.end());
    out.learned.assign(tokens.size(), true);
  }
  uint64_t fingerprint() const override { return shards_->fingerprint(); }

 private:
  struct Piece {
    size_t begin;
    uint32_t file, count;
  };

  std::shared_ptr<const Shards> shards_;
  uint64_t seed_;
  std::vector<Piece> pieces_;
};

}  // namespace

ShardWriter::ShardWriter(const fs::path& folder, uint64_t tokenizer, int64_t tokens_per_file)
    : folder_(folder), tokenizer_(tokenizer), tokens_per_file_(tokens_per_file) {
  make_folders(folder);
  if (fs::exists(folder / kManifest))
    fail("{}: holds token shards already, expected a new folder", folder.string());
}

void ShardWriter::add(std::span<const int32_t> document) {
  if (!tokens_.empty() && std::ssize(tokens_) + std::ssize(document) > tokens_per_file_)
    write_file();
  tokens_.insert(tokens_.end(), document.begin(), document.end());
  ends_.push_back(std::ssize(tokens_));
  ++counts_.documents;
  counts_.tokens += std::ssize(document);
}

void ShardWriter::write_file() {
  const TensorToWrite tensors[] = {
      {"ends", DType::kI64, {std::ssize(ends_)}, std::as_bytes(std::span(ends_))},
      {"tokens", DType::kI32, {std::ssize(tokens_)}, std::as_bytes(std::span(tokens_))},
  };
  files_.push_back(write_safetensors(shard_path(folder_, std::ssize(files_)), tensors));
  tokens_.clear();
  ends_.clear();
}

ShardCounts ShardWriter::finish() {
  if (!ends_.empty()) write_file();
  if (files_.empty()) fail("{}: no document to write, expected at least one", folder_.string());
  counts_.files = std::ssize(files_);
  std::error_code none;  // what is left of a writer that had more to say
  for (int64_t i = counts_.files; fs::remove(shard_path(folder_, i), none); ++i) continue;
  nlohmann::ordered_json files = nlohmann::ordered_json::array();
  for (const FileDigest& f : files_)
    files.push_back({{"bytes", f.bytes}, {"hash", hash_text(f.hash)}});
  const nlohmann::ordered_json manifest = {{"tokenizer", hash_text(tokenizer_)},
                                           {"documents", counts_.documents},
                                           {"tokens", counts_.tokens},
                                           {"files", files}};
  write_file_atomically(folder_ / kManifest, manifest.dump(2) + "\n");
  return counts_;
}

std::shared_ptr<const Shards> open_shards(const fs::path& folder, uint64_t tokenizer,
                                          int64_t vocab_size) {
  return std::make_shared<const Shards>(folder, tokenizer, vocab_size);
}

std::unique_ptr<DocumentSource> shard_documents(std::shared_ptr<const Shards> shards,
                                                int64_t sequence_length, uint64_t seed,
                                                Split split) {
  return std::make_unique<ShardDocuments>(std::move(shards), sequence_length, seed, split);
}

}  // namespace fathom
