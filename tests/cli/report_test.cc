// The report: a page that holds together whatever is in the files, loads nothing, and whose numbers
// are those of the runs.
#include "cli/report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "base/file.h"
#include "cli/report_curves.h"
#include "cli/svg_chart.h"
#include "tests/base/test_files.h"
#include "train/metrics.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

const std::string kHostile = "<script>alert('1')</script>\"&\x1b[31m\xff\x01 end";

// A run of `steps` steps whose loss falls to about `loss`, in folder/name.
fs::path write_run(const TempDir& folder, std::string_view name, int64_t steps, double loss,
                   const std::string& text = "plain") {
  const fs::path path = folder / name;
  fs::create_directories(path);
  MetricsOptions options;
  options.folder = path;
  options.tensorboard = false;
  options.wall_time = [] { return 1700000000.0; };
  MetricsLog log(options);
  log.write(RunMetrics{text, text, text, text, text, text, 2, 1000, 500, 1e12, steps, text});
  for (int64_t i = 1; i <= steps; ++i) {
    StepMetrics m;
    m.step = i;
    m.tokens = 100 * i;
    m.cross_entropy = loss + 3.0 / static_cast<double>(i);
    m.lr = 1e-3;
    m.gradient_norm = i == 3 ? kNoNumber : 1.5;
    m.seconds = 2;
    m.tokens_per_second = 50;
    m.flops_per_second = 5e11;
    m.memory_bytes = 1 << 20;
    m.expert_load = {1.1, 1.2};
    log.write(m);
  }
  log.write(EvaluationMetrics{
      steps,
      loss,
      loss,
      {{text, 100, 16, loss / 10, 1.0, {{1, loss / 20}, {4, loss / 15}, {16, loss / 5}}}}});
  log.write(SampleMetrics{steps, text, text, text, false, text});
  return path;
}

std::string report_of(std::vector<fs::path> runs) { return render_report(runs); }

// Every element closed by its own end tag, in order.
void expect_balanced(std::string_view page) {
  const std::set<std::string, std::less<>> kVoid = {"meta", "!doctype"};
  std::vector<std::string> open;
  for (size_t at = page.find('<'); at != page.npos; at = page.find('<', at + 1)) {
    const bool end = page[at + 1] == '/';
    const size_t begin = at + 1 + (end ? 1 : 0);
    const std::string name(page.substr(begin, page.find_first_of(" >/", begin) - begin));
    const size_t close = page.find('>', at);
    ASSERT_NE(close, page.npos);
    if (end) {
      ASSERT_FALSE(open.empty()) << name;
      ASSERT_EQ(open.back(), name) << page.substr(at > 200 ? at - 200 : 0, 400);
      open.pop_back();
    } else if (page[close - 1] != '/' && !kVoid.contains(name)) {
      open.push_back(name);
    }
  }
  EXPECT_TRUE(open.empty()) << open.back();
}

TEST(Report, HoldsTogetherWhateverTheFilesHold) {
  const TempDir folder;
  const fs::path hostile = write_run(folder, "<b>&\"run'", 20, 2, kHostile),
                 plain = write_run(folder, "b", 20, 2);
  for (const auto& runs :
       {std::vector{hostile}, std::vector{hostile, plain}, std::vector{plain, hostile}}) {
    const std::string page = report_of(runs);
    expect_balanced(page);
    EXPECT_EQ(page.find("<script"), page.npos);
    EXPECT_EQ(page.find("<b>&"), page.npos);
    EXPECT_EQ(page.find('\x1b'), page.npos);
    EXPECT_NE(
        page.find("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;[31m\xef\xbf\xbd end"),
        page.npos);
  }
}

TEST(Report, LoadsNothing) {
  const TempDir folder;
  const std::string page = report_of({write_run(folder, "a", 20, 2)});
  for (const char* reference :
       {"http:", "https:", "src=", "href=", "url(", "@import", "<link", "<script", "javascript:"}) {
    EXPECT_EQ(page.find(reference), page.npos) << reference;
  }
  EXPECT_NE(page.find("default-src 'none'"), page.npos);
  EXPECT_NE(page.find("prefers-color-scheme:dark"), page.npos);
  EXPECT_NE(page.find("width=device-width"), page.npos);
}

TEST(Report, ShowsTheNumbersOfItsRuns) {
  const TempDir folder;
  const std::string page = report_of({write_run(folder, "a", 10, 2)});
  for (const char* text :
       {"<dt>steps</dt><dd>10</dd>", "<dt>tokens</dt><dd>1 k</dd>",
        "<dt>validation loss</dt><dd>2</dd>", "<dt>plain greedy</dt><dd>20.0 %</dd>",
        "<dt>plain pass@16</dt><dd>40.0 %</dd>", "<dt>of the roof</dt><dd>50.0 %</dd>",
        "<dt>time in steps</dt><dd>20.0 s</dd>", "<dt>memory</dt><dd>1.0 MiB</dd>",
        "Expert load of each layer", "Gradient norm", "Learning rate", "2023-11-14 22:13 UTC"}) {
    EXPECT_NE(page.find(text), page.npos) << text;
  }
}

TEST(Report, SeveralRunsShowMeanAndSpread) {
  const TempDir folder;
  const std::string page = report_of({write_run(folder, "a", 10, 1), write_run(folder, "b", 10, 2),
                                      write_run(folder, "c", 10, 3)});
  // Scores 10, 20 and 30 %: mean 20, sample deviation 10.
  EXPECT_NE(page.find("<td class=\"mean\">20.0 ± 10.0 %</td>"), page.npos);
  EXPECT_NE(
      page.find(
          "<th>validation loss</th><td>1</td><td>2</td><td>3</td><td class=\"mean\">2 ± 1</td>"),
      page.npos);
  EXPECT_NE(page.find("Expert load, worst layer"), page.npos);
  EXPECT_NE(page.find("dashed: pass@1, dotted: pass@16"), page.npos);
}

TEST(Report, RunsOfOneNameAreToldApart) {
  const TempDir folder;
  write_run(folder, "x/run", 3, 1);
  write_run(folder, "y/run", 3, 1);
  const std::string page = report_of({folder / "x/run", folder / "y/run/metrics.jsonl"});
  EXPECT_NE(page.find("<h1>run, run (2)</h1>"), page.npos);
}

TEST(Report, ARunThatHasJustBegunHasAPageToo) {
  const TempDir folder;
  folder.write("metrics.jsonl", "");
  const std::string page = report_of({folder.path()});
  expect_balanced(page);
  EXPECT_NE(page.find("No step has been recorded yet."), page.npos);
  expect_balanced(report_of({folder.path(), write_run(folder, "a", 1, 1)}));
}

TEST(Report, ALongRunStillMakesASmallPage) {
  const TempDir folder;
  const std::string page = report_of({write_run(folder, "long", 20000, 1)});
  EXPECT_LT(page.size(), 200'000u);
}

TEST(Report, ARunWithoutMetricsIsRefused) {
  const TempDir folder;
  EXPECT_EQ(error_of([&] { report_of({folder.path()}); }),
            (folder / "metrics.jsonl").string() + ": cannot open: No such file or directory");
}

TEST(Report, IsWrittenBesideItsRun) {
  const TempDir folder;
  ReportOptions options;
  options.runs = {write_run(folder, "a", 3, 1).string()};
  testing::internal::CaptureStdout();
  EXPECT_EQ(run_report(options), 0);
  EXPECT_EQ(testing::internal::GetCapturedStdout(), (folder / "a/report.html").string() + "\n");
  EXPECT_EQ(read_file(folder / "a/report.html", 1 << 20), report_of({folder / "a"}));
}

TEST(Smoothing, KeepsConstantsSkipsGapsAndIsSymmetric) {
  Points points;
  for (int i = 0; i < 9; ++i) points.emplace_back(i, i == 4 ? 1.0 : 0.0);
  const Points smooth = smoothed(points, 2);
  for (int i = 0; i < 9; ++i)
    EXPECT_NEAR(smooth[static_cast<size_t>(i)].second, smooth[static_cast<size_t>(8 - i)].second,
                1e-12);
  EXPECT_GT(smooth[4].second, smooth[3].second);
  for (auto& [x, y] : points) y = 3;
  points[2].second = kNoNumber;
  for (const auto& [x, y] : smoothed(points, 2))
    EXPECT_TRUE(x == 2 ? std::isnan(y) : std::abs(y - 3) < 1e-12) << x << " " << y;
}

TEST(Chart, TicksAreRoundAndInside) {
  EXPECT_EQ(linear_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(linear_ticks(-1, 1, 4), (std::vector<double>{-1, -0.5, 0, 0.5, 1}));
  EXPECT_EQ(log_ticks(1, 1000), (std::vector<double>{1, 10, 100, 1000}));
  EXPECT_EQ(log_ticks(0.9, 6), (std::vector<double>{1, 2, 3, 4, 5}));
  for (const auto& [low, high] :
       {std::pair{1e-9, 1e9}, {1.0, 1.0000001}, {0.3, 0.31}, {1e-300, 1e300}, {5e5, 5.1e5}}) {
    for (const auto& ticks : {linear_ticks(low, high, 5), log_ticks(low, high)}) {
      EXPECT_LE(ticks.size(), 22u) << low << " " << high;
      for (const double tick : ticks)
        EXPECT_TRUE(tick >= low - (high - low) * 1e-6 && tick <= high + (high - low) * 1e-6)
            << tick;
    }
  }
}

TEST(Chart, ShortNumbers) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(0.0002), "0.0002");
  EXPECT_EQ(short_number(0.00002), "2e-05");
  EXPECT_EQ(short_number(999.7), "1 k");
  EXPECT_EQ(short_number(1905), "1.91 k");
  EXPECT_EQ(short_number(-31e6), "-31 M");
  EXPECT_EQ(short_number(1e30), "1e+30");
}

TEST(Chart, GapsAndLonelyPointsAreDrawnWithoutNaN) {
  Chart chart;
  chart.series.push_back({"a", "red", {{1, kNoNumber}, {2, 5}, {3, HUGE_VAL}}, {}, false, false});
  std::string svg = render_chart(chart);
  expect_balanced(svg);
  EXPECT_EQ(svg.find("nan"), svg.npos);
  EXPECT_EQ(svg.find("inf"), svg.npos);
  EXPECT_NE(svg.find("<circle"), svg.npos);  // a line of one point would not be seen
  chart.log_scale = true;
  chart.series[0].points = {{1, 0}, {2, -1}};
  EXPECT_EQ(render_chart(chart), "");
  EXPECT_EQ(render_chart({}), "");
  for (const double value : {0.0, -3.0, 1e-320, 1e300}) {
    Chart flat;
    flat.series.push_back({"a", "red", {{0, value}, {1, value}}, {}, false, true});
    flat.series.push_back({"b", "red", {{0, value}, {1, value}}, {}, false, false});
    svg = render_chart(flat);
    EXPECT_EQ(svg.find("nan"), svg.npos) << value;
    EXPECT_EQ(svg.find("inf"), svg.npos) << value;
  }
}

}  // namespace
}  // namespace fathom
