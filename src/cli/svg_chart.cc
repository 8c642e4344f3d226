#include "cli/svg_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/utf8.h"
#include "cli/output.h"

namespace fathom {
namespace {

// The drawing in its own units; the page scales it to the width it has.
constexpr double kWidth = 460, kHeight = 240;
constexpr double kLeft = 46, kRight = 12, kTop = 10, kBottom = 24;
constexpr size_t kMostPoints = 300;

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return !(low <= high); }
};

struct Bucket {
  double x = 0, mean = 0;
  Range range;
};

// Means of equally many neighbours; a neighbourhood without a number is left out.
std::vector<Bucket> buckets_of(const ChartSeries& series, bool log_scale) {
  const auto& points = series.points;
  const size_t per_bucket = series.marks ? 1 : (points.size() + kMostPoints - 1) / kMostPoints;
  std::vector<Bucket> buckets;
  for (size_t begin = 0; begin < points.size(); begin += per_bucket) {
    Bucket bucket;
    size_t count = 0;
    for (size_t i = begin; i < std::min(points.size(), begin + per_bucket); ++i) {
      const auto& [x, y] = points[i];
      if (!std::isfinite(x) || !std::isfinite(y) || (log_scale && y <= 0)) continue;
      bucket.x += x;
      bucket.mean += y;
      bucket.range.add(y);
      ++count;
    }
    if (count == 0) continue;
    bucket.x /= static_cast<double>(count);
    bucket.mean /= static_cast<double>(count);
    buckets.push_back(bucket);
  }
  return buckets;
}

struct Axis {
  double low, high;  // data
  double from, to;   // drawing
  bool log_scale = false;
  double at(double value) const {
    const double share = log_scale
                             ? (std::log(value) - std::log(low)) / (std::log(high) - std::log(low))
                             : (value - low) / (high - low);
    return from + (to - from) * std::clamp(share, 0.0, 1.0);
  }
};

// A range with some width, also around a single value.
void widen(Range& range, bool log_scale) {
  if (range.high > range.low) return;
  const double by = range.high == 0 ? 1 : std::abs(range.high) * 0.1;
  range.low -= log_scale ? by / 2 : by;
  range.high += by;
}

// To the next tick, so that the highest curve stays under a line of the grid.
void round_outwards(Range& range) {
  const auto ticks = linear_ticks(range.low, range.high, 5);
  if (ticks.size() < 2) return;
  const double step = ticks[1] - ticks[0];
  if (range.high > ticks.back() + step * 1e-6) range.high = ticks.back() + step;
  if (range.low < ticks.front() - step * 1e-6) range.low = ticks.front() - step;
}

std::string label_of(const Chart& chart, double value) {
  return chart.percent ? fmt::format("{:.3g} %", value * 100) : short_number(value);
}

std::string grid(const Chart& chart, const Axis& x, const Axis& y) {
  std::string out;
  const auto ticks = y.log_scale ? log_ticks(y.low, y.high) : linear_ticks(y.low, y.high, 5);
  for (const double value : ticks) {
    out += fmt::format(
        "<line class=\"grid\" x1=\"{:.0f}\" x2=\"{:.0f}\" y1=\"{:.1f}\" y2=\"{:.1f}\"/>", x.from,
        x.to, y.at(value), y.at(value));
    out += fmt::format("<text x=\"{:.0f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text>", kLeft - 6,
                       y.at(value) + 4, label_of(chart, value));
  }
  for (size_t i = 0; i < chart.x_names.size(); ++i) {
    const double at = x.at(static_cast<double>(i));
    const std::string_view anchor = at > x.to - 20 ? "end" : "middle";
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.0f}\" text-anchor=\"{}\">{}</text>", at,
                       kHeight - 6, anchor, escape_html(chart.x_names[i]));
  }
  if (!chart.x_names.empty()) return out;
  for (const double value : linear_ticks(x.low, x.high, 5)) {
    const std::string_view anchor = x.at(value) > x.to - 12 ? "end" : "middle";
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.0f}\" text-anchor=\"{}\">{}</text>", x.at(value),
                       kHeight - 6, anchor, short_number(value));
  }
  return out;
}

std::string band(const std::vector<Bucket>& buckets, const std::string& color, const Axis& x,
                 const Axis& y) {
  std::string path;
  for (const Bucket& b : buckets)
    path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "M" : "L", x.at(b.x), y.at(b.range.high));
  for (auto b = buckets.rbegin(); b != buckets.rend(); ++b)
    path += fmt::format("L{:.1f},{:.1f}", x.at(b->x), y.at(b->range.low));
  return fmt::format("<path class=\"band\" style=\"fill:{0};stroke:{0}\" d=\"{1}Z\"/>",
                     escape_html(color), path);
}

std::string dashes_of(ChartSeries::Style style) {
  return style == ChartSeries::Style::kDashed   ? ";stroke-dasharray:6 4"
         : style == ChartSeries::Style::kDotted ? ";stroke-dasharray:1.5 4;stroke-linecap:round"
                                                : "";
}

std::string line(const ChartSeries& series, const std::vector<Bucket>& buckets, const Axis& x,
                 const Axis& y) {
  std::string path;
  for (const Bucket& b : buckets)
    path += fmt::format("{}{:.1f},{:.1f}", path.empty() ? "M" : "L", x.at(b.x), y.at(b.mean));
  return fmt::format("<path class=\"line\" style=\"stroke:{}{}\" d=\"{}\"/>",
                     escape_html(series.color), dashes_of(series.style), path);
}

std::string place_of(const Chart& chart, double x) {
  const auto index = static_cast<size_t>(std::max(0.0, x));
  return index < chart.x_names.size() ? escape_html(chart.x_names[index])
                                      : fmt::format("{:.0f}", x);
}

std::string marks(const Chart& chart, const ChartSeries& series, const std::vector<Bucket>& buckets,
                  const Axis& x, const Axis& y) {
  std::string out;
  for (const Bucket& b : buckets) {
    out += fmt::format(
        "<circle r=\"2.6\" cx=\"{:.1f}\" cy=\"{:.1f}\" style=\"fill:{}\"><title>{}{} at "
        "{}</title></circle>",
        x.at(b.x), y.at(b.mean), escape_html(series.color),
        escape_html(series.name.empty() ? "" : series.name + ": "), label_of(chart, b.mean),
        place_of(chart, b.x));
  }
  return out;
}

std::string legend(const Chart& chart, const std::vector<std::vector<Bucket>>& drawn) {
  constexpr size_t kMostNames = 16;
  std::string out;
  size_t names = 0;
  for (size_t i = 0; i < drawn.size(); ++i) {
    const ChartSeries& series = chart.series[i];
    if (series.name.empty() || drawn[i].empty() || ++names > kMostNames) continue;
    const std::string_view style = series.style == ChartSeries::Style::kDashed   ? "dashed"
                                   : series.style == ChartSeries::Style::kDotted ? "dotted"
                                                                                 : "solid";
    out += fmt::format(
        "<span class=\"key\"><i style=\"border-top:3px {} {}\"></i>{} <b>{}</b></span>", style,
        escape_html(series.color), escape_html(series.name), label_of(chart, drawn[i].back().mean));
  }
  if (names > kMostNames)
    out += fmt::format("<span class=\"key\">and {} more</span>", names - kMostNames);
  return out.empty() ? "" : "<div class=\"legend\">" + out + "</div>";
}

// What is inside the frame; fills `drawn`. Empty if no series has a point.
std::string draw(const Chart& chart, std::vector<std::vector<Bucket>>& drawn) {
  Range xs, ys;
  for (const ChartSeries& series : chart.series) {
    drawn.push_back(buckets_of(series, chart.log_scale));
    if (!drawn.back().empty()) xs.add(series.points.back().first);
    for (const Bucket& b : drawn.back()) {
      ys.add(series.range ? b.range.low : b.mean);
      ys.add(series.range ? b.range.high : b.mean);
    }
  }
  if (ys.empty()) return "";
  if (chart.lowest) ys.low = std::min(ys.low, *chart.lowest);
  xs.add(0);
  widen(xs, false);
  widen(ys, chart.log_scale);
  if (!chart.log_scale) round_outwards(ys);
  const Axis x{xs.low, xs.high, kLeft, kWidth - kRight};
  const Axis y{ys.low, ys.high, kHeight - kBottom, kTop, chart.log_scale};

  std::string drawing = grid(chart, x, y);
  for (size_t i = 0; i < drawn.size(); ++i) {
    if (chart.series[i].range && !drawn[i].empty())
      drawing += band(drawn[i], chart.series[i].color, x, y);
  }
  for (size_t i = 0; i < drawn.size(); ++i) {
    if (chart.series[i].range || drawn[i].empty()) continue;
    drawing += line(chart.series[i], drawn[i], x, y);
    if (chart.series[i].marks || drawn[i].size() == 1)
      drawing += marks(chart, chart.series[i], drawn[i], x, y);
  }
  return drawing;
}

// Bars in the units of the charts, `top` from above: 0 to `height`.
constexpr double kBarStep = 19, kBarLeft = 142;
double bars_height(const BarChart& chart) {
  return kTop + kBarStep * static_cast<double>(chart.bars.size()) + kBottom;
}

std::string draw(const BarChart& chart) {
  double high = 1;
  for (const Bar& bar : chart.bars) high = std::max(high, bar.share);
  const double bottom = bars_height(chart) - kBottom, right = kWidth - 52;
  const Axis x{0, high, kBarLeft, right};
  std::string out;
  for (const double share : linear_ticks(0, high, 4)) {
    out += fmt::format(
        "<line class=\"grid\" x1=\"{0:.1f}\" x2=\"{0:.1f}\" y1=\"{1:.0f}\" y2=\"{2:.1f}\"/>"
        "<text x=\"{0:.1f}\" y=\"{3:.1f}\" text-anchor=\"middle\">{4:.0f} %</text>",
        x.at(share), kTop, bottom, bottom + 16, 100 * share);
  }
  double y = kTop;
  for (const Bar& bar : chart.bars) {
    out += fmt::format(
        "<text x=\"{:.0f}\" y=\"{:.1f}\" text-anchor=\"end\">{}</text><rect x=\"{:.0f}\" "
        "y=\"{:.1f}\" "
        "width=\"{:.1f}\" height=\"{:.0f}\" rx=\"2\" style=\"fill:{}\"/><text x=\"{:.1f}\" "
        "y=\"{:.1f}\">{}</text>",
        kBarLeft - 6, y + 13, escape_html(bar.name), kBarLeft, y + 3,
        std::max(0.5, x.at(bar.share) - kBarLeft), kBarStep - 6, escape_html(bar.color),
        x.at(bar.share) + 5, y + 13, escape_html(bar.text));
    y += kBarStep;
  }
  return out;
}

struct Key {
  std::string color, name, dashes;
};
// A titled part of a picture: `inner` is drawn below title and keys.
Drawing titled(const std::string& title, const std::vector<Key>& keys, const std::string& inner,
               double height, double x, double y) {
  constexpr double kTitle = 24, kKey = 17;
  const double head = kTitle + kKey * static_cast<double>(keys.size());
  std::string text =
      fmt::format("<text class=\"title\" x=\"8\" y=\"17\">{}</text>", escape_html(title));
  double at = kTitle;
  for (const Key& key : keys) {
    text += fmt::format(
        "<line x1=\"8\" x2=\"30\" y1=\"{0:.1f}\" y2=\"{0:.1f}\" "
        "style=\"stroke:{1};stroke-width:3{2}\"/><text x=\"36\" y=\"{3:.1f}\">{4}</text>",
        at + 7, escape_html(key.color), key.dashes, at + 11, escape_html(key.name));
    at += kKey;
  }
  return {fmt::format("<svg x=\"{:.0f}\" y=\"{:.0f}\" width=\"{:.0f}\" height=\"{:.0f}\">{}<g "
                      "transform=\"translate(0 {:.0f})\">{}</g></svg>\n",
                      x, y, kWidth, head + height, text, head, inner),
          kWidth, head + height};
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : without_controls(replace_invalid_utf8(text))) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string short_number(double value) {
  const double size = std::abs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-4)) return fmt::format("{:.3g}", value);
  constexpr std::pair<double, const char*> kUnits[] = {
      {1e12, " T"}, {1e9, " G"}, {1e6, " M"}, {1e3, " k"}};
  for (const auto& [unit, name] : kUnits) {
    if (size >= unit * 0.9995) return fmt::format("{:.3g}{}", value / unit, name);
  }
  return fmt::format("{:.3g}", value);
}

std::vector<double> linear_ticks(double low, double high, int count) {
  const double raw = (high - low) / count;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  const double ratio = raw / power;
  const double step = power * (ratio < 1.5 ? 1 : ratio < 3.5 ? 2 : ratio < 7.5 ? 5 : 10);
  std::vector<double> ticks;
  const double first = std::ceil(low / step - 1e-9);
  for (int i = 0; i <= 4 * count && (first + i) * step <= high + step * 1e-9; ++i) {
    const double tick = (first + i) * step;
    ticks.push_back(tick == 0 ? 0 : tick);  // never -0
  }
  return ticks;
}

std::vector<double> log_ticks(double low, double high) {
  if (high / low < 2) return linear_ticks(low, high, 5);
  const double decades = std::log10(high / low);
  const double every = std::max(1.0, std::ceil(decades / 6));  // decades between ticks
  std::vector<double> ticks;
  for (double power = std::floor(std::log10(low)); power <= std::ceil(std::log10(high)); ++power) {
    if (std::fmod(power, every) != 0) continue;
    for (const int digit : {1, 2, 3, 4, 5, 7}) {
      const bool wanted =
          digit == 1 || decades <= 1.2 || (decades <= 2.5 && (digit == 2 || digit == 5));
      const double tick = digit * std::pow(10, power);
      if (wanted && tick >= low * 0.999999 && tick <= high * 1.000001) ticks.push_back(tick);
    }
  }
  return ticks;
}

std::string render_chart(const Chart& chart) {
  std::vector<std::vector<Bucket>> drawn;
  const std::string drawing = draw(chart, drawn);
  if (drawing.empty()) return "";
  const std::string title = escape_html(chart.title);
  return fmt::format(
      "<figure><figcaption>{}</figcaption>{}<svg viewBox=\"0 0 {:.0f} {:.0f}\" role=\"img\" "
      "aria-label=\"{}\">{}</svg>{}</figure>\n",
      title, legend(chart, drawn), kWidth, kHeight, title, drawing,
      chart.note.empty() ? "" : "<p class=\"note\">" + escape_html(chart.note) + "</p>");
}

std::string render_bars(const BarChart& chart) {
  if (chart.bars.empty()) return "";
  std::string keys;
  for (const auto& [color, name] : chart.keys)
    keys += fmt::format("<span class=\"key\"><i style=\"border-top:8px solid {}\"></i>{}</span>",
                        escape_html(color), escape_html(name));
  const std::string title = escape_html(chart.title);
  return fmt::format(
      "<figure><figcaption>{}</figcaption>{}<svg viewBox=\"0 0 {:.0f} {:.0f}\" role=\"img\" "
      "aria-label=\"{}\">{}</svg>{}</figure>\n",
      title, keys.empty() ? "" : "<div class=\"legend\">" + keys + "</div>", kWidth,
      bars_height(chart), title, draw(chart),
      chart.note.empty() ? "" : "<p class=\"note\">" + escape_html(chart.note) + "</p>");
}

Drawing draw_chart(const Chart& chart, double x, double y) {
  std::vector<std::vector<Bucket>> drawn;
  const std::string drawing = draw(chart, drawn);
  if (drawing.empty()) return {};
  std::vector<Key> keys;
  for (size_t i = 0; i < drawn.size(); ++i) {
    const ChartSeries& series = chart.series[i];
    if (!series.name.empty() && !drawn[i].empty())
      keys.push_back({series.color, series.name, dashes_of(series.style)});
  }
  return titled(chart.title, keys, drawing, kHeight, x, y);
}

Drawing draw_bars(const BarChart& chart, double x, double y) {
  if (chart.bars.empty()) return {};
  std::vector<Key> keys;
  for (const auto& [color, name] : chart.keys) keys.push_back({color, name, ""});
  return titled(chart.title, keys, draw(chart), bars_height(chart), x, y);
}

}  // namespace fathom
