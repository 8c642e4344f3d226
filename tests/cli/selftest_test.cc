#include "cli/selftest.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "tests/model/golden.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

class SelftestFolder : public testing::TestWithParam<std::string> {};

TEST_P(SelftestFolder, EveryComparisonIsGreen) {
  const auto results = selftest_folder(golden_path(GetParam()), 2);
  EXPECT_GE(results.size(), 8u);
  for (const SelftestResult& r : results) {
    EXPECT_TRUE(r.passed) << r.subject << ": " << r.error << " > " << r.bound << " at " << r.row << ", " << r.column << ": " << r.detail;
  }
}

INSTANTIATE_TEST_SUITE_P(All, SelftestFolder,
                         testing::Values("models/v3", "models/moonlight", "models/v2", "models/v2-lite", "models/v3-fp8", "models/qwen2",
                                         "models/llama3", "gguf"),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

// One changed weight turns it red and the place is named.
TEST(Selftest, SeesOneChangedWeight) {
  const fs::path folder = fs::path(testing::TempDir()) / "fathom-selftest-test";
  fs::remove_all(folder);
  fs::copy(golden_path("models/qwen2"), folder);
  std::string bytes = read_file(folder / "model.safetensors", 1 << 24);
  const Safetensors file = Safetensors::open(folder / "model.safetensors");
  const TensorInfo* norm = file.find("model.norm.weight");
  bytes[static_cast<size_t>(norm->data - file.file().bytes().data()) + 3] ^= 0x40;  // an exponent bit of one weight
  write_file_atomically(folder / "model.safetensors", bytes);
  const auto results = selftest_folder(folder.string(), 1);
  const auto red = std::count_if(results.begin(), results.end(), [](const auto& r) { return !r.passed; });
  EXPECT_GT(red, 0);
  EXPECT_EQ(run_selftest({{folder.string()}, 1, false, false}), 1);
  fs::remove_all(folder);
}

TEST(Selftest, AFolderWithoutRecordedVectorsIsAnError) {
  EXPECT_THROW(selftest_folder(testing::TempDir(), 1), Error);
}

}  // namespace
}  // namespace fathom
