// `fathom report RUN...`: one page of HTML that holds all a run has to show: curves, scores,
// samples, machine, command, recipe. Nothing is loaded from elsewhere and no script runs; several
// runs (seeds) are drawn together.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "cli/output.h"

namespace fathom {

struct ReportOptions {
  OutputOptions output;
  std::vector<std::string> runs;  // folders with metrics.jsonl, or such files; at least one
  std::string out;  // "-" = stdout; empty: report.html in the run's folder, of several runs in the
                    // current one
};

// Writes the page and prints where it is.
int run_report(const ReportOptions& options);

// The page. Throws if a run has no metrics.
std::string render_report(std::span<const std::filesystem::path> runs);

}  // namespace fathom
