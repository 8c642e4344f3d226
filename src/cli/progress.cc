#include "cli/progress.h"

#include <unistd.h>

#include <algorithm>

#include "base/clock.h"

namespace fathom {

std::string progress_line(const std::string& stage, Progress::Unit unit, uint64_t done,
                          uint64_t total, double seconds, int columns) {
  constexpr int kBarColumns = 20;
  const double share =
      total == 0 ? 1 : static_cast<double>(std::min(done, total)) / static_cast<double>(total);
  const double rate = seconds > 0 ? static_cast<double>(done) / seconds : 0;
  std::string bar;
  const int full = static_cast<int>(share * kBarColumns);
  for (int i = 0; i < kBarColumns; ++i) bar += i < full ? "█" : "░";
  std::string line = fmt::format("{} {} {:3.0f} %", stage, bar, share * 100);
  if (unit == Progress::Unit::kBytes) {
    line += fmt::format("  {} of {}  {:.1f} GB/s", bytes_text(done), bytes_text(total), rate / 1e9);
  } else {
    line += fmt::format("  {} of {} tokens  {:.0f} tok/s", done, total, rate);
  }
  if (rate > 0 && done < total)
    line += "  " + duration_text(static_cast<double>(total - done) / rate) + " left";
  // The bar is the only part of more bytes than columns; a narrow window gets the plain beginning.
  if (static_cast<int>(line.size()) - 2 * kBarColumns > columns)
    line = fmt::format("{} {:.0f} %", stage, share * 100);
  return line;
}

Progress::Progress(const OutputOptions& options, std::string stage, Unit unit, uint64_t total)
    : visible_(!options.quiet && use_color(STDERR_FILENO, options)),
      stage_(std::move(stage)),
      unit_(unit),
      total_(total),
      begin_(seconds_now()) {}

Progress::~Progress() {
  if (visible_ && drawn_ > 0) write_stderr("\r\x1b[K");
}

void Progress::at(uint64_t done) {
  constexpr double kRedrawSeconds = 0.1;
  if (!visible_) return;
  const double now = seconds_now();
  // quick work shows no bar at all
  if (now - begin_ < kRedrawSeconds || now - drawn_ < kRedrawSeconds) return;
  drawn_ = now;
  const std::string line =
      progress_line(stage_, unit_, done, total_, now - begin_, terminal_columns(STDERR_FILENO) - 1);
  write_stderr(fmt::format("\r{}\x1b[K", line));
}

}  // namespace fathom
