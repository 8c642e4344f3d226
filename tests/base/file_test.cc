#include "base/file.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <span>
#include <string>
#include <utility>

#include "tests/base/test_files.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

int files_in(const fs::path& folder) {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(folder)) ++count;
  return count;
}

TEST(ReadFile, ReturnsAllBytesUpToTheLimitAndRefusesOneMore) {
  const TempDir dir;
  const std::string contents("ab\0\xff", 4);
  const fs::path path = dir.write("f", contents);
  EXPECT_EQ(read_file(path, 4), contents);
  EXPECT_EQ(error_of([&] { read_file(path, 3); }), path.string() + ": 4 bytes, expected at most 3");
  EXPECT_EQ(read_file(dir.write("empty", ""), 0), "");
}

TEST(ReadFile, RefusesWhatIsNotARegularFileByPathAndKind) {
  const TempDir dir;
  const std::string missing = (dir / "missing").string();
  EXPECT_EQ(error_of([&] { read_file(missing, 9); }),
            missing + ": cannot open: No such file or directory");
  EXPECT_EQ(error_of([&] { read_file(dir.path(), 9); }),
            dir.path().string() + ": is a folder, expected a file");
  const std::string fifo = (dir / "fifo").string();
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);  // must not wait for a writer
  EXPECT_EQ(error_of([&] { read_file(fifo, 9); }), fifo + ": not a regular file");
  EXPECT_EQ(error_of([&] { MappedFile file(fifo); }), fifo + ": not a regular file");
  EXPECT_EQ(error_of([&] { MappedFile file(dir.path()); }),
            dir.path().string() + ": is a folder, expected a file");
}

TEST(MappedFile, ShowsTheBytesAndKeepsThemWhenMoved) {
  const TempDir dir;
  MappedFile file(dir.write("f", "hello"));
  const std::byte* data = file.bytes().data();
  EXPECT_EQ(text_of(file), "hello");
  MappedFile moved(std::move(file));
  EXPECT_EQ(moved.bytes().data(), data);
  EXPECT_EQ(moved.path(), (dir / "f").string());
  MappedFile assigned(dir.write("g", "other"));
  assigned = std::move(moved);
  EXPECT_EQ(text_of(assigned), "hello");
}

TEST(MappedFile, AnEmptyFileIsAnEmptySpan) {
  const TempDir dir;
  const MappedFile file(dir.write("f", ""));
  EXPECT_TRUE(file.bytes().empty());
  file.check_unchanged();
}

TEST(MappedFile, NoticesThatTheFileChangedWhileInUse) {
  const TempDir dir;
  const fs::path path = dir.write("f", "hello");
  const MappedFile file(path);
  file.check_unchanged();
  const auto time = fs::last_write_time(path);
  fs::last_write_time(path, time + std::chrono::seconds(1));
  EXPECT_EQ(error_of([&] { file.check_unchanged(); }), path.string() + ": changed while in use");
  fs::last_write_time(path, time);
  file.check_unchanged();
  fs::resize_file(path, 4);
  fs::last_write_time(path, time);
  EXPECT_EQ(error_of([&] { file.check_unchanged(); }), path.string() + ": changed while in use");
  fs::remove(path);
  EXPECT_EQ(error_of([&] { file.check_unchanged(); }),
            path.string() + ": cannot stat: No such file or directory");
}

TEST(WriteFileAtomically, CreatesReplacesAndLeavesNothingBeside) {
  const TempDir dir;
  write_file_atomically(dir / "f", "one");
  EXPECT_EQ(read_file(dir / "f", 99), "one");
  write_file_atomically(dir / "f", "");
  EXPECT_EQ(read_file(dir / "f", 99), "");
  EXPECT_EQ(files_in(dir.path()), 1);
}

TEST(WriteFileAtomically, AReaderOfTheOldFileKeepsTheOldBytes) {
  const TempDir dir;
  write_file_atomically(dir / "f", "old");
  const MappedFile old(dir / "f");
  write_file_atomically(dir / "f", "new");
  EXPECT_EQ(text_of(old), "old");
  EXPECT_EQ(read_file(dir / "f", 99), "new");
}

TEST(AtomicFile, WithoutCommitTheOldFileStaysAndTheTemporaryIsGone) {
  const TempDir dir;
  write_file_atomically(dir / "f", "old");
  {
    AtomicFile file(dir / "f");
    file.write(std::string_view("half of the n"));
    EXPECT_EQ(read_file(dir / "f", 99), "old");
  }
  EXPECT_EQ(read_file(dir / "f", 99), "old");
  EXPECT_EQ(files_in(dir.path()), 1);
}

TEST(AtomicFile, AKilledProcessLeavesNothing) {
  const TempDir dir;
  if (!has_unnamed_files(dir.path())) GTEST_SKIP() << "this file system has none";
  dir.write("f", "old");
  const pid_t child = ::fork();
  if (child == 0) {
    AtomicFile file(dir / "f");
    file.write("half of the new");
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  EXPECT_EQ(read_file(dir / "f", 99), "old");
  EXPECT_EQ(files_in(dir.path()), 1);
}

// Without /proc a file that has no name could never get one.
TEST(AtomicFile, WithoutProcATemporaryWithANameServes) {
  const TempDir dir;
  dir.write("f", "old");
  enum { kRefused = 77 };
  const pid_t child = ::fork();
  if (child == 0) {
    const bool hidden = ::unshare(CLONE_NEWNS) == 0 &&
                        ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                        ::mount("none", "/proc", "tmpfs", 0, nullptr) == 0;
    if (!hidden) ::_exit(kRefused);
    { AtomicFile given_up(dir / "f"); }
    AtomicFile file(dir / "f");
    file.write("new");
    const int during = files_in(dir.path());
    file.commit();
    ::_exit(10 * during + files_in(dir.path()));
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == kRefused) GTEST_SKIP() << "only root can hide /proc from a child";
  EXPECT_EQ(WEXITSTATUS(status), 21);  // two files while writing, one after
  EXPECT_EQ(read_file(dir / "f", 99), "new");
}

TEST(AtomicFile, PiecesAreWrittenInOrder) {
  const TempDir dir;
  AtomicFile file(dir / "f");
  for (const std::string_view piece : {"a", "", "bc", "def"}) file.write(piece);
  file.commit();
  EXPECT_EQ(read_file(dir / "f", 99), "abcdef");
}

TEST(Hash, IsXxh3AndDoesNotDependOnThePieces) {
  EXPECT_EQ(hash_text(hash_bytes({})), "2d06800538d394c2");  // the published value of no bytes
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(i * i % 251);
  const std::span bytes = std::as_bytes(std::span(text));
  for (const size_t piece : {1u, 7u, 240u, 256u, 4999u, 5000u}) {
    Hasher hasher;
    for (size_t i = 0; i < bytes.size(); i += piece)
      hasher.add(bytes.subspan(i, std::min(piece, bytes.size() - i)));
    EXPECT_EQ(hasher.value(), hash_bytes(bytes)) << piece;
  }
  EXPECT_NE(hash_bytes(bytes), hash_bytes(bytes.first(4999)));
}

TEST(Hash, AChainedHashNamesTheWholeBeginning) {
  const auto bytes = [](std::string_view text) { return std::as_bytes(std::span(text)); };
  const Hash128 a = hash_chained({}, bytes("a")), b = hash_chained({}, bytes("b"));
  EXPECT_EQ(hash_chained({}, bytes("a")), a);
  EXPECT_NE(a, b);
  EXPECT_NE(hash_chained(a, bytes("c")), hash_chained(b, bytes("c")));
  EXPECT_NE(hash_chained(a, {}), a);
  EXPECT_NE(hash_chained({1, 0}, bytes("a")), hash_chained({0, 1}, bytes("a")));
  EXPECT_EQ(hash_text(Hash128{0xab, 1}), "000000000000000100000000000000ab");
}

TEST(AtomicFile, TellsTheDigestOfWhatItWasGiven) {
  const TempDir dir;
  const std::string text(3'000'000, 'x');  // more than one piece of digest_file
  AtomicFile file(dir / "f");
  file.write(text.substr(0, 10));
  file.write(text.substr(10));
  const FileDigest given = file.commit();
  EXPECT_EQ(given.bytes, text.size());
  EXPECT_EQ(given.hash, hash_bytes(std::as_bytes(std::span(text))));
  EXPECT_EQ(digest_file(dir / "f"), given);
  std::string damaged = text;
  damaged.back() = 'y';
  dir.write("f", damaged);
  EXPECT_NE(digest_file(dir / "f").hash, given.hash);
  const std::string missing = (dir / "missing").string();
  EXPECT_EQ(error_of([&] { digest_file(missing); }),
            missing + ": cannot open: No such file or directory");
  EXPECT_EQ(error_of([&] { digest_file(dir.path()); }),
            dir.path().string() + ": is a folder, expected a file");
}

TEST(AtomicFile, ALinkPlantedUnderTheTemporaryNameIsNotFollowed) {
  const TempDir dir;
  dir.write("victim", "precious");
  fs::create_symlink(dir / "victim", (dir / "f").string() + ".tmp" + std::to_string(::getpid()));
  write_file_atomically(dir / "f", "new");
  EXPECT_EQ(read_file(dir / "victim", 99), "precious");
  EXPECT_EQ(read_file(dir / "f", 99), "new");
  EXPECT_FALSE(fs::is_symlink(dir / "f"));
}

TEST(AtomicFile, EveryFailureBeginsWithThePathAndLeavesNothing) {
  const TempDir dir;
  const std::string in_missing = (dir / "missing/f").string();
  EXPECT_EQ(error_of([&] { write_file_atomically(in_missing, "x"); }),
            in_missing + ": cannot create: No such file or directory");
  const std::string folder = (dir / "folder").string();
  fs::create_directories(folder + "/full");
  EXPECT_EQ(error_of([&] { write_file_atomically(folder, "x"); }),
            folder + ": cannot rename to: Is a directory");
  EXPECT_EQ(files_in(dir.path()), 1);
}

TEST(File, WhatCannotBeWrittenIsSaidBefore) {
  const TempDir dir;
  expect_writable(dir / "new");
  expect_writable(dir.write("old", "x"));
  EXPECT_EQ(files_in(dir.path()), 1);
  EXPECT_EQ(read_file(dir / "old", 10), "x");
  EXPECT_EQ(error_of([&] { expect_writable(dir.path()); }),
            dir.string() + ": is a folder, expected a file");
  EXPECT_EQ(error_of([&] { expect_writable(dir / "no/x"); }),
            (dir / "no/x").string() + ": cannot create: No such file or directory");
  const Unprivileged nobody;
  EXPECT_EQ(error_of([&] { expect_writable(dir / "new"); }),
            (dir / "new").string() + ": cannot create: Permission denied");
}

TEST(FolderLock, IsOneOwnersUntilItIsGone) {
  const TempDir dir;
  const std::filesystem::path folder = dir / "a/b";
  const auto taken = [&] { return error_of([&] { FolderLock(folder, "nobody"); }); };
  {
    const FolderLock lock(folder, "nobody");
    EXPECT_EQ(taken(), fmt::format("{}: found in use by process {}, expected nobody",
                                   folder.string(), ::getpid()));
  }
  { const FolderLock again(folder, "nobody"); }
  std::filesystem::remove(folder / "lock");
  std::filesystem::create_directory(folder / "lock");
  EXPECT_TRUE(taken().starts_with((folder / "lock").string() + ": cannot open: "));
  const std::string below_file = dir.write("file", "x") / "a";
  EXPECT_EQ(error_of([&] { FolderLock(below_file, "nobody"); }),
            below_file + ": cannot make this folder: Not a directory");
  const Unprivileged nobody;
  const std::string forbidden = dir / "b";
  EXPECT_EQ(error_of([&] { FolderLock(forbidden, "nobody"); }),
            forbidden + ": cannot make this folder: Permission denied");
}

TEST(AtomicFile, AWriteThatTheSystemRefusesKeepsTheOldFile) {
  const TempDir dir;
  write_file_atomically(dir / "f", "old");
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{1000, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string text = error_of(
      [&] { write_file_atomically(dir / "f", std::string(2000, 'n')); }, ExitCode::kNoResources);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(text, (dir / "f").string() + ": cannot write: File too large");
  EXPECT_EQ(read_file(dir / "f", 99), "old");
  EXPECT_EQ(files_in(dir.path()), 1);
}

}  // namespace
}  // namespace fathom
