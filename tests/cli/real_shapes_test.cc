// label: slow
// Models of real widths with random weights (tools/make_model.cc): load, run, match the
// double-precision twin on a few tokens, and stay within the memory that the file and the cache
// explain.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "formats/safetensors.h"
#include "tests/cli/subprocess.h"
#include "tests/reference/expect_close.h"
#include "tests/reference/model_ref.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

struct Shape {
  const char* preset;
  const char* type;  // GGUF types make a file, the others a folder
};

class RealShape : public testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    const char* folder =
        std::getenv("FATHOM_TEST_FOLDER");  // tens of GB: some have no room in /tmp
    folder_ = fs::path(folder != nullptr ? folder : testing::TempDir()) / "fathom-real-shapes";
    fs::remove_all(folder_);
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  fs::path folder_;
};

uint64_t size_of(const fs::path& path) {
  if (!fs::is_directory(path)) return fs::file_size(path);
  uint64_t total = 0;
  for (const auto& entry : fs::directory_iterator(path)) total += fs::file_size(entry);
  return total;
}

TEST_P(RealShape, MatchesTheTwinWithinTheMemoryOfItsFile) {
  const std::string type = GetParam().type;
  const bool gguf = type != "BF16" && type != "FP8";
  const fs::path model_path = folder_ / (gguf ? "model.gguf" : "model");
  const fs::path make_model = fs::path(FATHOM_BINARY).parent_path() / "make_model";
  const std::string command =
      fmt::format("'{}' {} '{}' --type {} >/dev/null 2>&1", make_model.string(), GetParam().preset,
                  model_path.string(), type);
  ASSERT_EQ(std::system(command.c_str()), 0) << command;

  const std::vector<int32_t> ids = {1, 77, 5, 200};
  write_file_atomically(folder_ / "ids.txt", "1 77 5 200\n");
  const fs::path out = folder_ / "logits.safetensors";
  const Model model = Model::load(model_path);
  for (const std::string form : {"expanded", "absorbed"}) {
    if (form == "absorbed" && !model.config().is_mla()) break;
    const Finished run = run_fathom(
        {"logits", model_path.string(), "--precision", gguf ? "f32" : "native", "--ids",
         (folder_ / "ids.txt").string(), "-o", out.string(), "--form", form, "--cache", "f32"});
    ASSERT_EQ(run.code, 0) << run.err;
    struct rusage usage {};
    getrusage(RUSAGE_CHILDREN, &usage);
    const auto peak_bytes = static_cast<double>(usage.ru_maxrss) * 1024;
    const double allowed =
        1.1 * static_cast<double>(size_of(model_path) +
                                  static_cast<uint64_t>(64 * model.config().cache_width() *
                                                        model.cache_layers() * 4)) +
        64e6;
    EXPECT_LE(peak_bytes, allowed) << "file size " << size_of(model_path);
    RecordProperty("peak_bytes_" + form, std::to_string(peak_bytes));

    // 2e-5 as everywhere (measured: 2e-6), blocks widened: in integers a rounding that falls the
    // other way is a step of 1/127. BF16 and FP8 weights round the activations, which the twin does
    // too (kNative): the bound of tests/model/model_test.cc.
    const auto expected =
        reference::model_logits(model, ids, gguf ? Precision::kF32 : Precision::kNative);
    const Safetensors file = Safetensors::open(out);
    const TensorInfo* logits = file.find("logits");
    ASSERT_NE(logits, nullptr);
    std::vector<float> found(logits->bytes / 4);
    std::memcpy(found.data(), logits->data, logits->bytes);
    double scale = 0, worst = 0;
    for (const double v : expected) scale = std::max(scale, std::abs(v));
    for (size_t i = 0; i < found.size(); ++i)
      worst = std::max(worst, std::abs(found[i] - expected[i]) / scale);
    std::printf("%s %s %s: peak %.2f GB for a file of %.2f GB, error %.2g\n", GetParam().preset,
                type.c_str(), form.c_str(), peak_bytes / 1e9,
                static_cast<double>(size_of(model_path)) / 1e9, worst);
    reference::expect_close(found, expected, (gguf ? 2e-5 : 10 * 0x1p-7 / 8) * scale);
  }
}

INSTANTIATE_TEST_SUITE_P(All, RealShape,
                         testing::Values(Shape{"qwen2-1.5b", "Q4_0"}, Shape{"v3-1b", "Q8_0"},
                                         Shape{"v2-lite", "Q4_K_M"}, Shape{"r1-2layers", "Q4_K_M"},
                                         Shape{"r1-2layers", "FP8"}),
                         [](const auto& test) {
                           std::string name =
                               std::string(test.param.preset) + "_" + test.param.type;
                           for (char& c : name)
                             c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace fathom
