#include "cli/report_curves.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "cli/svg_chart.h"

namespace fathom {
namespace {
constexpr int kRunColors = 8;  // --c0 ... --c7 of the style sheet
}  // namespace

std::string run_color(size_t index) { return fmt::format("var(--c{})", index % kRunColors); }

Points step_points(const RunHistory& history,
                   const std::function<double(const StepMetrics&)>& value) {
  Points points;
  for (const StepMetrics& step : history.steps)
    points.emplace_back(static_cast<double>(step.step), value(step));
  return points;
}

double training_loss(const StepMetrics& step) {
  return std::isfinite(step.cross_entropy) ? step.cross_entropy : step.loss;
}

Points smoothed(Points points, double window) {
  const double keep = std::exp(-1 / std::max(window, 1e-9));
  // Forwards with the point itself, backwards without.
  std::vector<std::pair<double, double>> sums(points.size());  // of values, of weights
  double sum = 0, weight = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    sum *= keep, weight *= keep;
    if (std::isfinite(points[i].second)) sum += points[i].second, weight += 1;
    sums[i] = {sum, weight};
  }
  sum = weight = 0;
  for (size_t i = points.size(); i-- > 0;) {
    const double value = points[i].second;
    sum *= keep, weight *= keep;
    if (!std::isfinite(value)) continue;
    points[i].second = (sums[i].first + sum) / (sums[i].second + weight);
    sum += value, weight += 1;
  }
  return points;
}

double smoothing_window(const std::vector<ReportRun>& runs) {
  size_t longest = 0;
  for (const ReportRun& run : runs) longest = std::max(longest, run.history.steps.size());
  return std::max(1.0, std::round(static_cast<double>(longest) / 100));
}

const TaskScore* score_of(const EvaluationMetrics& evaluation, const std::string& task) {
  for (const TaskScore& score : evaluation.tasks) {
    if (score.task == task) return &score;
  }
  return nullptr;
}

double pass_at(const TaskScore& score, int64_t k) {
  for (const auto& [n, share] : score.pass_at) {
    if (n == k) return share;
  }
  return kNoNumber;
}

std::set<std::string> tasks_of(const std::vector<ReportRun>& runs) {
  std::set<std::string> tasks;
  for (const ReportRun& run : runs) {
    for (const auto& e : run.history.evaluations) {
      for (const TaskScore& score : e.tasks) tasks.insert(score.task);
    }
  }
  return tasks;
}

std::set<int64_t> ks_of(const std::vector<ReportRun>& runs, const std::string& task) {
  std::set<int64_t> ks;
  for (const ReportRun& run : runs) {
    for (const auto& e : run.history.evaluations) {
      if (const TaskScore* score = score_of(e, task)) {
        for (const auto& pass : score->pass_at) ks.insert(pass.first);
      }
    }
  }
  return ks;
}

namespace {

using StepValue = std::function<double(const StepMetrics&)>;

Points evaluation_points(const RunHistory& history,
                         const std::function<double(const EvaluationMetrics&)>& value) {
  Points points;
  for (const EvaluationMetrics& e : history.evaluations)
    points.emplace_back(static_cast<double>(e.step), value(e));
  return points;
}

// One curve of each step's value; several runs by colour, a single one also with what smoothing
// hides.
Chart step_chart(const std::vector<ReportRun>& runs, std::string title, const StepValue& value,
                 bool smooth) {
  Chart chart;
  chart.title = std::move(title);
  const double window = smoothing_window(runs);
  for (size_t i = 0; i < runs.size(); ++i) {
    Points points = step_points(runs[i].history, value);
    if (smooth && runs.size() == 1) {
      ChartSeries range;
      range.color = run_color(i);
      range.points = points;
      range.range = true;
      chart.series.push_back(std::move(range));
    }
    ChartSeries series;
    series.name = runs.size() == 1 ? "each step" : runs[i].name;
    if (smooth && runs.size() == 1) series.name = "smoothed";
    series.color = run_color(i);
    series.points = smooth ? smoothed(std::move(points), window) : std::move(points);
    chart.series.push_back(std::move(series));
  }
  if (smooth) chart.note = fmt::format("smoothed over {:.0f} steps", window);
  return chart;
}

std::string loss_chart(const std::vector<ReportRun>& runs) {
  Chart chart = step_chart(runs, "Loss", training_loss, true);
  chart.log_scale = true;
  if (runs.size() == 1) chart.series.back().name = "training";
  bool validated = false;
  for (size_t i = 0; i < runs.size(); ++i) {
    ChartSeries series;
    series.name = runs.size() == 1 ? "validation" : "";
    series.color = runs.size() == 1 ? run_color(1) : run_color(i);
    series.style = runs.size() == 1 ? ChartSeries::Style::kLine : ChartSeries::Style::kDashed;
    series.marks = true;
    series.points = evaluation_points(runs[i].history,
                                      [](const EvaluationMetrics& e) { return e.validation_loss; });
    validated = validated || !series.points.empty();
    chart.series.push_back(std::move(series));
  }
  chart.note = "cross-entropy of the next token in nats; training " + chart.note;
  if (validated && runs.size() > 1) chart.note += ", validation dashed";
  return render_chart(chart);
}

// Layers from blue to red.
std::string layer_color(size_t layer, size_t layers) {
  const double share =
      layers > 1 ? static_cast<double>(layer) / static_cast<double>(layers - 1) : 0;
  return fmt::format("hsl({:.0f} 62% 52%)", 220 - 210 * share);
}

std::string expert_charts(const std::vector<ReportRun>& runs) {
  if (runs.size() > 1) {
    const auto over_layers = [](bool worst) {
      return [worst](const StepMetrics& s) {
        double sum = 0, most = kNoNumber;
        for (const double load : s.expert_load)
          sum += load, most = std::isnan(most) ? load : std::max(most, load);
        return s.expert_load.empty() ? kNoNumber
               : worst               ? most
                                     : sum / static_cast<double>(s.expert_load.size());
      };
    };
    Chart mean = step_chart(runs, "Expert load, mean of the layers", over_layers(false), true);
    Chart worst = step_chart(runs, "Expert load, worst layer", over_layers(true), true);
    mean.lowest = worst.lowest = 1;
    mean.note = worst.note =
        "tokens of the fullest expert over the mean; 1 is perfect balance; " + mean.note;
    return render_chart(mean) + render_chart(worst);
  }
  const RunHistory& history = runs[0].history;
  size_t layers = 0;
  for (const StepMetrics& step : history.steps) layers = std::max(layers, step.expert_load.size());
  Chart chart;
  chart.title = "Expert load of each layer";
  chart.lowest = 1;
  const double window = smoothing_window(runs);
  for (size_t layer = 0; layer < layers; ++layer) {
    ChartSeries series;
    series.name = fmt::format("{}", layer + 1);
    series.color = layer_color(layer, layers);
    series.points = smoothed(
        step_points(history,
                    [layer](const StepMetrics& s) {
                      return layer < s.expert_load.size() ? s.expert_load[layer] : kNoNumber;
                    }),
        window);
    chart.series.push_back(std::move(series));
  }
  chart.note = fmt::format(
      "MoE layers in order; tokens of the fullest expert over the mean; 1 is perfect balance; "
      "smoothed over {:.0f} steps",
      window);
  return render_chart(chart);
}

std::string task_chart(const std::vector<ReportRun>& runs, const std::string& task) {
  std::set<int64_t> ks = ks_of(runs, task);
  if (runs.size() > 1 && ks.size() > 2) ks = {*ks.begin(), *ks.rbegin()};
  Chart chart;
  chart.title = "Accuracy: " + task;
  chart.percent = true;
  chart.lowest = 0;
  constexpr int64_t kGreedy = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    size_t kind = 0;
    std::vector<int64_t> curves = {kGreedy};
    curves.insert(curves.end(), ks.begin(), ks.end());
    for (const int64_t k : curves) {
      ChartSeries series;
      const bool alone = runs.size() == 1;
      series.name = alone       ? (k == kGreedy ? "greedy" : fmt::format("pass@{}", k))
                    : kind == 0 ? runs[i].name
                                : "";
      series.color = run_color(alone ? kind : i);
      if (!alone)
        series.style = kind == 0   ? ChartSeries::Style::kLine
                       : kind == 1 ? ChartSeries::Style::kDashed
                                   : ChartSeries::Style::kDotted;
      series.marks = true;
      series.points = evaluation_points(runs[i].history, [&](const EvaluationMetrics& e) {
        const TaskScore* score = score_of(e, task);
        return score == nullptr ? kNoNumber : k == kGreedy ? score->greedy : pass_at(*score, k);
      });
      chart.series.push_back(std::move(series));
      ++kind;
    }
  }
  if (runs.size() > 1) {
    chart.note = "line: greedy";
    const char* styles[] = {"dashed", "dotted"};
    size_t kind = 0;
    for (const int64_t k : ks) chart.note += fmt::format(", {}: pass@{}", styles[kind++], k);
  }
  return render_chart(chart);
}

}  // namespace

std::string report_curves(const std::vector<ReportRun>& runs) {
  std::string out = loss_chart(runs);
  for (const std::string& task : tasks_of(runs)) out += task_chart(runs, task);
  out += render_chart(step_chart(
      runs, "Learning rate", [](const StepMetrics& s) { return s.lr; }, false));
  Chart norm = step_chart(
      runs, "Gradient norm", [](const StepMetrics& s) { return s.gradient_norm; }, true);
  norm.log_scale = true;
  norm.note = "before clipping; " + norm.note;
  out += render_chart(norm);
  Chart speed = step_chart(
      runs, "Tokens per second", [](const StepMetrics& s) { return s.tokens_per_second; }, true);
  speed.lowest = 0;
  out += render_chart(speed);
  out += expert_charts(runs);
  return out;
}

}  // namespace fathom
