#include "engine/prefix_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <fstream>
#include <new>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "kernels/cached_rows.h"

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

// Sets the modification time, so that a later start finds the order of use. False if the file has
// gone; if the time cannot be set, the file only looks older than it is.
bool touch(const fs::path& path, int64_t modified_ns) {
  const timespec time{modified_ns / 1'000'000'000, modified_ns % 1'000'000'000};
  const timespec times[2] = {time, time};
  return ::utimensat(AT_FDCWD, path.c_str(), times, 0) == 0 || errno != ENOENT;
}

std::error_code last_error() { return {errno, std::generic_category()}; }

// Makes a folder that is its owner's alone from the start, or takes one into which nobody else may
// write.
void make_private_folder(const fs::path& folder) {
  std::error_code error;
  if (::mkdir(folder.c_str(), S_IRWXU) != 0 && errno != EEXIST) error = last_error();
  struct stat info {};
  if (!error && ::stat(folder.c_str(), &info) != 0) error = last_error();
  if (error || !S_ISDIR(info.st_mode))
    fail("{}: cannot make this folder for the prefix cache: {}", folder.string(),
         error ? error.message() : "something else is there");
  const uint32_t mode = info.st_mode & 07777;
  if (info.st_uid != ::geteuid() || (mode & (S_IWGRP | S_IWOTH)) != 0)
    fail(
        "{}: this folder of the prefix cache: found mode {:04o}, owner {}, expected 0700, owner {} "
        "(whoever may write there can change answers)",
        folder.string(), mode, info.st_uid, ::geteuid());
}

// Calls f(path) for all that is in a folder; returns why that was not all.
template <class F>
std::error_code for_each_entry(const fs::path& folder, F f) {
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    f(it->path());
  return error;
}

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
    : folder_(options.folder.has_filename() ? options.folder : options.folder.parent_path()),
      max_bytes_(options.max_bytes) {
  common_.dtype = static_cast<uint32_t>(layout.dtype);
  common_.form = static_cast<uint32_t>(form);
  common_.isa = static_cast<uint32_t>(ctx.isa());
  common_.bf16_dot = has_bf16_dot() ? 1 : 0;
  common_.precision = static_cast<uint32_t>(ctx.precision());
  common_.layers = static_cast<uint32_t>(layout.layers.size());
  common_.row_width = static_cast<uint64_t>(layout.row_width);
  common_.model = options.model;
  common_.program = options.program;
  row_bytes_ = static_cast<uint64_t>(cached_row_bytes(layout.dtype, layout.row_width));
  const Hash128 computation = hash_chained({}, std::as_bytes(std::span(&common_, 1)));
  own_folder_ = folder_ / hash_text(computation);
  std::error_code ignored;  // without its parent the folder cannot be made either
  if (folder_.has_parent_path()) fs::create_directories(folder_.parent_path(), ignored);
  make_private_folder(folder_);
  make_private_folder(own_folder_);
  list_files();
  try {
    make_room(0);
  } catch (const Error& error) {
    stop_writing(error.what());
  }
}

fs::path PrefixStore::path_of(const BlockPool::Content& content) const {
  return own_folder_ /
         fmt::format("{}-{}{}", hash_text(content.hash), hash_text(content.parent_hash), kSuffix);
}

uint64_t PrefixStore::file_bytes(int64_t tokens) const {
  return sizeof common_ + common_.layers * static_cast<uint64_t>(tokens) * row_bytes_ +
         sizeof(uint64_t);
}

// What another user or another computation has left there and we cannot read is none of our
// business; our own folder must be readable.
void PrefixStore::list_files() {
  const auto check = [](const fs::path& folder, const std::error_code& error) {
    if (error) fail("{}: cannot list: {}", folder.string(), error.message());
  };
  check(folder_, for_each_entry(folder_, [&](const fs::path& folder) {
          if (!parse_hash(folder.filename().string())) return;
          const bool ours = folder == own_folder_;
          const std::error_code error =
              for_each_entry(folder, [&](const fs::path& file) { list_file(file, ours); });
          if (ours) check(folder, error);
        }));
  for (const auto& [age, file] : files_) {
    if (file.ours) followers_[file.before].push_back(file.hash);
  }
}

// Files that bear other names are none of ours: neither counted nor removed. What a killed process
// has begun to write is removed once it is too old for anybody to be at it still. Version 1 named
// files by CONTENT alone; its folders were others.
void PrefixStore::list_file(const fs::path& path, bool ours) {
  const std::string name = path.filename().string();
  const auto hash = parse_hash(std::string_view(name).substr(0, 32));
  struct stat info {};
  if (!hash || ::lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return;
  const int64_t modified = int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
  std::string_view rest = std::string_view(name).substr(32);
  const auto before = rest.starts_with('-') ? parse_hash(rest.substr(1, 32)) : Hash128{};
  if (!before || (ours && !rest.starts_with('-'))) return;
  if (rest.starts_with('-')) rest.remove_prefix(33);
  if (rest == kSuffix) {
    add({path, static_cast<uint64_t>(info.st_size), *hash, *before, ours}, modified);
  } else if (rest.starts_with(".kv.tmp") && modified < now_ns() - kAbandonedNs) {
    std::error_code ignored;
    fs::remove(path, ignored);
  }
}

// Two of ours with one CONTENT: a copy that somebody made, a stranger too.
void PrefixStore::add(File file, int64_t modified_ns) {
  if (file.ours && known_.contains(file.hash)) return;
  const Age age{modified_ns, next_++};
  const auto entry = files_.emplace(age, std::move(file)).first;
  total_bytes_ += entry->second.bytes;
  if (entry->second.ours) known_[entry->second.hash] = age;
}

void PrefixStore::drop(Age age) {
  const auto entry = files_.find(age);
  total_bytes_ -= entry->second.bytes;
  if (entry->second.ours) {
    known_.erase(entry->second.hash);
    if (const auto found = followers_.find(entry->second.before); found != followers_.end()) {
      std::erase(found->second, entry->second.hash);
      if (found->second.empty()) followers_.erase(found);
    }
  }
  files_.erase(entry);
}

// Each call later than the one before: files used within one tick of the clock keep their order.
int64_t PrefixStore::next_time() {
  last_time_ = std::max(last_time_ + 1, now_ns());
  return last_time_;
}

// Makes one of our files the most recently used. False if it has gone; then it is forgotten.
bool PrefixStore::renew(Age age) {
  const Age renewed{next_time(), next_++};
  if (!touch(files_.at(age).path, renewed.first)) {
    drop(age);
    return false;
  }
  auto node = files_.extract(age);  // allocates nothing
  node.key() = renewed;
  known_.at(node.mapped().hash) = renewed;
  files_.insert(std::move(node));
  return true;
}

// Removes the oldest files until `bytes` more fit. Throws if one cannot be removed.
void PrefixStore::make_room(uint64_t bytes) {
  while (!files_.empty() && total_bytes_ + bytes > max_bytes_) {
    const fs::path& path = files_.begin()->second.path;
    std::error_code error;
    if (fs::remove(path, error)) ++stats_.evicted;  // else somebody else has
    if (error) fail("{}: cannot remove: {}", path.string(), error.message());
    drop(files_.begin()->first);
  }
}

// Tails that say nothing which `content` does not say as well.
void PrefixStore::remove_beginnings(const BlockPool::Content& content) {
  if (followers_.at(content.parent_hash).size() == 1) return;
  for (size_t count = 1; count < content.tokens.size(); ++count) {
    const auto known =
        known_.find(hash_chained(content.parent_hash, std::as_bytes(content.tokens.first(count))));
    if (known == known_.end()) continue;
    std::error_code ignored;
    fs::remove(files_.at(known->second).path, ignored);
    drop(known->second);
  }
}

PrefixFileHeader PrefixStore::header_of(const BlockPool::Content& content) const {
  PrefixFileHeader header = common_;
  header.before = content.parent_hash;
  header.content = content.hash;
  const auto end = std::copy(content.tokens.begin(), content.tokens.end(), header.tokens);
  std::fill(end, std::end(header.tokens), -1);
  return header;
}

// Throws what is wrong with the contents of a file.
void PrefixStore::check_file(const std::string& bytes, const PrefixFileHeader& expected,
                             const std::string& place) const {
  const auto* end = std::find(expected.tokens, std::end(expected.tokens), -1);
  if (const uint64_t wanted = file_bytes(end - expected.tokens); bytes.size() != wanted)
    fail("{}: {} bytes, expected {}", place, bytes.size(), wanted);
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

// Whether one of our files can be used: read(path, was_read) throws what is wrong with it. If so,
// that is remembered, and the file forgotten.
template <class Read>
bool PrefixStore::trusted(Age age, Read read) {
  const fs::path path = files_.at(age).path;
  bool was_read = false;
  try {
    read(path, was_read);
    return true;
  } catch (const Error& error) {
    std::error_code failed;
    if (fs::symlink_status(path, failed).type() == fs::file_type::not_found) {
      drop(age);  // another process has removed it: a miss
      return false;
    }
    last_problem_ = error.what();
    ++stats_.ignored;
    const bool too_long = fs::file_size(path, failed) > file_bytes() && !failed;
    // Else the next start would meet it again. One that cannot be read now may be good.
    if (was_read || too_long) fs::remove(path, failed);
    drop(age);
    return false;
  }
}

bool PrefixStore::read_rows(const BlockPool::Content& content, int64_t rows,
                            const KvCacheView& cache, int64_t row) {
  const Age age = known_.at(content.hash);
  std::string bytes;
  if (!trusted(age, [&](const fs::path& path, bool& was_read) {
        bytes = read_file(path, file_bytes());
        was_read = true;
        check_file(bytes, header_of(content), path.string());
      }))
    return false;
  const char* from = bytes.data() + sizeof(PrefixFileHeader);
  for (std::byte* layer : cache.layers) {
    std::memcpy(layer + static_cast<uint64_t>(row) * row_bytes_, from,
                static_cast<uint64_t>(rows) * row_bytes_);
    from += content.tokens.size() * row_bytes_;
  }
  renew(age);
  ++stats_.loaded;
  return true;
}

bool PrefixStore::load(const BlockPool::Content& content, const KvCacheView& cache, int64_t row) {
  return has(content.hash) && read_rows(content, std::ssize(content.tokens), cache, row);
}

// Of one of our files, from its header alone; none if that is not what the name promises.
std::vector<int32_t> PrefixStore::tokens_of(const Hash128& hash) {
  const Age age = known_.at(hash);
  const Hash128 before = files_.at(age).before;
  std::vector<int32_t> tokens;
  const auto read = [&](const fs::path& path, bool& was_read) {
    PrefixFileHeader header;
    std::ifstream file(path, std::ios::binary);
    if (!file.read(reinterpret_cast<char*>(&header), sizeof header) && !file.eof())
      fail("{}: cannot read", path.string());
    was_read = true;
    if (file.gcount() < std::streamsize{sizeof header})
      fail("{}: {} bytes, expected at least {}", path.string(), file.gcount(), sizeof header);
    tokens.assign(header.tokens, std::find(header.tokens, std::end(header.tokens), -1));
    if (const Hash128 found = hash_chained(before, std::as_bytes(std::span(tokens))); found != hash)
      fail("{}: hash of the tokens: found {}, expected {}", path.string(), hash_text(found),
           hash_text(hash));
  };
  if (!trusted(age, read)) tokens.clear();
  return tokens;
}

PrefixStore::Alike PrefixStore::most_alike(const Hash128& before, std::span<const int32_t> wanted) {
  Alike best;
  const auto found = followers_.find(before);
  if (found == followers_.end()) return best;
  const std::vector<Hash128> followers = found->second;  // looking at them may forget some
  const size_t looked_at = std::min<size_t>(followers.size(), BlockPool::kLookedAt);
  for (size_t i = 1; i <= looked_at; ++i) {
    const Hash128& hash = followers[followers.size() - i];
    std::vector<int32_t> tokens = tokens_of(hash);
    const int64_t equal =
        std::mismatch(tokens.begin(), tokens.end(), wanted.begin(), wanted.end()).first -
        tokens.begin();
    const bool differs = equal < std::min(std::ssize(tokens), std::ssize(wanted));
    if (equal == best.equal) best.differs |= differs;
    if (equal > best.equal) best = {hash, std::move(tokens), equal, differs};
  }
  return best;
}

PrefixStore::Loaded PrefixStore::load_alike(const Hash128& before, std::span<const int32_t> wanted,
                                            int64_t more_than, const KvCacheView& cache,
                                            int64_t row) {
  const Alike alike = most_alike(before, wanted);
  if (alike.equal <= more_than || alike.equal < BlockPool::kAkin)
    return {0, alike.equal == more_than && alike.differs};
  const BlockPool::Content content{BlockPool::kNone, before, alike.hash, alike.tokens};
  if (!read_rows(content, alike.equal, cache, row)) return {};
  ++stats_.alike;
  return {alike.equal, alike.differs};
}

void PrefixStore::save(const BlockPool::Content& content, const KvCacheView& cache, int64_t row) {
  const int64_t size = std::ssize(content.tokens);
  if (stats_.failed || file_bytes() > max_bytes_ || size < BlockPool::kAkin) return;
  const auto known = known_.find(content.hash);
  if (known != known_.end() && renew(known->second)) return;
  try {
    if (size < kKeyBlock) {
      const Alike alike = most_alike(content.parent_hash, content.tokens);
      if (alike.equal == size && renew(known_.at(alike.hash))) return;
    }
    write(content, cache, row);
    ++stats_.saved;
    remove_beginnings(content);
  } catch (const Error& error) {
    stop_writing(error.what());
  } catch (const std::bad_alloc&) {
    stop_writing("out of memory");
  }
}

void PrefixStore::write(const BlockPool::Content& content, const KvCacheView& cache, int64_t row) {
  const PrefixFileHeader header = header_of(content);
  std::string bytes;
  bytes.reserve(file_bytes());
  bytes.append(reinterpret_cast<const char*>(&header), sizeof header);
  for (const std::byte* layer : cache.layers) {
    bytes.append(reinterpret_cast<const char*>(layer) + static_cast<uint64_t>(row) * row_bytes_,
                 content.tokens.size() * row_bytes_);
  }
  const uint64_t sum = hash_bytes(bytes_of(bytes));
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  make_room(bytes.size());
  const fs::path path = path_of(content);
  write_file_atomically(path, bytes, kPrivateFile);
  const int64_t time = next_time();
  touch(path, time);
  add({path, bytes.size(), content.hash, content.parent_hash, true}, time);
  followers_[content.parent_hash].push_back(content.hash);
}

void PrefixStore::stop_writing(const char* why) {
  stats_.failed = true;
  try {
    last_problem_ = why;
  } catch (const std::bad_alloc&) {
    last_problem_.clear();
  }
}

}  // namespace fathom
