// What `fathom bench` has measured: each line with the roofs seen right before and right after it,
// since other users of a machine take away half of it within minutes. A line's roof is the mean of
// the two. Lines are printed as they are measured (a table, or one JSON object each) and kept for
// the page.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/memory.h"
#include "cli/bench_cost.h"
#include "tensor/context.h"

namespace fathom {

// Of a list of times, by position in the sorted list.
struct Spread {
  double low = 0, median = 0, high = 0;  // 10th, 50th and 90th percentile
};
Spread spread_of(std::vector<double> values);

enum class BenchGroup { kKernels, kLoad, kPrefill, kDecode, kBatch };
std::string_view bench_group_name(BenchGroup group);

struct BenchLine {
  BenchGroup group = BenchGroup::kKernels;
  std::string work;  // "Q4_0 x 512", "prefill 512", "decode", "first"
  int64_t context = 0, sequences = 1;
  double tokens = 1;  // of one run; load: runs to the first token
  Cost cost = {};     // of one run
  std::vector<double> run_seconds = {};
  // load only: share of the file before the first run, where that is known
  std::optional<double> in_page_cache = {};

  // Filled by BenchLog.
  Spread seconds = {};
  Roofs before = {}, after = {};

  Roofs roofs() const;  // the mean
  double tokens_per_second() const { return tokens / seconds.median; }
  double limit() const { return tokens / cost.shortest_seconds(roofs()); }
  double share() const { return cost.shortest_seconds(roofs()) / seconds.median; }
  bool memory_bound() const;
};

// How a share can pass 100 %.
inline constexpr std::string_view kOverTheRoof =
    "over 100 %: weights that stay in the CPU's caches, or a machine that was busier while its "
    "roof was measured";

class BenchLog {
 public:
  BenchLog(Context& ctx, bool json) : probe_(ctx), json_(json) {}

  // The best of `rounds` looks at each roof.
  Roofs probe(int rounds);

  // A title above the lines that follow, and the heads of their columns.
  void head(const std::string& title, bool kernels);
  // Probes the roofs, unless that was done a moment ago. Call before the runs of a line.
  void start();
  // Probes again, prints the line.
  const BenchLine& add(BenchLine line);
  const std::vector<BenchLine>& lines() const { return lines_; }
  // The most seen right behind a line (the probe's own memory never counts).
  const ResidentMemory& peak() const { return peak_; }
  void forget_peak() { peak_ = {}; }
  bool json() const { return json_; }

 private:
  RoofProbe probe_;
  bool json_;
  std::vector<BenchLine> lines_;
  ResidentMemory peak_;
  Roofs last_;
  double last_time_ = -1;
};

}  // namespace fathom
