// Files: read whole (with a cap), map read-only, write atomically (temporary file, fsync, rename,
// fsync of the folder). Every failure throws fathom::Error that begins with the path.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "base/hash.h"

namespace fathom {

// The whole file. Throws if it is missing, not a regular file, or larger than `max_bytes`.
std::string read_file(const std::filesystem::path& path, uint64_t max_bytes);

// What a file holds, in short.
struct FileDigest {
  uint64_t bytes = 0;
  uint64_t hash = 0;  // base/hash.h
  bool operator==(const FileDigest&) const = default;
};
// Of the whole file, read in pieces and not mapped: a disk that fails is an Error, not a signal.
FileDigest digest_file(const std::filesystem::path& path);

inline constexpr uint32_t kPublicFile = 0644, kPrivateFile = 0600;  // modes; the umask narrows them

// Replaces `path` all or nothing: until commit() bytes go to a file without a name in its folder,
// of which nothing is left however the process dies; on file systems that have no such files, to a
// temporary beside it. Without a commit `path` stays as it was.
class AtomicFile {
 public:
  explicit AtomicFile(const std::filesystem::path& path, uint32_t mode = kPublicFile);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  // Once, last: when it returns the new contents have reached the disk. The digest is that of what
  // was given to write(), whatever the disk made of it.
  FileDigest commit();

 private:
  std::filesystem::path path_;
  std::string temporary_;  // its name beside `path`, in the moment before the rename
  bool named_ = false;     // it exists under that name
  int fd_ = -1;
  uint64_t bytes_ = 0;
  Hasher hasher_;
};

FileDigest write_file_atomically(const std::filesystem::path& path, std::string_view contents,
                                 uint32_t mode = kPublicFile);

// Entries of a folder (renames, new files) reach the disk.
void sync_folder(const std::filesystem::path& folder);

// Throws what writing `path` would, for instance because its folder is missing or may not be
// written: before work whose result it is to hold. Leaves nothing behind.
void expect_writable(const std::filesystem::path& path);

// The folder and those above it, as far as they are missing. Throws naming `folder` and the reason.
void make_folders(const std::filesystem::path& folder);

// While it lives no other has the same folder, in this process or another: flock() on a file "lock"
// there, which the kernel lets go when its process ends, however that dies. The folder and the file
// are made if need be; the file stays. On file systems without such locks nobody is kept out.
class FolderLock {
 public:
  static constexpr std::string_view kFile = "lock";
  // Throws "in use by process N, expected ..." if another has it.
  FolderLock(const std::filesystem::path& folder, std::string_view expected);
  ~FolderLock();
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_ = -1;
};

// A read-only mapping that unmaps itself. The file may shrink under us: check_unchanged() compares
// size and time with those at open. A read past the new end is a SIGBUS, which the program turns
// into a message (cli/interrupt.h).
class MappedFile {
 public:
  MappedFile() = default;
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }
  // Throws "changed while in use" if size or modification time differ from those at open.
  void check_unchanged() const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
  int64_t modified_ns_ = 0;
};

// Gives back the pages that this part of a MappedFile takes in this process; they are mapped again
// when touched.
void drop_mapped(std::span<const std::byte> part);

}  // namespace fathom
