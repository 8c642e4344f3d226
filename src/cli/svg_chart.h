// Curves as SVG inside a page of HTML: no script, colours by CSS variables so that light and dark
// follow the reader's choice. All text given here is escaped here.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fathom {

// Text as HTML: markup characters as entities, invalid UTF-8 as U+FFFD, control characters but
// newline and tab left out.
std::string escape_html(std::string_view text);

struct ChartSeries {
  enum class Style { kLine, kDashed, kDotted };
  std::string name;                               // in the legend; empty: not there
  std::string color;                              // CSS
  std::vector<std::pair<double, double>> points;  // rising x >= 0; y not finite is a gap
  Style style = Style::kLine;
  bool marks = false;  // a dot at each point: few, far between
  bool range =
      false;  // behind the others: what lies between the least and the greatest of neighbours
};

struct Chart {
  std::string title, note;
  std::vector<ChartSeries> series;
  bool log_scale = false;        // points that are not positive are gaps then
  std::optional<double> lowest;  // of the vertical axis, else the data's
  bool percent = false;          // values are shares, shown in percent
};

// A <figure> with title, legend (each name with its last value), drawing and note. Long series are
// drawn as the means of a few hundred neighbourhoods. Empty if no series has a point.
std::string render_chart(const Chart& chart);

// "0.002", "1.9 k", "31 M": at most three digits that matter.
std::string short_number(double value);

// Round numbers that cover low..high, about `count` of them. REQUIRES: low < high, finite; for the
// logarithmic ones also 0 < low.
std::vector<double> linear_ticks(double low, double high, int count);
std::vector<double> log_ticks(double low, double high);

}  // namespace fathom
