// The curves of a report, and what its tables ask of a run.
#pragma once

#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "train/metrics.h"

namespace fathom {

struct ReportRun {
  std::string name;
  RunHistory history;
};

using Points = std::vector<std::pair<double, double>>;  // step, value

std::string run_color(size_t index);  // CSS
Points step_points(const RunHistory& history,
                   const std::function<double(const StepMetrics&)>& value);
double training_loss(
    const StepMetrics& step);  // the cross-entropy, or the loss where only that was recorded

// Means of the neighbourhood on both sides, weights falling by a factor e every `window` points.
Points smoothed(Points points, double window);
double smoothing_window(const std::vector<ReportRun>& runs);

const TaskScore* score_of(const EvaluationMetrics& evaluation,
                          const std::string& task);  // nullptr: not evaluated
double pass_at(const TaskScore& score, int64_t k);
std::set<std::string> tasks_of(const std::vector<ReportRun>& runs);
std::set<int64_t> ks_of(const std::vector<ReportRun>& runs, const std::string& task);

// All charts, as HTML; empty if nothing was recorded.
std::string report_curves(const std::vector<ReportRun>& runs);

}  // namespace fathom
