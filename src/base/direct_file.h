// Reads of a large file that leave no second copy of it in the page cache: O_DIRECT where the file
// system has it, else plain reads whose pages are given up again. For data that the program keeps
// in memory of its own; a disk that fails or a file that shrinks is an Error, not a signal.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>

namespace fathom {

class DirectFile {
 public:
  // Of offsets, lengths and memory. O_DIRECT asks for the disk's sector, which divides it.
  static constexpr size_t kAlignment = 4096;

  // Throws if it cannot be opened.
  explicit DirectFile(const std::filesystem::path& path);
  DirectFile(DirectFile&& other) noexcept;
  DirectFile& operator=(DirectFile&&) = delete;
  ~DirectFile();

  // Fills `out` with the bytes from `offset` on, `wanted` of them at least; what lies behind them
  // is undefined. REQUIRES: offset, length and out are multiples of kAlignment, wanted <= length.
  // Throws "PATH: cannot read ...", "PATH: ends at byte ...". Any thread, also several at a time.
  void read(uint64_t offset, std::byte* out, size_t length, size_t wanted) const;

  bool direct() const { return direct_; }

 private:
  std::string path_;
  int fd_ = -1;
  bool direct_ = false;
};

}  // namespace fathom
