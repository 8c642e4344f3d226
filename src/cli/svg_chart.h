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
  std::string name;                                    // in the legend; empty: not there
  std::string color;                                   // CSS
  std::vector<std::pair<double, double>> points = {};  // rising x >= 0; y not finite is a gap
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
  // If given, x counts these from 0: places at equal distances with names instead of numbers.
  std::vector<std::string> x_names;
};

// A <figure> with title, legend (each name with its last value), drawing and note. Long series are
// drawn as the means of a few hundred neighbourhoods. Empty if no series has a point.
std::string render_chart(const Chart& chart);

// One bar for each row: name, share of a whole, what the share is written as.
struct Bar {
  std::string name, color, text;
  double share = 0;  // not negative
};
struct BarChart {
  std::string title, note;
  std::vector<Bar> bars;
  std::vector<std::pair<std::string, std::string>> keys;  // color, what it stands for
};
// A <figure>; the axis goes to 100 % or to the longest bar. Empty without bars.
std::string render_bars(const BarChart& chart);

// The same as a part of a picture of its own, without HTML: <svg> with its upper left corner at
// (x, y), title and legend included. Notes are left out.
struct Drawing {
  std::string svg;
  double width = 0, height = 0;
};
Drawing draw_chart(const Chart& chart, double x, double y);
Drawing draw_bars(const BarChart& chart, double x, double y);

// "0.002", "1.9 k", "31 M": at most three digits that matter.
std::string short_number(double value);

// Round numbers that cover low..high, about `count` of them. REQUIRES: low < high, finite; for the
// logarithmic ones also 0 < low.
std::vector<double> linear_ticks(double low, double high, int count);
std::vector<double> log_ticks(double low, double high);

}  // namespace fathom
