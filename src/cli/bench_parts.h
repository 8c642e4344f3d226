// The parts of `fathom bench`.
#pragma once

#include <filesystem>
#include <optional>

#include "base/memory.h"
#include "cli/bench.h"
#include "cli/bench_lines.h"
#include "cli/interrupt.h"
#include "cli/models.h"

namespace fathom {

void bench_kernels(Context& ctx, BenchLog& log);

// What the page and the last line say about the model.
struct BenchedModel {
  std::string name;
  uint64_t file_bytes = 0;
  // the cache rows that the line with the most of them had
  uint64_t cache_bytes = 0;
  uint64_t cache_bytes_per_token = 0;
  std::string cache_dtype;
};
BenchedModel bench_model(const BenchOptions& options, const std::filesystem::path& path,
                         Context& ctx, BenchLog& log);

// Share of a model's files that the system holds in memory. Absent where it does not say: of files
// that are another user's and read-only to this one, the kernel calls every page present.
std::optional<double> share_in_page_cache(const Checkpoint& checkpoint);

// Throws (exit code 3) if weights, a cache of `rows` and a step do not fit into what is available
// together. What loading has rebuilt is no longer available anyway.
void expect_room(const MemoryNeeds& needs, int64_t rows, const MemoryState& memory);

// One page that loads nothing: bars of each line's share, tokens per second against context and
// against the number of sequences beside their limits, and the table. `model` may be null.
std::string bench_page(const std::vector<std::string>& facts, const BenchedModel* model,
                       const BenchLog& log);
// The drawings of it as one SVG.
std::string bench_picture(const std::vector<std::string>& facts, const BenchedModel* model,
                          const BenchLog& log);

}  // namespace fathom
