#include "cli/bench_lines.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/clock.h"
#include "cli/output.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kRounds = 3;  // of a probe beside a line
// A probe older than this is no longer "right before".
constexpr double kFreshSeconds = 0.1;

Json roofs_json(const Roofs& roofs) {
  return {{"f32_flops", roofs.f32_flops},
          {"bf16_flops", roofs.bf16_flops},
          {"int8_ops", roofs.int8_ops},
          {"read_bytes_per_second", roofs.read_bytes}};
}

void print_line_json(const BenchLine& line) {
  Json object = {{"group", bench_group_name(line.group)}, {"work", line.work}};
  if (line.group == BenchGroup::kLoad) {
    object["share_in_page_cache_before"] = line.in_page_cache ? Json(*line.in_page_cache) : Json();
  } else {
    if (line.group != BenchGroup::kKernels) {
      object["context"] = line.context;
      object["sequences"] = line.sequences;
    }
    object["tokens"] = line.tokens;
    object["tokens_per_second"] = line.tokens_per_second();
    object["limit_tokens_per_second"] = line.limit();
  }
  object["seconds"] = {{"median", line.seconds.median},
                       {"p10", line.seconds.low},
                       {"p90", line.seconds.high},
                       {"runs", line.run_seconds.size()}};
  object["gflops"] = line.cost.arithmetic() / line.seconds.median / 1e9;
  object["gbytes_per_second"] = line.cost.bytes / line.seconds.median / 1e9;
  object["share_of_roof"] = line.share();
  object["bound_by"] = line.memory_bound() ? "memory" : "arithmetic";
  object["roofs_before"] = roofs_json(line.before);
  object["roofs_after"] = roofs_json(line.after);
  print_json(object);
}

void print_line_text(const BenchLine& line) {
  const Spread& s = line.seconds;
  if (line.group == BenchGroup::kLoad) {
    out("  load, {:<6}  {:.3f} s to the first token; {:.2f} GB at {:.1f} GB/s; {} of the files "
        "were in memory before   {:3.0f} %\n",
        line.work, s.median, line.cost.bytes / 1e9, line.cost.bytes / s.median / 1e9,
        line.in_page_cache ? fmt::format("{:.0f} %", 100 * *line.in_page_cache)
                           : "an unknown share",
        100 * line.share());
    return;
  }
  const std::string where = line.group == BenchGroup::kKernels ? "" : std::to_string(line.context);
  out("  {:<14} {:>7}  {:>9.1f}  {:>8.1f} - {:<8.1f} {:>9.1f} {:>8.1f} {:>6.1f}   {:3.0f} % {}\n",
      line.work, where, line.tokens_per_second(), line.tokens / s.high, line.tokens / s.low,
      line.limit(), line.cost.arithmetic() / s.median / 1e9, line.cost.bytes / s.median / 1e9,
      100 * line.share(), line.memory_bound() ? "memory" : "arithmetic");
}

}  // namespace

Spread spread_of(std::vector<double> values) {
  FATHOM_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const auto at = [&](double share) {
    return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
  };
  return {at(0.1), at(0.5), at(0.9)};
}

std::string_view bench_group_name(BenchGroup group) {
  switch (group) {
    case BenchGroup::kKernels:
      return "kernels";
    case BenchGroup::kLoad:
      return "load";
    case BenchGroup::kPrefill:
      return "prefill";
    case BenchGroup::kDecode:
      return "decode";
    case BenchGroup::kBatch:
      return "batch";
  }
  return "";
}

Roofs BenchLine::roofs() const {
  return {(before.f32_flops + after.f32_flops) / 2, (before.bf16_flops + after.bf16_flops) / 2,
          (before.int8_ops + after.int8_ops) / 2, (before.read_bytes + after.read_bytes) / 2};
}

bool BenchLine::memory_bound() const {
  return cost.memory_seconds(roofs()) > cost.arithmetic_seconds(roofs());
}

Roofs BenchLog::probe(int rounds) {
  Roofs best;
  for (int i = 0; i < rounds; ++i) {
    best.f32_flops = std::max(best.f32_flops, probe_.f32_flops());
    best.bf16_flops = std::max(best.bf16_flops, probe_.bf16_flops());
    best.int8_ops = std::max(best.int8_ops, probe_.int8_ops());
    best.read_bytes = std::max(best.read_bytes, probe_.read_bytes());
  }
  last_ = best;
  last_time_ = seconds_now();
  return best;
}

void BenchLog::start() {
  if (last_time_ < 0 || seconds_now() - last_time_ > kFreshSeconds) probe(kRounds);
}

const BenchLine& BenchLog::add(BenchLine line) {
  FATHOM_CHECK(last_time_ >= 0);
  ResidentMemory memory = resident_memory();
  memory.anonymous -= std::min<uint64_t>(memory.anonymous, probe_.memory_bytes());
  peak_.anonymous = std::max(peak_.anonymous, memory.anonymous);
  peak_.file = std::max(peak_.file, memory.file);
  line.seconds = spread_of(line.run_seconds);
  line.before = last_;
  line.after = probe(kRounds);
  lines_.push_back(std::move(line));
  if (json_)
    print_line_json(lines_.back());
  else
    print_line_text(lines_.back());
  return lines_.back();
}

void BenchLog::head(const std::string& title, bool kernels) {
  if (json_) return;
  out("\n{}\n\n  {:<14} {:>7}  {:>9}  {:>19} {:>9} {:>8} {:>6}   roof\n", title, "",
      kernels ? "" : "context", kernels ? "rows/s" : "tok/s", "10 - 90 %     ", "limit", "GFLOP/s",
      "GB/s");
}

}  // namespace fathom
