// Every malformed safetensors and GGUF file of tools/make_hostile_files.py is refused for its own
// reason, with a message that begins with the path, and for next to no memory whatever sizes it
// declares.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <new>
#include <string>
#include <vector>

#include "formats/checkpoint.h"
#include "tests/base/test_files.h"

namespace {

// Bytes that operator new has handed out and not got back, and their peak. All C++ containers,
// nlohmann's too, allocate there.
std::atomic<int64_t> live_bytes = 0;
std::atomic<int64_t> peak_bytes = 0;
constexpr size_t kHeader = 64;  // in front of each block: its size, at any alignment that we use

void* counted_new(size_t bytes) {
  auto* block = static_cast<char*>(
      std::aligned_alloc(kHeader, (bytes + 2 * kHeader - 1) / kHeader * kHeader));
  if (block == nullptr) throw std::bad_alloc();
  *reinterpret_cast<size_t*>(block) = bytes;
  const int64_t live = live_bytes += static_cast<int64_t>(bytes);
  for (int64_t peak = peak_bytes; live > peak && !peak_bytes.compare_exchange_weak(peak, live);) {
  }
  return block + kHeader;
}

void counted_delete(void* pointer) {
  if (pointer == nullptr) return;
  char* block = static_cast<char*>(pointer) - kHeader;
  live_bytes -= static_cast<int64_t>(*reinterpret_cast<size_t*>(block));
  std::free(block);
}

}  // namespace

void* operator new(size_t bytes) { return counted_new(bytes); }
void* operator new[](size_t bytes) { return counted_new(bytes); }
// std::stable_sort asks this way; a sanitizer's own version would not meet our delete.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return counted_new(bytes); }
void operator delete(void* pointer) noexcept { counted_delete(pointer); }
void operator delete[](void* pointer) noexcept { counted_delete(pointer); }
void operator delete(void* pointer, size_t) noexcept { counted_delete(pointer); }
void operator delete[](void* pointer, size_t) noexcept { counted_delete(pointer); }

namespace fathom {
namespace {

struct Case {
  std::string path;      // relative to the folder of all cases
  std::string fragment;  // of the message
};

class HostileFiles : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    dir_ = new TempDir;
    const std::string command = "python3 '" FATHOM_SOURCE_DIR "/tools/make_hostile_files.py' '" +
                                dir_->path().string() + "'";
    ASSERT_EQ(std::system(command.c_str()), 0);
    std::ifstream manifest(*dir_ / "manifest.tsv");
    for (std::string line; std::getline(manifest, line);) {
      const size_t tab = line.find('\t');
      cases_.push_back({line.substr(0, tab), line.substr(tab + 1)});
    }
  }
  static void TearDownTestSuite() { delete dir_; }

  static void expect_all_refused(std::string_view kind, int at_least) {
    int count = 0;
    for (const Case& c : cases_) {
      if (!c.path.starts_with(kind)) continue;
      ++count;
      const std::string path = (*dir_ / c.path).string();
      const int64_t before = live_bytes;
      peak_bytes = before;
      const std::string text = error_of([&] { Checkpoint::open(path); });
      EXPECT_LT(peak_bytes - before, 64 << 20) << c.path;
      EXPECT_TRUE(text.starts_with(path + ": ")) << c.path << " gave: " << text;
      EXPECT_NE(text.find(c.fragment), std::string::npos)
          << c.path << " gave: " << text << "\nexpected: " << c.fragment;
      EXPECT_LT(text.size(), path.size() + 500) << text;
      EXPECT_EQ(text.find_first_of("\n\r\x1b"), std::string::npos) << text;
    }
    EXPECT_GE(count, at_least);
  }

  static inline TempDir* dir_ = nullptr;
  static inline std::vector<Case> cases_;
};

TEST_F(HostileFiles, TheFilesTheyWereMadeFromAreValid) {
  EXPECT_EQ(Checkpoint::open(*dir_ / "valid/model.safetensors").tensors().size(), 5u);
  EXPECT_EQ(Checkpoint::open(*dir_ / "valid/model.gguf").tensors().size(), 3u);
  const Checkpoint model = Checkpoint::open(*dir_ / "valid/model");
  EXPECT_NE(model.find("model.layers.1.mlp.experts.3.down_proj.weight"), nullptr);
  EXPECT_TRUE(model.side_file("config.json", 1 << 20));
}

TEST_F(HostileFiles, EverySafetensorsFileIsRefusedForItsReason) {
  expect_all_refused("safetensors/", 100);
}
TEST_F(HostileFiles, EveryGgufFileIsRefusedForItsReason) { expect_all_refused("gguf/", 150); }

TEST_F(HostileFiles, TheAllocationCounterSeesWhatContainersTake) {
  peak_bytes = live_bytes.load();
  const int64_t before = live_bytes;
  { const std::vector<char> big(70 << 20); }
  EXPECT_GE(peak_bytes - before, 70 << 20);
  EXPECT_EQ(live_bytes, before);
}

}  // namespace
}  // namespace fathom
