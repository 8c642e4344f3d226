// The picture of a bench: bars of shares, curves beside their limits, and the table in full.
#include <algorithm>

#include "cli/bench_parts.h"
#include "cli/html_page.h"
#include "cli/svg_chart.h"

namespace fathom {
namespace {

// Colours that follow the page, or fixed ones where nothing defines them.
struct Palette {
  std::string memory, arithmetic, measured, limit;
};
const Palette kOfPage = {"var(--c0)", "var(--c1)", "var(--c0)", "var(--c7)"};
const Palette kFixed = {"#2563c9", "#d9480f", "#2563c9", "#5c5f66"};

std::string number(int64_t n) {
  return n >= 1024 && n % 1024 == 0 ? fmt::format("{} K", n / 1024) : std::to_string(n);
}

std::string name_of(const BenchLine& line) {
  switch (line.group) {
    case BenchGroup::kLoad:
      return "load, " + line.work;
    case BenchGroup::kPrefill:
    case BenchGroup::kDecode:
      return fmt::format("{} at {}", line.work, number(line.context));
    default:
      return line.work;
  }
}

BarChart bars(const std::string& title, const BenchLog& log, const Palette& palette,
              std::initializer_list<BenchGroup> groups) {
  BarChart chart;
  chart.title = title;
  chart.keys = {{palette.memory, "limited by memory"}, {palette.arithmetic, "by arithmetic"}};
  chart.note = "shortest possible time, by the roofs measured before and after, over the median";
  if (std::any_of(log.lines().begin(), log.lines().end(),
                  [](const BenchLine& line) { return line.share() > 1.05; }))
    chart.note += fmt::format("; {}", kOverTheRoof);
  for (const BenchGroup group : groups) {
    for (const BenchLine& line : log.lines()) {
      if (line.group != group) continue;
      chart.bars.push_back({name_of(line),
                            line.memory_bound() ? palette.memory : palette.arithmetic,
                            fmt::format("{:.0f} %", 100 * line.share()), line.share()});
    }
  }
  return chart;
}

// Median and limit of a group's lines called `work` ("" = any), over context or sequences.
Chart curve(const std::string& title, const BenchLog& log, const Palette& palette, BenchGroup group,
            const std::string& work) {
  Chart chart;
  chart.title = title;
  chart.lowest = 0;
  ChartSeries measured{.name = "measured", .color = palette.measured, .marks = true};
  ChartSeries limit{.name = "limit of this machine",
                    .color = palette.limit,
                    .style = ChartSeries::Style::kDashed,
                    .marks = true};
  for (const BenchLine& line : log.lines()) {
    if (line.group != group || (!work.empty() && line.work != work)) continue;
    const auto x = static_cast<double>(chart.x_names.size());
    measured.points.emplace_back(x, line.tokens_per_second());
    limit.points.emplace_back(x, line.limit());
    chart.x_names.push_back(number(group == BenchGroup::kBatch ? line.sequences : line.context));
  }
  chart.series = {std::move(limit), std::move(measured)};
  return chart;
}

std::vector<Chart> curves(const BenchLog& log, const Palette& palette) {
  std::vector<Chart> charts;
  const auto add = [&](Chart chart, std::string note) {
    chart.note = std::move(note);
    if (!chart.x_names.empty()) charts.push_back(std::move(chart));
  };
  // The prompt length that was timed at the most contexts.
  std::string prefill;
  int64_t most = 0;
  for (const BenchLine& line : log.lines()) {
    if (line.group != BenchGroup::kPrefill) continue;
    const auto count = std::count_if(log.lines().begin(), log.lines().end(),
                                     [&](const BenchLine& l) { return l.work == line.work; });
    if (count >= most) most = count, prefill = line.work;
  }
  add(curve("Generation, tokens per second", log, palette, BenchGroup::kDecode, ""),
      "one sequence, by the tokens before");
  if (!prefill.empty())
    add(curve(fmt::format("P{}, tokens per second", prefill.substr(1)), log, palette,
              BenchGroup::kPrefill, prefill),
        "new tokens of a prompt, by the tokens before them");
  add(curve("Several sequences at once, tokens per second", log, palette, BenchGroup::kBatch, ""),
      "total of all, by their number");
  return charts;
}

std::string table(const BenchLog& log) {
  std::string rows;
  for (const BenchLine& line : log.lines()) {
    const bool load = line.group == BenchGroup::kLoad;
    const Spread& s = line.seconds;
    rows += fmt::format(
        "<tr><th>{}</th><td>{}</td><td>{}</td><td>{}</td><td>{:.1f}</td><td>{:.1f}</td><td>{:.0f} "
        "%</td><td>{}</td><td>{:.1f} → {:.1f}</td><td>{:.0f} → {:.0f}</td></tr>\n",
        escape_html(name_of(line)),
        load ? fmt::format("{:.2f} s", s.median) : fmt::format("{:.1f}", line.tokens_per_second()),
        load ? fmt::format("{:.2f} – {:.2f} s", s.low, s.high)
             : fmt::format("{:.1f} – {:.1f}", line.tokens / s.high, line.tokens / s.low),
        load ? "" : fmt::format("{:.1f}", line.limit()), line.cost.arithmetic() / s.median / 1e9,
        line.cost.bytes / s.median / 1e9, 100 * line.share(),
        line.memory_bound() ? "memory" : "arithmetic", line.before.read_bytes / 1e9,
        line.after.read_bytes / 1e9, line.before.int8_ops / 1e9, line.after.int8_ops / 1e9);
  }
  return "<h2>All lines</h2>\n<div class=\"wide\"><table><tr><th>work</th><th>tokens/s, "
         "median</th><th>10 – 90 "
         "%</th><th>limit</th><th>GFLOP/s</th><th>GB/s</th><th>of the roof</th><th>limited "
         "by</th><th>memory roof, GB/s</th><th>int8 roof, GOP/s</th></tr>\n" +
         rows + "</table></div>\n";
}

std::string memory(const BenchedModel& model, const BenchLog& log) {
  std::string out = "<h2>Memory</h2>\n<dl>";
  const auto fact = [&](std::string_view name, uint64_t bytes) {
    out += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>", name, bytes_text(bytes));
  };
  fact("weights in files", model.file_bytes);
  fact("cache per token", model.cache_bytes_per_token);
  fact("cache of the largest line", model.cache_bytes);
  fact("resident at most, of files", log.peak().file);
  fact("resident at most, its own", log.peak().anonymous);
  return out + "</dl>\n";
}

std::string joined(const std::vector<std::string>& facts) {
  std::string text;
  for (const std::string& fact : facts) text += (text.empty() ? "" : " · ") + fact;
  return text;
}

constexpr std::initializer_list<BenchGroup> kModelGroups = {
    BenchGroup::kPrefill, BenchGroup::kDecode, BenchGroup::kBatch, BenchGroup::kLoad};

}  // namespace

std::string bench_page(const std::vector<std::string>& facts, const BenchedModel* model,
                       const BenchLog& log) {
  std::string body = "<h2>Share of the roof</h2>\n<div class=\"curves\">\n";
  body += render_bars(bars("Model", log, kOfPage, kModelGroups));
  body += render_bars(bars("Linear layers", log, kOfPage, {BenchGroup::kKernels}));
  body += "</div>\n";
  std::string drawn;
  for (const Chart& chart : curves(log, kOfPage)) drawn += render_chart(chart);
  if (!drawn.empty()) body += "<h2>Speed</h2>\n<div class=\"curves\">\n" + drawn + "</div>\n";
  if (model != nullptr) body += memory(*model, log);
  const std::string title = model != nullptr ? model->name : "Linear layers";
  return html_page(title, title + " – bench", joined(facts), body + table(log));
}

std::string bench_picture(const std::vector<std::string>& facts, const BenchedModel* model,
                          const BenchLog& log) {
  constexpr double kMargin = 16, kHead = 56;
  double height = kHead, width = 0, x = kMargin;
  std::string body;
  // Columns from left to right: model, layers, curves.
  const auto column = [&](const std::vector<Drawing>& drawings) {
    double bottom = kHead, widest = 0;
    for (const Drawing& d : drawings) {
      bottom += d.height, widest = std::max(widest, d.width);
      body += d.svg;
    }
    if (widest > 0) x += widest + kMargin;
    height = std::max(height, bottom);
    width = x;
  };
  column({draw_bars(bars("Share of the roof: model", log, kFixed, kModelGroups), x, kHead)});
  column({draw_bars(bars("Share of the roof: linear layers", log, kFixed, {BenchGroup::kKernels}),
                    x, kHead)});
  std::vector<Drawing> drawings;
  double y = kHead;
  for (const Chart& chart : curves(log, kFixed)) {
    drawings.push_back(draw_chart(chart, x, y));
    y += drawings.back().height;
  }
  column(drawings);
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0:.0f} {1:.0f}\" "
      "width=\"{0:.0f}\" height=\"{1:.0f}\">\n<style>text{{font:11px "
      "system-ui,sans-serif;fill:#555}}.title{{font-size:13px;font-weight:600;fill:#1c1e21}}"
      ".head{{font-size:17px;font-weight:600;fill:#1c1e21}}.grid{{stroke:#ddd}}.line{{fill:none;"
      "stroke-width:1.8;stroke-linejoin:round}}</style>\n<rect width=\"{0:.0f}\" "
      "height=\"{1:.0f}\" style=\"fill:#fff\"/>\n<text class=\"head\" x=\"16\" y=\"26\">{2}</text>"
      "<text x=\"16\" y=\"44\">{3}</text>\n{4}</svg>\n",
      std::max(width, 492.0), height + kMargin,
      escape_html(model != nullptr ? model->name : "Linear layers"), escape_html(joined(facts)),
      body);
}

}  // namespace fathom
