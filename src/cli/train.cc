#include "cli/train.h"

#include <unistd.h>
#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "base/error.h"
#include "cli/interrupt.h"
#include "cli/machine.h"
#include "train/run.h"

namespace fathom {
namespace {

constexpr double kRedrawSeconds = 0.2, kPlainSeconds = 10;
constexpr size_t kSparkColumns = 24;

std::string duration(double seconds) {
  const auto s = static_cast<int64_t>(std::max(0.0, seconds));
  return s >= 3600 ? fmt::format("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
                   : fmt::format("{}:{:02}", s / 60, s % 60);
}

class Panel : public RunObserver {
 public:
  explicit Panel(const OutputOptions& output)
      : quiet_(output.quiet),
        live_(!output.quiet && is_terminal(STDERR_FILENO) && use_color(STDERR_FILENO, output)) {}
  ~Panel() override { wipe(); }

  void started(const RunFacts& f) override {
    say(
        fmt::format("{}: {:.2f} M trained parameters; {} steps from step {}; memory {} for the "
                    "numbers, at most {} for a step",
                    f.model, static_cast<double>(f.parameters) / 1e6, f.steps, f.first_step,
                    mebibytes(f.frozen_bytes + f.state_bytes), mebibytes(f.step_bytes)));
    begin_ = seconds_now();
    first_step_ = f.first_step;
  }

  void step(const StepLine& line) override {
    losses_.push_back(line.cross_entropy);
    const double now = seconds_now();
    if (line.step < line.steps && now - drawn_ < (live_ ? kRedrawSeconds : kPlainSeconds)) return;
    drawn_ = now;
    const double left = (now - begin_) / static_cast<double>(line.step - first_step_) *
                        static_cast<double>(line.steps - line.step);
    const std::string load =
        line.load_worst > 0 ? fmt::format("  load {:.2f}", line.load_worst) : "";
    const std::string text = fmt::format(
        "step {}/{}  loss {:.4f} {} lr {:.2e}  |g| {:.2f}  {:.0f} tok/s  {:.0f} GFLOP/s {:.0f} %{} "
        " left {}",
        line.step, line.steps, line.cross_entropy, live_ ? sparkline(losses_, kSparkColumns) : "",
        line.lr, line.gradient_norm, line.tokens_per_second, line.flops / 1e9,
        100 * line.share_of_roof, load, duration(left));
    if (!live_) return say(text);
    // Cut to the terminal; a block character is three bytes and one column.
    write_stderr("\r\x1b[2K" + fitted(text, static_cast<size_t>(std::max(
                                                20, terminal_columns(STDERR_FILENO) - 1))));
    shown_ = true;
  }

  void validated(int64_t step, double cross_entropy) override {
    say(fmt::format("step {}: validation loss {:.4f} ({:.3f} bits per token)", step, cross_entropy,
                    cross_entropy / std::log(2.0)));
  }

  void evaluated(int64_t step, const std::string& task, const EvaluationResult& r) override {
    say(fmt::format("step {}: {}: {}", step, task, score_text(r)));
    if (r.truncated > 0.1)
      say("more than a tenth of the answers is cut: evaluation.max_tokens is too small, or the "
          "model rambles");
    if (!r.examples.empty()) {
      const AnsweredProblem& a = r.examples.front();
      say(fmt::format("  {}\n  {}\n  ({}{}{})", a.question,
                      indented(without_controls(a.completion)), verdict_name(a.verdict.kind),
                      a.verdict.reason.empty() ? "" : ": ", a.verdict.reason));
    }
  }

  void sampled(int64_t step, const std::string& prompt, const std::string& completion) override {
    say(fmt::format("step {}: after\n  {}\nthe model writes\n  {}", step,
                    indented(without_controls(prompt)), indented(without_controls(completion))));
  }

  void note(const std::string& text) override { say(text); }
  bool stop_requested() override { return interrupted(); }

 private:
  static std::string mebibytes(uint64_t bytes) {
    return fmt::format("{} MiB", (bytes + (1 << 20) - 1) >> 20);
  }
  static std::string indented(std::string text) {
    for (size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at + 3))
      text.replace(at, 1, "\n  ");
    return text;
  }
  static std::string fitted(const std::string& text, size_t columns) {
    size_t seen = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      const bool starts = (static_cast<unsigned char>(text[i]) & 0xc0) != 0x80;
      if (starts && seen++ == columns) return text.substr(0, i);
    }
    return text;
  }
  void wipe() {
    if (shown_) write_stderr("\r\x1b[2K");
    shown_ = false;
  }
  void say(const std::string& text) {
    if (quiet_) return;
    wipe();
    write_stderr(text + "\n");
  }

  bool quiet_, live_, shown_ = false;
  double begin_ = 0, drawn_ = 0;
  int64_t first_step_ = 0;
  std::vector<double> losses_;
};

}  // namespace

std::string sparkline(const std::vector<double>& values, size_t columns) {
  static constexpr const char* kBlocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  if (values.empty()) return "";
  // The whole course: each column the mean of its share.
  columns = std::min(columns, values.size());
  std::vector<double> means;
  for (size_t c = 0; c < columns; ++c) {
    const size_t begin = c * values.size() / columns,
                 end = std::max(begin + 1, (c + 1) * values.size() / columns);
    double sum = 0;
    for (size_t i = begin; i < end; ++i) sum += values[i];
    means.push_back(sum / static_cast<double>(end - begin));
  }
  const auto [low, high] = std::minmax_element(means.begin(), means.end());
  std::string text;
  for (const double mean : means) {
    const double share = *high > *low ? (mean - *low) / (*high - *low) : 0;
    text += std::isfinite(share) ? kBlocks[static_cast<size_t>(std::clamp(share * 7.99, 0.0, 7.0))]
                                 : "?";
  }
  return text;
}

int run_train(const TrainOptions& options) {
  const Recipe recipe = load_recipe(options.recipe, options.overrides);
  if (options.print_recipe) {
    write_stdout(recipe.text);
    return 0;
  }
  const bool learns_answers =
      recipe.data.kind == DataKind::kConversations || recipe.data.kind == DataKind::kMessages;
  if (options.fine_tune && !learns_answers) {
    fail(
        "{}: data.kind: found texts, expected conversations or messages (plain text is `fathom "
        "pretrain`)",
        options.recipe);
  }
  // a name is one folder below runs/, never a way out of it
  if (options.folder.empty() &&
      (recipe.name.empty() || recipe.name.find('/') != std::string::npos || recipe.name == "." ||
       recipe.name == "..")) {
    fail("{}: name: found {}, expected the name of a folder below runs/ (or -o FOLDER)",
         options.recipe, quoted(recipe.name));
  }
  TrainingOptions run;
  run.folder = options.folder.empty() ? std::filesystem::path("runs") / recipe.name
                                      : std::filesystem::path(options.folder);
  run.resume = options.resume;
  run.command = options.command;
  run.machine = cpu_name();
  InterruptScope interrupts;
  Panel panel(options.output);
  const RunResult result = run_training(recipe, run, panel);
  if (!result.finished) {
    panel.note(fmt::format("stopped at step {}; go on with --resume", result.steps));
    throw Interrupted{};
  }
  panel.note(fmt::format("done: {} (try: fathom run {})", (run.folder / "model").string(),
                         (run.folder / "model").string()));
  return 0;
}

}  // namespace fathom
