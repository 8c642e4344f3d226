#include "engine/prefix_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"

namespace fathom {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kSuffix = ".kv";
constexpr int64_t kAbandonedNs = int64_t{3600} * 1'000'000'000;
constexpr uint64_t kWholeTensor = 64 << 10, kPiece = 4 << 10, kPieces = 16;

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

Hash128 hash_tensor(Hash128 hash, const TensorInfo& tensor) {
  hash =
      hash_chained(hash, bytes_of(fmt::format("{} {} {} {}", tensor.name, dtype_name(tensor.dtype),
                                              shape_text(tensor.shape), tensor.bytes)));
  const std::span all(tensor.data, tensor.bytes);
  if (tensor.bytes <= kWholeTensor) return hash_chained(hash, all);
  for (uint64_t i = 0; i < kPieces; ++i) {
    const uint64_t begin = (tensor.bytes - kPiece) / (kPieces - 1) * i;
    hash = hash_chained(hash, all.subspan(begin, kPiece));
  }
  return hash;
}

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// The modification time becomes now; if it cannot, the file only looks older than it is.
void touch(const fs::path& path) { ::utimensat(AT_FDCWD, path.c_str(), nullptr, 0); }

// "0123...": 32 hexadecimal digits, as hash_text() writes them.
std::optional<Hash128> parse_hash(std::string_view text) {
  Hash128 hash;
  if (text.size() != 32) return std::nullopt;
  const char* middle = text.data() + 16;
  const auto high = std::from_chars(text.data(), middle, hash.high, 16);
  const auto low = std::from_chars(middle, middle + 16, hash.low, 16);
  if (high.ptr != middle || low.ptr != middle + 16 || hash_text(hash) != text) return std::nullopt;
  return hash;
}

}  // namespace

Hash128 model_fingerprint(const Model& model) {
  Hash128 hash;
  const Checkpoint& checkpoint = model.checkpoint();
  if (const auto config = checkpoint.side_file("config.json", Limits{}.config_file_bytes))
    hash = hash_chained(hash, bytes_of(*config));
  if (const Gguf* gguf = checkpoint.gguf()) {
    for (size_t i = 0; i < gguf->files().size(); ++i) {  // the head of each: all before its tensors
      std::span<const std::byte> head = gguf->files()[i].bytes();
      for (const TensorInfo& tensor : gguf->tensors()) {
        if (tensor.file == i)
          head = head.first(std::min(head.size(), static_cast<size_t>(tensor.data - head.data())));
      }
      hash = hash_chained(hash, head);
    }
  }
  for (const TensorInfo* tensor : checkpoint.tensors()) hash = hash_tensor(hash, *tensor);
  return hash;
}

PrefixStore::PrefixStore(const PrefixStoreOptions& options, const Context& ctx, MlaForm form,
                         const KvCacheView& layout)
    : folder_(options.folder), max_bytes_(options.max_bytes) {
  common_.dtype = static_cast<uint32_t>(layout.dtype);
  common_.form = static_cast<uint32_t>(form);
  common_.isa = static_cast<uint32_t>(ctx.isa());
  common_.bf16_dot = has_bf16_dot() ? 1 : 0;
  common_.precision = static_cast<uint32_t>(ctx.precision());
  common_.layers = static_cast<uint32_t>(layout.layers.size());
  common_.row_width = static_cast<uint64_t>(layout.row_width);
  common_.model = options.model;
  common_.program = options.program;
  layer_bytes_ = static_cast<uint64_t>(kKeyBlock * row_bytes(layout.dtype, layout.row_width));
  file_bytes_ = sizeof common_ + common_.layers * layer_bytes_ + sizeof(uint64_t);
  const Hash128 computation = hash_chained({}, std::as_bytes(std::span(&common_, 1)));
  own_folder_ = folder_ / hash_text(computation);
  for (const fs::path& folder : {folder_, own_folder_}) {
    std::error_code error;
    if (fs::create_directories(folder, error)) fs::permissions(folder, fs::perms::owner_all, error);
    if (!fs::is_directory(folder))
      fail("{}: cannot make this folder for the prefix cache: {}", folder.string(),
           error ? error.message() : "something else is there");
  }
  list_files();
  make_room(0);
}

fs::path PrefixStore::path_of(const Hash128& hash) const {
  return own_folder_ / (hash_text(hash) + std::string(kSuffix));
}

// Files that bear other names are none of ours: neither counted nor removed. What a killed process
// has begun to write is removed once it is too old for anybody to be at it still.
void PrefixStore::list_files() {
  std::error_code error;
  for (const fs::directory_entry& folder : fs::directory_iterator(folder_, error)) {
    if (!parse_hash(folder.path().filename().string()) || !folder.is_directory(error)) continue;
    const bool ours = folder.path() == own_folder_;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder.path(), error)) {
      const std::string name = entry.path().filename().string();
      const auto hash = parse_hash(std::string_view(name).substr(0, 32));
      struct stat info {};
      if (!hash || ::lstat(entry.path().c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
      const int64_t modified = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
      const std::string_view rest = std::string_view(name).substr(32);
      if (rest == kSuffix) {
        add({entry.path(), static_cast<uint64_t>(info.st_size), *hash, ours}, modified);
      } else if (rest.starts_with(".kv.tmp") && modified < now_ns() - kAbandonedNs) {
        fs::remove(entry.path(), error);
      }
    }
  }
  if (error) fail("{}: cannot list: {}", folder_.string(), error.message());
}

void PrefixStore::add(File file, int64_t modified_ns) {
  const Age age{modified_ns, next_++};
  total_bytes_ += file.bytes;
  if (file.ours) known_[file.hash] = age;
  files_.emplace(age, std::move(file));
}

void PrefixStore::drop(Age age) {
  const auto entry = files_.find(age);
  total_bytes_ -= entry->second.bytes;
  if (entry->second.ours) known_.erase(entry->second.hash);
  files_.erase(entry);
}

// Removes the oldest files until `bytes` more fit.
void PrefixStore::make_room(uint64_t bytes) {
  while (!files_.empty() && total_bytes_ + bytes > max_bytes_) {
    std::error_code error;  // somebody else may have removed it
    fs::remove(files_.begin()->second.path, error);
    drop(files_.begin()->first);
    ++stats_.evicted;
  }
}

PrefixFileHeader PrefixStore::header_of(const BlockPool::Content& content) const {
  PrefixFileHeader header = common_;
  header.before = content.parent_hash;
  header.content = content.hash;
  std::copy(content.tokens.begin(), content.tokens.end(), header.tokens);
  return header;
}

// Throws what is wrong with the contents of a file.
void PrefixStore::check_file(const std::string& bytes, const PrefixFileHeader& expected,
                             const std::string& place) const {
  if (bytes.size() != file_bytes_)
    fail("{}: {} bytes, expected {}", place, bytes.size(), file_bytes_);
  PrefixFileHeader found;
  std::memcpy(&found, bytes.data(), sizeof found);
  const auto same = [&](std::string_view field, const auto& has, const auto& wants) {
    if (has != wants) fail("{}: {}: found {}, expected {}", place, field, has, wants);
  };
  same("magic", std::string_view(found.magic, 8), std::string_view(expected.magic, 8));
  same("version", found.version, expected.version);
  same("dtype", found.dtype, expected.dtype);
  same("form", found.form, expected.form);
  same("instruction set", found.isa, expected.isa);
  same("bf16 dot product", found.bf16_dot, expected.bf16_dot);
  same("precision", found.precision, expected.precision);
  same("layers", found.layers, expected.layers);
  same("block_tokens", found.block_tokens, expected.block_tokens);
  same("row_width", found.row_width, expected.row_width);
  same("model", hash_text(found.model), hash_text(expected.model));
  same("program", hash_text(found.program), hash_text(expected.program));
  same("beginning", hash_text(found.before), hash_text(expected.before));
  same("content", hash_text(found.content), hash_text(expected.content));
  for (int64_t i = 0; i < kKeyBlock; ++i)
    same(fmt::format("token {}", i), found.tokens[i], expected.tokens[i]);
  const size_t body = bytes.size() - sizeof(uint64_t);
  uint64_t sum = 0;
  std::memcpy(&sum, bytes.data() + body, sizeof sum);
  same("checksum", hash_text(sum), hash_text(hash_bytes(bytes_of(bytes).first(body))));
}

bool PrefixStore::load(const BlockPool::Content& content, const KvCacheView& cache, int64_t row) {
  const auto known = known_.find(content.hash);
  if (known == known_.end()) return false;
  const Age age = known->second;
  const fs::path path = files_.at(age).path;
  std::string bytes;
  bool was_read = false;
  try {
    bytes = read_file(path, file_bytes_);
    was_read = true;
    check_file(bytes, header_of(content), path.string());
  } catch (const Error& error) {
    last_problem_ = error.what();
    ++stats_.ignored;
    std::error_code failed;
    const bool too_long = fs::file_size(path, failed) > file_bytes_ && !failed;
    // Else the next start would meet it again. One that cannot be read now may be good.
    if (was_read || too_long) fs::remove(path, failed);
    drop(age);
    return false;
  }
  const char* from = bytes.data() + sizeof(PrefixFileHeader);
  for (std::byte* layer : cache.layers) {
    std::memcpy(layer + row * row_bytes(cache.dtype, cache.row_width), from, layer_bytes_);
    from += layer_bytes_;
  }
  touch(path);
  File file = files_.at(age);
  drop(age);
  add(std::move(file), now_ns());
  ++stats_.loaded;
  return true;
}

void PrefixStore::save(const BlockPool::Content& content, const KvCacheView& cache, int64_t row) {
  if (stats_.failed || file_bytes_ > max_bytes_ || has(content.hash)) return;
  const PrefixFileHeader header = header_of(content);
  std::string bytes;
  bytes.reserve(file_bytes_);
  bytes.append(reinterpret_cast<const char*>(&header), sizeof header);
  for (const std::byte* layer : cache.layers) {
    bytes.append(
        reinterpret_cast<const char*>(layer) + row * row_bytes(cache.dtype, cache.row_width),
        layer_bytes_);
  }
  const uint64_t sum = hash_bytes(bytes_of(bytes));
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  make_room(bytes.size());
  const fs::path path = path_of(content.hash);
  try {
    write_file_atomically(path, bytes, kPrivateFile);
  } catch (const Error& error) {
    last_problem_ = error.what();
    stats_.failed = true;
    return;
  }
  add({path, bytes.size(), content.hash, true}, now_ns());
  ++stats_.saved;
}

}  // namespace fathom
