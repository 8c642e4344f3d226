#include "base/direct_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <utility>

#include "base/check.h"
#include "base/error.h"

namespace fathom {
namespace {

constexpr size_t kLeastSector = 512;

// Some file systems take O_DIRECT at open and refuse it at the first read.
bool reads_directly(int fd) {
  const std::unique_ptr<void, void (*)(void*)> page(
      std::aligned_alloc(DirectFile::kAlignment, DirectFile::kAlignment), &std::free);
  return page != nullptr && ::pread(fd, page.get(), DirectFile::kAlignment, 0) >= 0;
}

}  // namespace

DirectFile::DirectFile(const std::filesystem::path& path) : path_(path.string()) {
  fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
  direct_ = fd_ >= 0 && reads_directly(fd_);
  if (!direct_) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd_ < 0) fail_resource("{}: cannot open: {}", path_, std::strerror(errno));
    // One piece here, one there: reading ahead would fetch what nobody asked for.
    ::posix_fadvise(fd_, 0, 0, POSIX_FADV_RANDOM);
  }
}

DirectFile::DirectFile(DirectFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), direct_(other.direct_) {}

DirectFile::~DirectFile() {
  if (fd_ >= 0) ::close(fd_);
}

void DirectFile::read(uint64_t offset, std::byte* out, size_t length, size_t wanted) const {
  FATHOM_CHECK(offset % kAlignment == 0 && length % kAlignment == 0 &&
                   reinterpret_cast<uintptr_t>(out) % kAlignment == 0 && wanted <= length,
               offset, length, wanted);
  size_t done = 0;
  while (done < wanted) {
    const ssize_t n = ::pread(fd_, out + done, length - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      fail_resource("{}: cannot read {} bytes at byte {}: {}", path_, wanted - done, offset + done,
                    std::strerror(errno));
    }
    done += static_cast<size_t>(n);
    // Only the file's end cuts a direct read off within a sector; there is nothing behind it.
    const bool at_end = n == 0 || (direct_ && done % kLeastSector != 0);
    if (at_end && done < wanted) {
      fail("{}: ends at byte {}, expected {} or more (changed while in use)", path_, offset + done,
           offset + wanted);
    }
  }
  if (!direct_) {
    ::posix_fadvise(fd_, static_cast<off_t>(offset), static_cast<off_t>(length),
                    POSIX_FADV_DONTNEED);
  }
}

}  // namespace fathom
