// What a run writes down while it goes: RUN/metrics.jsonl, one JSON object a line, and a TensorBoard event file with the same
// numbers. A run that goes on from step N first drops the lines past N, so a curve never doubles back.
//
// Writing never stops a training: the first failure is reported, once, as a warning; from then on nothing is written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace fathom {

class MetricsLog {
 public:
  // step: the last step that counts (0 = a new run). Creates the folder.
  MetricsLog(const std::filesystem::path& run, int64_t step);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  // One line: {"step": step, "kind": kind, ...fields}. Numbers of `fields` become scalars "kind/name" for TensorBoard.
  void write(int64_t step, const std::string& kind, const nlohmann::ordered_json& fields);

  // The first failure, once; empty afterwards and as long as all is well.
  std::string take_warning();

 private:
  void fail(const std::string& what);

  int jsonl_ = -1, events_ = -1;
  std::string warning_;
  bool broken_ = false;
};

// One TensorBoard record: length, masked CRC-32C of the length, data, masked CRC-32C of the data (all little endian).
std::string tensorboard_record(std::string_view data);
// tensorflow.Event messages in protobuf's wire format: the first of a file, and one scalar.
std::string tensorboard_version_event(double wall_time);
std::string tensorboard_scalar_event(double wall_time, int64_t step, std::string_view tag, float value);

}  // namespace fathom
