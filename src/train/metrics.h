// What a run tells about itself. metrics.jsonl holds one JSON object a line, of the kinds below;
// beside it lies a TensorBoard event file for each start (event_file.h). Both are by-products:
// failing to write them warns once and never ends a training.
//
// A line is written at once and whole, or taken back. After a resume the lines past the resumed
// step are cut off, so that a curve never doubles.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fathom {

inline constexpr double kNoNumber =
    std::numeric_limits<double>::quiet_NaN();  // absent, or not a number: JSON null

// Once for each start of a run.
struct RunMetrics {
  std::string name, stage, command, version;
  std::string machine;    // CPU, cores, memory, in words
  std::string precision;  // "bf16", "f32"
  int threads = 0;
  int64_t parameters = 0, active_parameters = 0;
  double roof_flops = 0;  // FLOP/s of this machine at that precision; 0 = not measured
  int64_t steps = 0;      // of the whole run
  std::string recipe;     // resolved, TOML
};

struct StepMetrics {
  int64_t step = 0;                  // the first is 1
  int64_t tokens = 0;                // since the run's beginning
  double loss = kNoNumber;           // all terms, as they are weighed
  double cross_entropy = kNoNumber;  // of the next token
  double mtp_cross_entropy = kNoNumber, balance_loss = kNoNumber;
  double lr = kNoNumber, gradient_norm = kNoNumber;  // before clipping
  bool skipped = false;                              // the gradient was not finite
  double seconds = kNoNumber;                        // of this step
  double tokens_per_second = kNoNumber, flops_per_second = kNoNumber;
  uint64_t memory_bytes = 0;        // resident
  std::vector<double> expert_load;  // [MoE layers]: tokens of the fullest expert over the mean
};

struct TaskScore {
  std::string task;
  int64_t problems = 0, samples = 0;
  double greedy = kNoNumber;  // share of problems solved at temperature 0
  double temperature = kNoNumber;
  std::vector<std::pair<int64_t, double>> pass_at;  // k, unbiased estimate; rising k
};

struct EvaluationMetrics {
  int64_t step = 0;
  double validation_loss = kNoNumber, bits_per_byte = kNoNumber;
  std::vector<TaskScore> tasks;
};

struct SampleMetrics {
  int64_t step = 0;
  std::string task, prompt, completion;
  std::optional<bool> correct;  // absent: nothing judged it
  std::string verdict;          // in words
};

inline constexpr std::string_view kMetricsFile = "metrics.jsonl";

struct MetricsOptions {
  std::filesystem::path folder;         // exists
  std::optional<int64_t> resumed_step;  // absent: a new run
  bool tensorboard = true;
  std::function<void(const std::string&)> warn;  // called at most once, from the writing thread
  std::function<double()> wall_time;             // seconds since 1970; empty: the system's clock
};

// One thread at a time.
class MetricsLog {
 public:
  // Throws if a new run finds metrics in the folder, or if the files cannot be opened.
  explicit MetricsLog(MetricsOptions options);
  ~MetricsLog();
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;

  // Never throw.
  void write(const RunMetrics& run);
  void write(const StepMetrics& step);
  void write(const EvaluationMetrics& evaluation);
  void write(const SampleMetrics& sample);

 private:
  using Scalars = std::vector<std::pair<std::string, double>>;
  void append(int fd, uint64_t& size, std::string_view bytes, std::string_view what);
  void append_events(int64_t step, const Scalars& scalars);
  double now() const;

  MetricsOptions options_;
  int jsonl_ = -1, events_ = -1;  // file descriptors; events_ is -1 without TensorBoard
  uint64_t jsonl_size_ = 0, events_size_ = 0;
  bool warned_ = false;
};

// What metrics.jsonl of a run holds. Steps, evaluations and samples are in the order of the file.
struct RunHistory {
  std::vector<RunMetrics> starts;
  double first_time = kNoNumber, last_time = kNoNumber;  // seconds since 1970
  std::vector<StepMetrics> steps;
  std::vector<EvaluationMetrics> evaluations;
  std::vector<SampleMetrics> samples;
  int64_t unreadable_lines = 0;  // left out: not JSON, or not of a kind known here
};
// `path` is the file or its folder. Throws if there is none.
RunHistory read_metrics(const std::filesystem::path& path);

}  // namespace fathom
