#include "train/metrics.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "formats/json.h"
#include "train/event_file.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr uint64_t kMaxLineBytes = 16u << 20;
constexpr uint64_t kMaxLineNodes = 1'000'000;

// JSON has no NaN and no infinity.
Json number_or_null(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

std::string line_of(const Json& object) {
  return object.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

Json begin_line(std::string_view kind, double time) {
  Json line;
  line["kind"] = kind;
  line["time"] = std::round(time * 1000) / 1000;
  return line;
}

// Calls see(begin, end, line) for each whole line; a last one without its end is not whole.
template <class See>
void for_each_line(std::string_view text, See see) {
  size_t begin = 0;
  for (size_t end = text.find('\n'); end != text.npos; end = text.find('\n', begin)) {
    if (!see(begin, end + 1, text.substr(begin, end - begin))) return;
    begin = end + 1;
  }
}

// Absent if it is no JSON object.
std::optional<nlohmann::json> parse_line(std::string_view line) {
  if (line.size() > kMaxLineBytes) return std::nullopt;
  try {
    nlohmann::json object = parse_json(line, "", kMaxLineNodes);
    return object.is_object() ? std::optional(std::move(object)) : std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

std::string_view text_of(const MappedFile& file) {
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

// Where to cut so that no line is past `step`. Lines are in the order of steps; a line that cannot
// be read belongs to those before it.
uint64_t size_up_to(const fs::path& path, int64_t step) {
  const MappedFile file(path);
  uint64_t size = 0;
  for_each_line(text_of(file), [&](size_t, size_t end, std::string_view text) {
    const auto line = parse_line(text);
    if (line && line->contains("step")) {
      const nlohmann::json& value = (*line)["step"];
      if (value.is_number_integer() && value > step) return false;
    }
    size = end;
    return true;
  });
  return size;
}

int open_new_event_file(const fs::path& folder, double now) {
  // TensorBoard reads the files of a folder in the order of their names.
  for (int attempt = 0;; ++attempt) {
    const std::string name = fmt::format("events.out.tfevents.{:010d}.fathom.{}.{}",
                                         static_cast<int64_t>(now), ::getpid(), attempt);
    const int fd =
        ::open((folder / name).c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0644);
    if (fd >= 0) return fd;
    if (errno != EEXIST || attempt == 1000)
      fail_resource("{}: cannot create: {}", (folder / name).string(), std::strerror(errno));
  }
}

double system_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

MetricsLog::MetricsLog(MetricsOptions options) : options_(std::move(options)) {
  const fs::path path = options_.folder / kMetricsFile;
  std::error_code error;
  const uintmax_t old_size = fs::file_size(path, error);
  const bool has_old = !error && old_size > 0;
  if (options_.resumed_step) {
    if (has_old) jsonl_size_ = size_up_to(path, *options_.resumed_step);
  } else if (has_old) {
    fail("{}: holds a run already, expected none (resume it, or choose another checkpoint.folder)",
         path.string());
  }
  jsonl_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (jsonl_ < 0) fail_resource("{}: cannot open: {}", path.string(), std::strerror(errno));
  try {
    if (::ftruncate(jsonl_, static_cast<off_t>(jsonl_size_)) != 0) {
      fail_resource("{}: cannot cut off: {}", path.string(), std::strerror(errno));
    }
    if (!options_.tensorboard) return;
    events_ = open_new_event_file(options_.folder, now());
  } catch (...) {
    ::close(jsonl_);
    throw;
  }
  append(events_, events_size_, event_file_version(now()), "event file");
  if (options_.resumed_step) {
    append(events_, events_size_, event_session_start(now(), *options_.resumed_step + 1),
           "event file");
  }
}

MetricsLog::~MetricsLog() {
  if (jsonl_ >= 0) ::close(jsonl_);
  if (events_ >= 0) ::close(events_);
}

double MetricsLog::now() const { return options_.wall_time ? options_.wall_time() : system_time(); }

void MetricsLog::append(int fd, uint64_t& size, std::string_view bytes, std::string_view what) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t n = ::write(fd, bytes.data() + done, bytes.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<size_t>(n);
  }
  if (done == bytes.size()) {
    size += bytes.size();
    return;
  }
  const int error = errno;
  // Half a record would make the next one unreadable too.
  const bool taken_back = done == 0 || ::ftruncate(fd, static_cast<off_t>(size)) == 0;
  if (!taken_back) size += done;
  if (warned_) return;
  warned_ = true;
  if (options_.warn) {
    options_.warn(
        fmt::format("{}: cannot write the {}: {}; the training goes on, this is said once",
                    options_.folder.string(), what, std::strerror(error)));
  }
}

void MetricsLog::append_events(int64_t step, const Scalars& scalars) {
  if (events_ >= 0 && !scalars.empty())
    append(events_, events_size_, event_scalars(now(), step, scalars), "event file");
}

void MetricsLog::write(const RunMetrics& run) {
  Json line = begin_line("run", now());
  if (options_.resumed_step) line["step"] = *options_.resumed_step;
  line["name"] = run.name;
  line["stage"] = run.stage;
  line["command"] = run.command;
  line["version"] = run.version;
  line["machine"] = run.machine;
  line["threads"] = run.threads;
  line["precision"] = run.precision;
  line["parameters"] = run.parameters;
  line["active_parameters"] = run.active_parameters;
  line["roof_flops"] = number_or_null(run.roof_flops);
  line["steps"] = run.steps;
  line["recipe"] = run.recipe;
  append(jsonl_, jsonl_size_, line_of(line), kMetricsFile);
}

void MetricsLog::write(const StepMetrics& step) {
  Json line = begin_line("step", now());
  line["step"] = step.step;
  line["tokens"] = step.tokens;
  const std::pair<const char*, double> kNumbers[] = {{"loss", step.loss},
                                                     {"cross_entropy", step.cross_entropy},
                                                     {"mtp_cross_entropy", step.mtp_cross_entropy},
                                                     {"balance_loss", step.balance_loss},
                                                     {"lr", step.lr},
                                                     {"gradient_norm", step.gradient_norm},
                                                     {"seconds", step.seconds},
                                                     {"tokens_per_second", step.tokens_per_second},
                                                     {"flops_per_second", step.flops_per_second}};
  Scalars scalars;
  for (const auto& [name, value] : kNumbers) {
    line[name] = number_or_null(value);
    if (std::isfinite(value)) scalars.emplace_back(fmt::format("train/{}", name), value);
  }
  if (step.skipped) line["skipped"] = true;
  line["memory_bytes"] = step.memory_bytes;
  if (step.memory_bytes > 0)
    scalars.emplace_back("train/memory_bytes", static_cast<double>(step.memory_bytes));
  if (!step.expert_load.empty()) {
    Json loads = Json::array();
    for (size_t i = 0; i < step.expert_load.size(); ++i) {
      loads.push_back(number_or_null(step.expert_load[i]));
      if (std::isfinite(step.expert_load[i])) {
        scalars.emplace_back(fmt::format("expert_load/layer_{:02d}", i), step.expert_load[i]);
      }
    }
    line["expert_load"] = std::move(loads);
  }
  append(jsonl_, jsonl_size_, line_of(line), kMetricsFile);
  append_events(step.step, scalars);
}

void MetricsLog::write(const EvaluationMetrics& evaluation) {
  Json line = begin_line("evaluation", now());
  line["step"] = evaluation.step;
  line["validation_loss"] = number_or_null(evaluation.validation_loss);
  line["bits_per_byte"] = number_or_null(evaluation.bits_per_byte);
  Scalars scalars;
  const auto add = [&](std::string tag, double value) {
    if (std::isfinite(value)) scalars.emplace_back(std::move(tag), value);
  };
  add("validation/loss", evaluation.validation_loss);
  add("validation/bits_per_byte", evaluation.bits_per_byte);
  Json tasks = Json::array();
  for (const TaskScore& score : evaluation.tasks) {
    Json pass_at = Json::array();
    add(fmt::format("{}/greedy", score.task), score.greedy);
    for (const auto& [k, share] : score.pass_at) {
      pass_at.push_back({k, number_or_null(share)});
      add(fmt::format("{}/pass_at_{}", score.task, k), share);
    }
    tasks.push_back({{"task", score.task},
                     {"problems", score.problems},
                     {"samples", score.samples},
                     {"greedy", number_or_null(score.greedy)},
                     {"temperature", number_or_null(score.temperature)},
                     {"pass_at", std::move(pass_at)}});
  }
  line["tasks"] = std::move(tasks);
  append(jsonl_, jsonl_size_, line_of(line), kMetricsFile);
  append_events(evaluation.step, scalars);
}

void MetricsLog::write(const SampleMetrics& sample) {
  Json line = begin_line("sample", now());
  line["step"] = sample.step;
  line["task"] = sample.task;
  line["prompt"] = sample.prompt;
  line["completion"] = sample.completion;
  line["correct"] = sample.correct ? Json(*sample.correct) : Json(nullptr);
  line["verdict"] = sample.verdict;
  append(jsonl_, jsonl_size_, line_of(line), kMetricsFile);
}

namespace {

constexpr int64_t kAnyCount = std::numeric_limits<int64_t>::max();

double number_of(const JsonObject& line, std::string_view key) {
  return line.optional_number(key).value_or(kNoNumber);
}
int64_t count_of(const JsonObject& line, std::string_view key) {
  return line.optional_integer(key, 0, kAnyCount).value_or(0);
}
std::string string_of(const JsonObject& line, std::string_view key) {
  return line.optional_string(key).value_or("");
}

RunMetrics read_run(const JsonObject& line) {
  RunMetrics run;
  run.name = string_of(line, "name");
  run.stage = string_of(line, "stage");
  run.command = string_of(line, "command");
  run.version = string_of(line, "version");
  run.machine = string_of(line, "machine");
  run.precision = string_of(line, "precision");
  run.threads = static_cast<int>(line.optional_integer("threads", 0, 1 << 20).value_or(0));
  run.parameters = count_of(line, "parameters");
  run.active_parameters = count_of(line, "active_parameters");
  run.roof_flops = line.optional_number("roof_flops").value_or(0);
  run.steps = count_of(line, "steps");
  run.recipe = string_of(line, "recipe");
  return run;
}

StepMetrics read_step(const JsonObject& line) {
  StepMetrics step;
  step.step = line.integer("step", 0, kAnyCount);
  step.tokens = count_of(line, "tokens");
  step.loss = number_of(line, "loss");
  step.cross_entropy = number_of(line, "cross_entropy");
  step.mtp_cross_entropy = number_of(line, "mtp_cross_entropy");
  step.balance_loss = number_of(line, "balance_loss");
  step.lr = number_of(line, "lr");
  step.gradient_norm = number_of(line, "gradient_norm");
  step.skipped = line.optional_boolean("skipped").value_or(false);
  step.seconds = number_of(line, "seconds");
  step.tokens_per_second = number_of(line, "tokens_per_second");
  step.flops_per_second = number_of(line, "flops_per_second");
  step.memory_bytes = static_cast<uint64_t>(count_of(line, "memory_bytes"));
  if (line.has("expert_load")) {
    for (const auto& value : line.value("expert_load")) {
      step.expert_load.push_back(value.is_number() ? value.get<double>() : kNoNumber);
    }
  }
  return step;
}

EvaluationMetrics read_evaluation(const JsonObject& line) {
  EvaluationMetrics evaluation;
  evaluation.step = line.integer("step", 0, kAnyCount);
  evaluation.validation_loss = number_of(line, "validation_loss");
  evaluation.bits_per_byte = number_of(line, "bits_per_byte");
  if (!line.has("tasks")) return evaluation;
  for (const auto& value : line.value("tasks")) {
    const JsonObject task(value, "task");
    TaskScore score;
    score.task = string_of(task, "task");
    score.problems = count_of(task, "problems");
    score.samples = count_of(task, "samples");
    score.greedy = number_of(task, "greedy");
    score.temperature = number_of(task, "temperature");
    if (task.has("pass_at")) {
      for (const auto& pair : task.value("pass_at")) {
        if (pair.is_array() && pair.size() == 2 && pair[0].is_number_integer() && pair[0] >= 1 &&
            pair[0] <= 1'000'000 && pair[1].is_number()) {
          score.pass_at.emplace_back(pair[0].get<int64_t>(), pair[1].get<double>());
        }
      }
    }
    evaluation.tasks.push_back(std::move(score));
  }
  return evaluation;
}

SampleMetrics read_sample(const JsonObject& line) {
  SampleMetrics sample;
  sample.step = line.integer("step", 0, kAnyCount);
  sample.task = string_of(line, "task");
  sample.prompt = string_of(line, "prompt");
  sample.completion = string_of(line, "completion");
  sample.correct = line.optional_boolean("correct");
  sample.verdict = string_of(line, "verdict");
  return sample;
}

void read_line(const nlohmann::json& object, RunHistory& history) {
  const JsonObject line(object, "line");
  const std::string kind = line.string("kind");
  if (kind == "run") {
    history.starts.push_back(read_run(line));
  } else if (kind == "step") {
    history.steps.push_back(read_step(line));
  } else if (kind == "evaluation") {
    history.evaluations.push_back(read_evaluation(line));
  } else if (kind == "sample") {
    history.samples.push_back(read_sample(line));
  } else {
    fail("kind");
  }
  const double time = number_of(line, "time");
  if (std::isnan(history.first_time)) history.first_time = time;
  if (!std::isnan(time)) history.last_time = time;
}

}  // namespace

RunHistory read_metrics(const fs::path& path) {
  std::error_code error;
  const MappedFile file(fs::is_directory(path, error) ? path / kMetricsFile : path);
  RunHistory history;
  for_each_line(text_of(file), [&](size_t, size_t, std::string_view text) {
    const auto object = parse_line(text);
    try {
      if (!object) fail("not an object");
      read_line(*object, history);
    } catch (const Error&) {
      ++history.unreadable_lines;
    }
    return true;
  });
  return history;
}

}  // namespace fathom
