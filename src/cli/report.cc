#include "cli/report.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <functional>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "cli/html_page.h"
#include "cli/report_curves.h"
#include "cli/svg_chart.h"
#include "train/metrics.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

template <class Value>
double last_number(const std::vector<Value>& values,
                   const std::function<double(const Value&)>& of) {
  for (auto v = values.rbegin(); v != values.rend(); ++v) {
    if (const double x = of(*v); std::isfinite(x)) return x;
  }
  return kNoNumber;
}

double median_of(const Points& points) {
  std::vector<double> values;
  for (const auto& [x, y] : points) {
    if (std::isfinite(y)) values.push_back(y);
  }
  if (values.empty()) return kNoNumber;
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

std::string number_text(double value) {
  return std::isfinite(value) ? fmt::format("{:.4g}", value) : "–";
}
std::string percent_text(double value) {
  return std::isfinite(value) ? fmt::format("{:.1f} %", value * 100) : "–";
}

// One number of each run; spread: worth a mean over seeds.
struct Column {
  std::string head;
  std::function<double(const ReportRun&)> value;
  std::string (*text)(double) = number_text;
  bool spread = false;
};

std::vector<Column> columns(const std::vector<ReportRun>& runs) {
  std::vector<Column> all;
  all.push_back({"steps",
                 [](const ReportRun& r) {
                   return r.history.steps.empty()
                              ? 0.0
                              : static_cast<double>(r.history.steps.back().step);
                 },
                 [](double x) { return fmt::format("{:.0f}", x); }});
  all.push_back({"tokens",
                 [](const ReportRun& r) {
                   return r.history.steps.empty()
                              ? 0.0
                              : static_cast<double>(r.history.steps.back().tokens);
                 },
                 short_number});
  all.push_back({"training loss",
                 [&runs](const ReportRun& r) {
                   const Points points =
                       smoothed(step_points(r.history, training_loss), smoothing_window(runs));
                   return last_number<std::pair<double, double>>(
                       points, [](const auto& p) { return p.second; });
                 },
                 number_text, true});
  all.push_back({"validation loss",
                 [](const ReportRun& r) {
                   return last_number<EvaluationMetrics>(
                       r.history.evaluations, [](const auto& e) { return e.validation_loss; });
                 },
                 number_text, true});
  all.push_back({"bits per byte",
                 [](const ReportRun& r) {
                   return last_number<EvaluationMetrics>(
                       r.history.evaluations, [](const auto& e) { return e.bits_per_byte; });
                 },
                 number_text, true});
  for (const std::string& task : tasks_of(runs)) {
    std::vector<int64_t> kinds = {0};
    for (const int64_t k : ks_of(runs, task)) kinds.push_back(k);
    for (const int64_t k : kinds) {
      all.push_back(
          {task + (k == 0 ? " greedy" : fmt::format(" pass@{}", k)),
           [task, k](const ReportRun& r) {
             return last_number<EvaluationMetrics>(r.history.evaluations, [&](const auto& e) {
               const TaskScore* score = score_of(e, task);
               return score == nullptr ? kNoNumber : k == 0 ? score->greedy : pass_at(*score, k);
             });
           },
           percent_text, true});
    }
  }
  all.push_back({"tokens/s",
                 [](const ReportRun& r) {
                   return median_of(step_points(
                       r.history, [](const StepMetrics& s) { return s.tokens_per_second; }));
                 },
                 short_number});
  all.push_back(
      {"of the roof",
       [](const ReportRun& r) {
         const double roof = r.history.starts.empty() ? 0 : r.history.starts.back().roof_flops;
         return roof > 0
                    ? median_of(step_points(
                          r.history, [](const StepMetrics& s) { return s.flops_per_second; })) /
                          roof
                    : kNoNumber;
       },
       percent_text});
  all.push_back({"time in steps",
                 [](const ReportRun& r) {
                   double seconds = 0;
                   for (const StepMetrics& s : r.history.steps)
                     seconds += std::isfinite(s.seconds) ? s.seconds : 0;
                   return seconds;
                 },
                 duration_text});
  all.push_back(
      {"memory",
       [](const ReportRun& r) {
         uint64_t most = 0;
         for (const StepMetrics& s : r.history.steps) most = std::max(most, s.memory_bytes);
         return most > 0 ? static_cast<double>(most) : kNoNumber;
       },
       [](double x) { return std::isfinite(x) ? bytes_text(static_cast<uint64_t>(x)) : "–"; }});
  return all;
}

// "0.694 ± 0.003" of the runs that have this number.
std::string spread_text(const Column& column, const std::vector<ReportRun>& runs) {
  std::vector<double> values;
  for (const ReportRun& run : runs) {
    if (const double x = column.value(run); std::isfinite(x)) values.push_back(x);
  }
  if (values.size() < 2 || !column.spread) return "";
  const auto count = static_cast<double>(values.size());
  double mean = 0, squares = 0;
  for (const double x : values) mean += x / count;
  for (const double x : values) squares += (x - mean) * (x - mean);
  const double deviation = std::sqrt(squares / (count - 1));
  if (column.text == percent_text)
    return fmt::format("{:.1f} ± {:.1f} %", mean * 100, deviation * 100);
  return fmt::format("{:.4g} ± {:.1g}", mean, deviation);
}

// Of a single run.
std::string figures(const std::vector<ReportRun>& runs) {
  std::string out;
  for (const Column& column : columns(runs)) {
    const double value = column.value(runs[0]);
    if (std::isfinite(value))
      out += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>", escape_html(column.head),
                         escape_html(column.text(value)));
  }
  return "<dl>" + out + "</dl>\n";
}

// A row for each number, a column for each run.
std::string summary(const std::vector<ReportRun>& runs) {
  if (runs.size() == 1) return figures(runs);
  std::string head, body;
  for (size_t i = 0; i < runs.size(); ++i) {
    head += fmt::format("<th><i class=\"dot\" style=\"background:{}\"></i>{}</th>", run_color(i),
                        escape_html(runs[i].name));
  }
  head += "<th>mean ± sd</th>";
  for (const Column& column : columns(runs)) {
    const bool any = std::any_of(runs.begin(), runs.end(), [&](const ReportRun& run) {
      return std::isfinite(column.value(run));
    });
    if (!any) continue;
    body += "<tr><th>" + escape_html(column.head) + "</th>";
    for (const ReportRun& run : runs)
      body += "<td>" + escape_html(column.text(column.value(run))) + "</td>";
    body += "<td class=\"mean\">" + spread_text(column, runs) + "</td></tr>\n";
  }
  return fmt::format("<div class=\"wide summary\"><table><tr><th></th>{}</tr>\n{}</table></div>\n",
                     head, body);
}

// Seconds since 1970 as UTC, to the minute.
std::string date_text(double time) {
  if (!(time >= 0 && time < 1e11)) return "–";
  const auto seconds = static_cast<std::time_t>(time);
  std::tm utc{};
  char text[32];
  if (gmtime_r(&seconds, &utc) == nullptr ||
      std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", &utc) == 0)
    return "–";
  return text;
}

std::string samples(const std::vector<ReportRun>& runs) {
  constexpr size_t kMostBytes = 4000;
  const size_t most = runs.size() > 1 ? 4 : 12;  // of each run, the newest first
  std::string out;
  const auto shortened = [](const std::string& text) {
    return escape_html(text.size() > kMostBytes ? text.substr(0, kMostBytes) + " …" : text);
  };
  for (const ReportRun& run : runs) {
    const auto& all = run.history.samples;
    for (size_t i = 0; i < std::min(all.size(), most); ++i) {
      const SampleMetrics& s = all[all.size() - 1 - i];
      const std::string_view mark = !s.correct   ? ""
                                    : *s.correct ? "<b class=\"good\">✓</b> "
                                                 : "<b class=\"bad\">✗</b> ";
      out += fmt::format(
          "<article><h3>{}{}{} · step {}</h3><pre "
          "class=\"prompt\">{}</pre><pre>{}</pre>{}</article>\n",
          mark, runs.size() > 1 ? escape_html(run.name) + " · " : "", escape_html(s.task), s.step,
          shortened(s.prompt), shortened(s.completion),
          s.verdict.empty() ? "" : "<p class=\"note\">" + escape_html(s.verdict) + "</p>");
    }
  }
  return out.empty() ? "" : "<h2>Samples</h2>\n<div class=\"samples\">" + out + "</div>\n";
}

std::string evaluations(const std::vector<ReportRun>& runs) {
  std::string rows;
  for (const ReportRun& run : runs) {
    for (const EvaluationMetrics& e : run.history.evaluations) {
      std::string scores;
      for (const TaskScore& score : e.tasks) {
        scores += fmt::format("{}{}: {} greedy of {}", scores.empty() ? "" : "; ", score.task,
                              percent_text(score.greedy), score.problems);
        for (const auto& [k, share] : score.pass_at)
          scores += fmt::format(", {} pass@{}", percent_text(share), k);
        if (score.samples > 0)
          scores += fmt::format(" ({} samples at temperature {})", score.samples,
                                number_text(score.temperature));
      }
      rows += fmt::format(
          "<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td class=\"text\">{}</td></tr>\n",
          escape_html(run.name), e.step, number_text(e.validation_loss),
          number_text(e.bits_per_byte), escape_html(scores));
    }
  }
  if (rows.empty()) return "";
  return "<details><summary>All evaluations</summary><div "
         "class=\"wide\"><table><tr><th>run</th><th>step</th><th>validation "
         "loss</th><th>bits per byte</th><th class=\"text\">accuracy</th></tr>\n" +
         rows + "</table></div></details>\n";
}

std::string circumstances(const std::vector<ReportRun>& runs) {
  std::string out = "<h2>How it was made</h2>\n";
  for (const ReportRun& run : runs) {
    const RunHistory& h = run.history;
    const RunMetrics start = h.starts.empty() ? RunMetrics{} : h.starts.back();
    std::string rows;
    const auto row = [&](std::string_view name, const std::string& value) {
      if (!value.empty())
        rows +=
            fmt::format("<tr><th>{}</th><td class=\"text\">{}</td></tr>", name, escape_html(value));
    };
    row("stage", start.stage);
    row("command", start.command);
    row("machine", start.machine);
    row("threads", start.threads > 0 ? fmt::format("{}", start.threads) : "");
    row("precision", start.precision);
    row("parameters", start.parameters > 0
                          ? fmt::format("{} ({} active per token)",
                                        count_text(static_cast<double>(start.parameters)),
                                        count_text(static_cast<double>(start.active_parameters)))
                          : "");
    row("version", start.version.empty() ? "" : "fathom " + start.version);
    row("time", fmt::format("{} to {}", date_text(h.first_time), date_text(h.last_time)));
    row("resumed", h.starts.size() > 1 ? fmt::format("{} times", h.starts.size() - 1) : "");
    row("unreadable lines", h.unreadable_lines > 0
                                ? fmt::format("{} of metrics.jsonl, left out", h.unreadable_lines)
                                : "");
    int64_t skipped = 0;
    for (const StepMetrics& s : h.steps) skipped += s.skipped ? 1 : 0;
    row("skipped steps", skipped > 0 ? fmt::format("{} (gradient not finite)", skipped) : "");
    out += fmt::format("<h3>{}</h3><div class=\"wide\"><table class=\"facts\">{}</table></div>\n",
                       escape_html(run.name), rows);
    if (!start.recipe.empty())
      out += fmt::format("<details><summary>Recipe, all values</summary><pre>{}</pre></details>\n",
                         escape_html(start.recipe));
  }
  return out;
}

// A name for people: the folder's, made different where two are alike.
std::string name_of(const fs::path& path, const std::vector<ReportRun>& before) {
  std::error_code error;
  fs::path folder = fs::is_directory(path, error) ? path : path.parent_path();
  folder = fs::weakly_canonical(folder.empty() ? "." : folder, error);
  const std::string name = folder.filename().empty() ? "run" : folder.filename().string();
  const auto taken = [&](const std::string& candidate) {
    return std::any_of(before.begin(), before.end(),
                       [&](const ReportRun& run) { return run.name == candidate; });
  };
  std::string different = name;
  for (int i = 2; taken(different); ++i) different = fmt::format("{} ({})", name, i);
  return different;
}

}  // namespace

std::string render_report(std::span<const fs::path> paths) {
  std::vector<ReportRun> runs;
  for (const fs::path& path : paths) runs.push_back({name_of(path, runs), read_metrics(path)});
  std::string title;
  for (const ReportRun& run : runs) title += (title.empty() ? "" : ", ") + run.name;
  const RunHistory& first = runs.at(0).history;
  const RunMetrics start = first.starts.empty() ? RunMetrics{} : first.starts.back();
  std::string subtitle = start.stage == "sft"        ? "supervised fine-tuning"
                         : start.stage == "pretrain" ? "pre-training"
                                                     : start.stage;
  if (!start.name.empty()) subtitle = start.name + (subtitle.empty() ? "" : " · " + subtitle);
  if (!start.machine.empty()) subtitle += " · " + start.machine;
  const std::string drawn = report_curves(runs);
  return html_page(title, title + " – training report", subtitle,
                   summary(runs) + "<h2>Curves</h2>\n<div class=\"curves\">\n" +
                       (drawn.empty() ? "<p>No step has been recorded yet.</p>" : drawn) +
                       "</div>\n" + evaluations(runs) + samples(runs) + circumstances(runs));
}

int run_report(const ReportOptions& options) {
  const std::vector<fs::path> runs(options.runs.begin(), options.runs.end());
  const std::string page = render_report(runs);
  if (options.out == "-") {
    write_stdout(page);
    return 0;
  }
  fs::path path = options.out;
  if (path.empty()) {
    std::error_code error;
    path = runs.size() > 1                    ? "report.html"
           : fs::is_directory(runs[0], error) ? runs[0] / "report.html"
                                              : runs[0].parent_path() / "report.html";
  }
  write_file_atomically(path, page);
  out("{}\n", path.string());
  return 0;
}

}  // namespace fathom
