#include "base/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <utility>

#include "base/error.h"

namespace fathom {
namespace {

// Closes on every way out of a function.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

bool is_resource(int error) {
  constexpr int kResource[] = {ENOSPC, EDQUOT, EFBIG, ENOMEM, EMFILE, ENFILE, EIO};
  return std::find(std::begin(kResource), std::end(kResource), error) != std::end(kResource);
}

[[noreturn]] void fail_errno(const std::string& path, const char* doing) {
  const int error = errno;
  if (is_resource(error)) {
    fail_resource("{}: cannot {}: {}", path, doing, std::strerror(error));
  }
  fail("{}: cannot {}: {}", path, doing, std::strerror(error));
}

struct stat open_regular(const std::string& path, const FileDescriptor& fd) {
  struct stat info {};
  if (fd.get() < 0) fail_errno(path, "open");
  if (::fstat(fd.get(), &info) != 0) fail_errno(path, "stat");
  if (S_ISDIR(info.st_mode)) fail("{}: is a folder, expected a file", path);
  if (!S_ISREG(info.st_mode)) fail("{}: not a regular file", path);
  return info;
}

// The name by which a file that has none can be linked; where /proc is missing there is none.
std::string own_link(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

int64_t modified_ns(const struct stat& info) {
  return int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
}

}  // namespace

std::string read_file(const std::filesystem::path& path, uint64_t max_bytes) {
  // O_NONBLOCK so that a FIFO in place of a file is refused, not waited for.
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  const struct stat info = open_regular(path.string(), fd);
  const auto size = static_cast<uint64_t>(info.st_size);
  if (size > max_bytes) fail("{}: {} bytes, expected at most {}", path.string(), size, max_bytes);
  std::string contents(size, '\0');
  size_t done = 0;
  while (done < size) {
    const ssize_t n = ::read(fd.get(), contents.data() + done, size - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno(path.string(), "read");
    if (n == 0)
      fail("{}: ends after {} bytes, expected {} (changed while read)", path.string(), done, size);
    done += static_cast<size_t>(n);
  }
  return contents;
}

FileDigest digest_file(const std::filesystem::path& path) {
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  open_regular(path.string(), fd);
  constexpr size_t kPiece = 1 << 20;
  const auto piece = std::make_unique_for_overwrite<std::byte[]>(kPiece);
  Hasher hasher;
  uint64_t bytes = 0;
  for (;;) {
    const ssize_t n = ::read(fd.get(), piece.get(), kPiece);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno(path.string(), "read");
    if (n == 0) return {bytes, hasher.value()};
    hasher.add({piece.get(), static_cast<size_t>(n)});
    bytes += static_cast<uint64_t>(n);
  }
}

AtomicFile::AtomicFile(const std::filesystem::path& path, uint32_t mode)
    : path_(path), temporary_(path.string() + ".tmp" + std::to_string(::getpid())) {
  const std::filesystem::path folder = path_.has_parent_path() ? path_.parent_path() : ".";
  fd_ = ::open(folder.c_str(), O_WRONLY | O_TMPFILE | O_CLOEXEC, mode);
  if (fd_ >= 0 && ::access(own_link(fd_).c_str(), F_OK) == 0) return;
  // no such files here, or no folder, which the next attempt says; a full disk is no reason to try
  if (fd_ < 0 && is_resource(errno)) fail_errno(path_.string(), "create");
  if (fd_ >= 0) ::close(fd_);
  ::unlink(temporary_.c_str());  // left by a killed process of the same id
  // O_EXCL: a link planted under this name is refused, not followed.
  fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
  if (fd_ < 0) fail_errno(path_.string(), "create");
  named_ = true;
}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (named_) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  hasher_.add(bytes);
  bytes_ += bytes.size();
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail_errno(path_.string(), "write");
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
}

FileDigest AtomicFile::commit() {
  if (::fsync(fd_) != 0) fail_errno(path_.string(), "sync");
  if (!named_) {
    ::unlink(temporary_.c_str());  // as above; a link in its place is not followed either
    if (::linkat(AT_FDCWD, own_link(fd_).c_str(), AT_FDCWD, temporary_.c_str(),
                 AT_SYMLINK_FOLLOW) != 0)
      fail_errno(path_.string(), "name");
    named_ = true;
  }
  // Network file systems may report here what fsync did not. Linux has closed the file also on
  // EINTR.
  if (::close(std::exchange(fd_, -1)) != 0 && errno != EINTR) fail_errno(path_.string(), "close");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_errno(path_.string(), "rename to");
  named_ = false;
  sync_folder(path_.has_parent_path() ? path_.parent_path() : ".");
  return {bytes_, hasher_.value()};
}

void sync_folder(const std::filesystem::path& folder) {
  FileDescriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0 || ::fsync(fd.get()) != 0) fail_errno(folder.string(), "sync");
}

FileDigest write_file_atomically(const std::filesystem::path& path, std::string_view contents,
                                 uint32_t mode) {
  AtomicFile file(path, mode);
  file.write(contents);
  return file.commit();
}

void expect_writable(const std::filesystem::path& path) {
  std::error_code unknown;  // then making the file says why
  if (std::filesystem::is_directory(path, unknown))
    fail("{}: is a folder, expected a file", path.string());
  const AtomicFile probe(path);
}

void make_folders(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (!error) return;
  errno = error.value();
  fail_errno(folder.string(), "make this folder");
}

FolderLock::FolderLock(const std::filesystem::path& folder, std::string_view expected) {
  make_folders(folder);
  const std::string path = (folder / kFile).string();
  FileDescriptor file(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, kPublicFile));
  if (file.get() < 0) fail_errno(path, "open");
  if (::flock(file.get(), LOCK_EX | LOCK_NB) == 0) {
    const std::string owner = fmt::format("{}\n", ::getpid());  // only for the message
    if (::ftruncate(file.get(), 0) == 0) (void)!::write(file.get(), owner.data(), owner.size());
  } else if (errno == EWOULDBLOCK) {
    char owner[16] = {};
    (void)!::read(file.get(), owner, sizeof owner - 1);
    const long process = std::strtol(owner, nullptr, 10);
    fail("{}: found in use by {}, expected {}", folder.string(),
         process > 0 ? fmt::format("process {}", process) : "another process", expected);
  } else if (errno != ENOLCK && errno != EOPNOTSUPP && errno != ENOSYS) {
    fail_errno(path, "lock");
  }
  fd_ = file.release();
}

FolderLock::~FolderLock() { ::close(fd_); }

MappedFile::MappedFile(const std::filesystem::path& path) : path_(path.string()) {
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  const struct stat info = open_regular(path_, fd);
  size_ = static_cast<size_t>(info.st_size);
  modified_ns_ = modified_ns(info);
  if (size_ == 0) return;  // mmap refuses empty files; an empty span is the honest answer
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  if (data == MAP_FAILED) fail_errno(path_, "map");
  data_ = static_cast<const std::byte*>(data);
}

MappedFile::MappedFile(MappedFile&& other) noexcept { *this = std::move(other); }

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(modified_ns_, other.modified_ns_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::check_unchanged() const {
  struct stat info {};
  if (::stat(path_.c_str(), &info) != 0) fail_errno(path_, "stat");
  if (static_cast<size_t>(info.st_size) != size_ || modified_ns(info) != modified_ns_) {
    fail("{}: changed while in use", path_);
  }
}

void drop_mapped(std::span<const std::byte> part) {
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(part.data());
  const uintptr_t first = (begin + page - 1) / page * page,
                  end = (begin + part.size()) / page * page;
  // a refusal is harmless
  if (first < end) ::madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
}

}  // namespace fathom
