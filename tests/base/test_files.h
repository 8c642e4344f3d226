// For tests that touch files or expect errors: a folder that removes itself, a scope without
// privileges, and the text of a thrown fathom::Error.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>

#include "base/error.h"

namespace fathom {

class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "fathom-test-XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(std::string_view name) const { return path_ / name; }
  std::string string() const { return path_.string(); }
  // Writes `contents` to a file of this folder, in folders made for it, and returns its path.
  std::filesystem::path write(std::string_view name, std::string_view contents) const {
    const std::filesystem::path path = path_ / name;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary) << contents;
    return path;
  }

 private:
  std::filesystem::path path_;
};

// Can its file system hold files without names, of which nothing is left when a process is killed?
inline bool has_unnamed_files(const std::filesystem::path& folder) {
  const int fd = ::open(folder.c_str(), O_WRONLY | O_TMPFILE, 0600);
  return fd >= 0 && ::close(fd) == 0;
}

// What a privileged user may do nobody may in this scope.
struct Unprivileged {
  Unprivileged() { EXPECT_EQ(::seteuid(::getuid() == 0 ? 65534 : ::getuid()), 0); }
  ~Unprivileged() { EXPECT_EQ(::seteuid(::getuid()), 0); }
  Unprivileged(const Unprivileged&) = delete;
  Unprivileged& operator=(const Unprivileged&) = delete;
};

// The text of the fathom::Error that `body` throws with exit code `code`; a test failure and "" if
// it throws none.
template <class Body>
std::string error_of(Body&& body, ExitCode code = ExitCode::kBadInput) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), code) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "expected a fathom::Error, nothing was thrown";
  return "";
}

}  // namespace fathom
