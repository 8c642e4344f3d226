#include "cli/selftest.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <limits>

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
    EXPECT_TRUE(r.passed) << r.subject << ": " << r.error << " > " << r.bound << " at " << r.row
                          << ", " << r.column << ": " << r.detail;
  }
}

INSTANTIATE_TEST_SUITE_P(All, SelftestFolder,
                         testing::Values("models/v3", "models/moonlight", "models/v2",
                                         "models/v2-lite", "models/v3-fp8", "models/qwen2",
                                         "models/llama3", "gguf"),
                         [](const auto& test) {
                           std::string name = test.param;
                           for (char& c : name)
                             c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
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
  bytes[static_cast<size_t>(norm->data - file.file().bytes().data()) + 3] ^=
      0x40;  // an exponent bit of one weight
  write_file_atomically(folder / "model.safetensors", bytes);
  const auto results = selftest_folder(folder.string(), 1);
  const auto red =
      std::count_if(results.begin(), results.end(), [](const auto& r) { return !r.passed; });
  EXPECT_GT(red, 0);
  EXPECT_EQ(run_selftest({{folder.string()}, 1, false, false}), 1);
  fs::remove_all(folder);
}

// A copy of a golden folder whose golden.safetensors is changed tensor by tensor.
std::string error_with(const std::string& model,
                       const std::function<void(std::vector<TensorToWrite>&)>& change) {
  const fs::path folder = fs::path(testing::TempDir()) / "fathom-selftest-golden";
  fs::remove_all(folder);
  fs::copy(golden_path("models/" + model), folder);
  const Safetensors golden =
      Safetensors::open(golden_path("models/" + model + "/golden.safetensors"));
  std::vector<TensorToWrite> tensors;
  for (const TensorInfo& t : golden.tensors())
    tensors.push_back({t.name, t.dtype, t.shape, {t.data, t.bytes}});
  change(tensors);
  write_safetensors(folder / "golden.safetensors", tensors);
  std::string text = "no error";
  try {
    selftest_folder(folder.string() + "/", 1);
  } catch (const Error& error) {
    text = error.what();
  }
  fs::remove_all(folder);
  return text;
}

TEST(Selftest, RecordedVectorsFromStrangersAreChecked) {
  const auto named = [](std::vector<TensorToWrite>& tensors,
                        const std::string& name) -> TensorToWrite& {
    return *std::find_if(tensors.begin(), tensors.end(),
                         [&](const auto& t) { return t.name == name; });
  };
  const std::vector<int64_t> many(50'000, 1);
  EXPECT_NE(error_with("v3",
                       [&](auto& t) {
                         named(t, "experts").data = std::as_bytes(std::span(many));
                         named(t, "experts").shape = {50'000};
                       })
                .find("tensor 'experts': 50000 elements, expected 768"),
            std::string::npos);
  EXPECT_NE(
      error_with("qwen2",
                 [&](auto& t) {
                   t.push_back({"experts", DType::kI64, {50'000}, std::as_bytes(std::span(many))});
                 })
          .find("tensor 'experts': element 0: found 1, expected an id below 0"),
      std::string::npos);
  std::vector<float> infinite(96 * 256, std::numeric_limits<float>::infinity());
  EXPECT_NE(
      error_with("qwen2",
                 [&](auto& t) { named(t, "logits").data = std::as_bytes(std::span(infinite)); })
          .find("tensor 'logits': element 0 is inf, expected finite reference values"),
      std::string::npos);
}

TEST(Selftest, AFolderWithoutRecordedVectorsIsAnError) {
  EXPECT_THROW(selftest_folder(testing::TempDir(), 1), Error);
}

}  // namespace
}  // namespace fathom
