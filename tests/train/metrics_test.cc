// Metrics: what is written is read back; a resume never doubles a curve; a full disk is survived;
// event files byte for byte.
#include "train/metrics.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <fstream>
#include <iterator>

#include "tests/base/test_files.h"
#include "train/event_file.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

std::string contents(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

std::string hex(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

std::vector<fs::path> event_files(const TempDir& folder) {
  std::vector<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(folder.path())) {
    if (entry.path().filename().string().starts_with("events.out.tfevents."))
      paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

StepMetrics step_of(int64_t step) {
  StepMetrics m;
  m.step = step;
  m.tokens = 100 * step;
  m.loss = 3.0 / static_cast<double>(step);
  m.lr = 1e-3;
  m.gradient_norm = 0.5;
  m.tokens_per_second = 1000;
  m.memory_bytes = 1 << 20;
  m.expert_load = {1.25, 2.5};
  return m;
}

MetricsOptions options_for(const TempDir& folder, std::optional<int64_t> resumed_step = {}) {
  MetricsOptions options;
  options.folder = folder.path();
  options.resumed_step = resumed_step;
  options.wall_time = [] { return 1700000000.25; };
  return options;
}

std::vector<int64_t> steps_of(const RunHistory& history) {
  std::vector<int64_t> steps;
  for (const StepMetrics& step : history.steps) steps.push_back(step.step);
  return steps;
}

// As the tensorboard package writes the same events: tools/tensorboard_oracle.py --golden.
TEST(EventFile, RecordsAreThoseOfTensorboardByteForByte) {
  EXPECT_EQ(hex(event_file_version(1700000000.25)),
            "1800000000000000a37f4b220900001040fc54d9411a0d627261696e2e4576656e743a32338d2fe9");
  EXPECT_EQ(hex(event_session_start(1700000000.25, 301)),
            "100000000000000095fbfe180900001040fc54d94110ad023a020801cb79b93b");
  const std::pair<std::string, double> scalars[] = {{"train/loss", 2.5}, {"train/lr", 0.001}};
  EXPECT_EQ(hex(event_scalars(1700000001.5, 300, scalars)),
            "3200000000000000241956ec0900006040fc54d94110ac022a240a110a0a747261696e2f6c6f7373150000"
            "20400a0f0a08747261696e2f6c72156f12"
            "833ae6050dc4");
}

TEST(EventFile, ChecksumIsTheCastagnoliCrc) {
  // RFC 3720 B.4
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(crc32c(""), 0u);
}

TEST(Metrics, AreReadBackAsTheyWereWritten) {
  const TempDir folder;
  RunMetrics run{"nano",
                 "pretrain",
                 "fathom pretrain nano.toml",
                 "0.1.0",
                 "CPU, 2 cores",
                 "bf16",
                 2,
                 9'950'000,
                 4'000'000,
                 1e12,
                 600,
                 "name = \"nano\"\n"};
  EvaluationMetrics evaluation{3,
                               1.5,
                               0.9,
                               {{"countdown", 1000, 16, 0.25, 1.0, {{1, 0.2}, {16, 0.5}}},
                                {"digit_sum", 100, 0, 1.0, kNoNumber, {}}}};
  SampleMetrics sample{3,    "countdown", "3 5 7 -> 15", "<think>3+5+7=15</think>3+5+7",
                       true, "correct"};
  StepMetrics odd = step_of(2);
  odd.loss = std::nan("");
  odd.gradient_norm = HUGE_VAL;
  odd.skipped = true;
  odd.expert_load.clear();
  {
    MetricsLog log(options_for(folder));
    log.write(run);
    log.write(step_of(1));
    log.write(odd);
    log.write(step_of(3));
    log.write(evaluation);
    log.write(sample);
    log.write(SampleMetrics{3, "", "x", "y", {}, ""});
  }
  for (const fs::path& path : {folder.path(), folder / "metrics.jsonl"}) {
    const RunHistory h = read_metrics(path);
    EXPECT_EQ(h.unreadable_lines, 0);
    EXPECT_EQ(h.first_time, 1700000000.25);
    ASSERT_EQ(h.starts.size(), 1u);
    EXPECT_EQ(h.starts[0].name, run.name);
    EXPECT_EQ(h.starts[0].stage, run.stage);
    EXPECT_EQ(h.starts[0].command, run.command);
    EXPECT_EQ(h.starts[0].version, run.version);
    EXPECT_EQ(h.starts[0].machine, run.machine);
    EXPECT_EQ(h.starts[0].precision, run.precision);
    EXPECT_EQ(h.starts[0].threads, run.threads);
    EXPECT_EQ(h.starts[0].parameters, run.parameters);
    EXPECT_EQ(h.starts[0].active_parameters, run.active_parameters);
    EXPECT_EQ(h.starts[0].roof_flops, run.roof_flops);
    EXPECT_EQ(h.starts[0].steps, run.steps);
    EXPECT_EQ(h.starts[0].recipe, run.recipe);
    ASSERT_EQ(h.steps.size(), 3u);
    EXPECT_EQ(h.steps[2].step, 3);
    EXPECT_EQ(h.steps[2].tokens, 300);
    EXPECT_EQ(h.steps[2].loss, 1.0);
    EXPECT_EQ(h.steps[2].lr, 1e-3);
    EXPECT_EQ(h.steps[2].gradient_norm, 0.5);
    EXPECT_EQ(h.steps[2].tokens_per_second, 1000);
    EXPECT_EQ(h.steps[2].memory_bytes, 1u << 20);
    EXPECT_EQ(h.steps[2].expert_load, (std::vector<double>{1.25, 2.5}));
    EXPECT_FALSE(h.steps[2].skipped);
    EXPECT_TRUE(std::isnan(h.steps[2].mtp_cross_entropy));
    EXPECT_TRUE(h.steps[1].skipped);
    EXPECT_TRUE(std::isnan(h.steps[1].loss));
    EXPECT_TRUE(std::isnan(h.steps[1].gradient_norm));  // JSON has no infinity
    ASSERT_EQ(h.evaluations.size(), 1u);
    EXPECT_EQ(h.evaluations[0].validation_loss, 1.5);
    EXPECT_EQ(h.evaluations[0].bits_per_byte, 0.9);
    ASSERT_EQ(h.evaluations[0].tasks.size(), 2u);
    EXPECT_EQ(h.evaluations[0].tasks[0].task, "countdown");
    EXPECT_EQ(h.evaluations[0].tasks[0].problems, 1000);
    EXPECT_EQ(h.evaluations[0].tasks[0].greedy, 0.25);
    EXPECT_EQ(h.evaluations[0].tasks[0].pass_at,
              (std::vector<std::pair<int64_t, double>>{{1, 0.2}, {16, 0.5}}));
    ASSERT_EQ(h.samples.size(), 2u);
    EXPECT_EQ(h.samples[0].completion, sample.completion);
    EXPECT_EQ(h.samples[0].correct, true);
    EXPECT_EQ(h.samples[1].correct, std::nullopt);
  }
}

TEST(Metrics, BytesOfAModelThatAreNotUtf8StillMakeAReadableLine) {
  const TempDir folder;
  MetricsLog log(options_for(folder));
  log.write(SampleMetrics{1, "t", "\xff\n\"", "a\x01\xc3", {}, ""});
  const RunHistory h = read_metrics(folder.path());
  ASSERT_EQ(h.samples.size(), 1u);
  EXPECT_EQ(h.samples[0].prompt, "\xef\xbf\xbd\n\"");
}

TEST(Metrics, ANewRunDoesNotMixWithAnOldOne) {
  const TempDir folder;
  { MetricsLog(options_for(folder)).write(step_of(1)); }
  EXPECT_EQ(
      error_of([&] { MetricsLog log(options_for(folder)); }),
      (folder / "metrics.jsonl").string() +
          ": holds a run already, expected none (resume it, or choose another checkpoint.folder)");
  EXPECT_EQ(steps_of(read_metrics(folder.path())), std::vector<int64_t>{1});
}

TEST(Metrics, AFolderThatIsNotThereIsRefused) {
  MetricsOptions options;
  options.folder = "/nonexistent/run";
  EXPECT_EQ(error_of([&] { MetricsLog log(options); }, ExitCode::kNoResources),
            "/nonexistent/run/metrics.jsonl: cannot open: No such file or directory");
  EXPECT_EQ(error_of([&] { read_metrics("/nonexistent/run"); }),
            "/nonexistent/run: cannot open: No such file or directory");
}

TEST(Metrics, AResumeCutsOffWhatComesAfterItsStep) {
  const TempDir folder;
  {
    MetricsLog log(options_for(folder));
    log.write(RunMetrics{});
    for (int64_t step = 1; step <= 7; ++step) log.write(step_of(step));
    log.write(EvaluationMetrics{7, 1, 1, {}});
  }
  std::ofstream(folder / "metrics.jsonl", std::ios::app)
      << R"({"kind":"step","step":8,"lo)";  // killed while writing
  {
    MetricsLog log(options_for(folder, 5));
    EXPECT_EQ(steps_of(read_metrics(folder.path())), (std::vector<int64_t>{1, 2, 3, 4, 5}));
    log.write(RunMetrics{});
    for (int64_t step = 6; step <= 8; ++step) log.write(step_of(step));
  }
  { MetricsLog(options_for(folder, 7)).write(step_of(8)); }
  const RunHistory h = read_metrics(folder.path());
  EXPECT_EQ(steps_of(h), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8}));
  EXPECT_EQ(h.starts.size(), 2u);
  EXPECT_TRUE(h.evaluations.empty());
  EXPECT_EQ(h.unreadable_lines, 0);
  // Each start has an event file of its own; a resumed one tells readers what to forget.
  const auto files = event_files(folder);
  ASSERT_EQ(files.size(), 3u);
  EXPECT_EQ(contents(files[1]).find(event_session_start(1700000000.25, 6)),
            event_file_version(1700000000.25).size());
  EXPECT_EQ(contents(files[0]).find(event_session_start(1700000000.25, 1)), std::string::npos);
}

TEST(Metrics, AResumeOfARunWithoutMetricsBeginsThem) {
  const TempDir folder;
  MetricsLog(options_for(folder, 5)).write(step_of(6));
  EXPECT_EQ(steps_of(read_metrics(folder.path())), std::vector<int64_t>{6});
}

TEST(Metrics, NoEventFileWithoutTensorboard) {
  const TempDir folder;
  MetricsOptions options = options_for(folder);
  options.tensorboard = false;
  MetricsLog(options).write(step_of(1));
  EXPECT_TRUE(event_files(folder).empty());
}

TEST(Metrics, DamagedLinesAreCountedAndLeftOut) {
  const TempDir folder;
  folder.write("metrics.jsonl",
               "{\"kind\":\"step\",\"step\":1,\"loss\":2}\n"
               "garbage\n[]\n\n{\"kind\":\"step\"}\n{\"kind\":\"step\",\"step\":-1}\n{\"kind\":"
               "\"stepp\",\"step\":2}\n{\"step\":2}\n"
               "{\"kind\":\"step\",\"step\":2,\"loss\":\"x\"}\n{\"kind\":\"evaluation\",\"step\":2,"
               "\"tasks\":[1]}\n"
               "{\"kind\":\"evaluation\",\"step\":2,\"tasks\":[{\"pass_at\":[[0,1],[1],1,[1,\"x\"],"
               "[-1,1],[4,0.5]]}]}\n"
               "{\"kind\":\"step\",\"step\":3,\"expert_load\":\"x\",\"time\":5}\n{\"kind\":"
               "\"step\",\"step\":4");
  const RunHistory h = read_metrics(folder.path());
  EXPECT_EQ(steps_of(h), (std::vector<int64_t>{1, 3}));
  EXPECT_EQ(h.unreadable_lines, 9);
  ASSERT_EQ(h.evaluations.size(), 1u);
  EXPECT_EQ(h.evaluations[0].tasks[0].pass_at, (std::vector<std::pair<int64_t, double>>{{4, 0.5}}));
  EXPECT_EQ(h.last_time, 5);
}

// A limit on the size of files stands for a full disk: writes come up short, then fail.
TEST(Metrics, AFullDiskIsSaidOnceAndLeavesWholeLines) {
  const TempDir folder;
  std::vector<std::string> warnings;
  MetricsOptions options = options_for(folder);
  options.warn = [&](const std::string& text) { warnings.push_back(text); };
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  {
    MetricsLog log(options);
    rlimit limit = old_limit;
    limit.rlim_cur = 1000;
    setrlimit(RLIMIT_FSIZE, &limit);
    for (int64_t step = 1; step <= 20; ++step) log.write(step_of(step));
    setrlimit(RLIMIT_FSIZE, &old_limit);
    EXPECT_LE(fs::file_size(folder / "metrics.jsonl"), 1000u);
    log.write(step_of(21));  // there is room again
  }
  std::signal(SIGXFSZ, old_handler);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_EQ(warnings[0], folder.path().string() +
                             ": cannot write the metrics.jsonl: File too large; the training goes "
                             "on, this is said once");
  const RunHistory h = read_metrics(folder.path());
  EXPECT_EQ(h.unreadable_lines, 0);
  const std::vector<int64_t> steps = steps_of(h);
  ASSERT_GE(steps.size(), 3u);
  EXPECT_LT(steps.size(), 21u);
  EXPECT_EQ(steps.back(), 21);
  // The event file too consists of whole records: length and checksums to the end.
  const std::string events = contents(event_files(folder).at(0));
  size_t at = 0;
  while (at < events.size()) {
    ASSERT_LE(at + 16, events.size());
    uint64_t length = 0;
    uint32_t crc = 0;
    std::memcpy(&length, events.data() + at, 8);
    std::memcpy(&crc, events.data() + at + 8, 4);
    ASSERT_EQ(crc, masked_crc32c(events.substr(at, 8)));
    ASSERT_LE(at + 16 + length, events.size());
    std::memcpy(&crc, events.data() + at + 12 + length, 4);
    ASSERT_EQ(crc, masked_crc32c(events.substr(at + 12, length)));
    at += 16 + length;
  }
}

}  // namespace
}  // namespace fathom
