#include "train/metrics.h"

#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "tests/base/test_files.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

std::string hex(const std::string& bytes) {
  std::string text;
  for (const unsigned char c : bytes) text += "0123456789abcdef"[c >> 4], text += "0123456789abcdef"[c & 15];
  return text;
}

// Bytes that the tensorboard Python package reads (checked with it by hand): framing, both checksums, protobuf fields.
TEST(TensorBoard, RecordsHaveTheirLengthAndMaskedChecksums) {
  EXPECT_EQ(hex(tensorboard_record("")), "0000000000000000" "29039807" "d8ea82a2");
  EXPECT_EQ(hex(tensorboard_scalar_event(1.0, 300, "a/b", 0.5f)), "09" "000000000000f03f" "10" "ac02" "2a0c" "0a0a" "0a03" "612f62" "15" "0000003f");
  EXPECT_EQ(hex(tensorboard_version_event(0)), "09" "0000000000000000" "1a0d" + hex("brain.Event:2"));
}

TEST(MetricsLog, WritesLinesAndEvents) {
  const TempDir run;
  {
    MetricsLog log(run.path(), 0);
    log.write(1, "train", {{"loss", 2.5}, {"name", "x"}});
    log.write(2, "train", {{"loss", 2.0}});
    EXPECT_EQ(log.take_warning(), "");
  }
  const std::string lines = read_file(run.path() / "metrics.jsonl", 1 << 20);
  EXPECT_EQ(lines, "{\"step\":1,\"kind\":\"train\",\"loss\":2.5,\"name\":\"x\"}\n{\"step\":2,\"kind\":\"train\",\"loss\":2.0}\n");
}

TEST(MetricsLog, AResumedRunDropsWhatCameAfterItsCheckpoint) {
  const TempDir run;
  {
    MetricsLog log(run.path(), 0);
    for (int64_t step = 1; step <= 5; ++step) log.write(step, "train", {{"loss", 1.0}});
  }
  std::ofstream(run.path() / "metrics.jsonl", std::ios::app) << "{\"step\":6,\"ki";  // killed while writing
  {
    MetricsLog log(run.path(), 3);
    log.write(4, "train", {{"loss", 9.0}});
  }
  const std::string lines = read_file(run.path() / "metrics.jsonl", 1 << 20);
  EXPECT_EQ(std::count(lines.begin(), lines.end(), '\n'), 4);
  EXPECT_NE(lines.find("{\"step\":4,\"kind\":\"train\",\"loss\":9.0}"), std::string::npos);
  EXPECT_EQ(lines.find("\"step\":5"), std::string::npos);
}

TEST(MetricsLog, AFailureIsAWarningOnce) {
  MetricsLog log("/proc/no/such/folder", 0);
  log.write(1, "train", {{"loss", 1.0}});
  EXPECT_NE(log.take_warning(), "");
  log.write(2, "train", {{"loss", 1.0}});
  EXPECT_EQ(log.take_warning(), "");
}

}  // namespace
}  // namespace fathom
