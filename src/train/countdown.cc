// Countdown: reach a target from three numbers, each used once, with + - * and exact division.
//
// A try is two steps, written out, then the target again and whether it was met: "7*3=21, 21+25=46;
// 46 yes". With the target beside it a model that sees characters compares neighbours; without, ten
// million characters were not enough to teach the comparison across lines. A thought is a list of
// tries that ends at the first hit. Values past 999 are not tried: targets end at 99.
#include <algorithm>
#include <charconv>

#include "base/error.h"
#include "train/expression.h"
#include "train/task_list.h"

namespace fathom {
namespace {

constexpr int64_t kLargestNumber = 30, kLargestTarget = 99, kLargestValue = 999;
constexpr const char* kGivenUp = "none";
constexpr int64_t kFewestTries = 2, kMostTries = 5;

struct Step {
  int64_t a = 0, b = 0, value = 0;
  char op = '+';
  std::string text() const { return fmt::format("{}{}{}={}", a, op, b, value); }
};

// (numbers[i] op numbers[j]) op numbers[k], or numbers[k] op (...).
struct Try {
  Step first, second;
  bool inner_left = true;  // the first step's value stands left in the second
  std::string text() const { return first.text() + ", " + second.text(); }
  std::string expression() const {
    const std::string inner = fmt::format("({}{}{})", first.a, first.op, first.b);
    return inner_left ? fmt::format("{}{}{}", inner, second.op, second.b)
                      : fmt::format("{}{}{}", second.a, second.op, inner);
  }
};

// The steps on two numbers: sums and products larger operand first or as given, differences not
// negative, exact quotients.
std::vector<Step> steps(int64_t a, int64_t b) {
  std::vector<Step> list{{a, b, a + b, '+'}, {a, b, a * b, '*'}};
  if (a >= b) list.push_back({a, b, a - b, '-'});
  if (a < b) list.push_back({b, a, b - a, '-'});
  if (b > 0 && a % b == 0) list.push_back({a, b, a / b, '/'});
  if (a > 0 && a != b && b % a == 0) list.push_back({b, a, b / a, '/'});
  std::erase_if(list, [](const Step& s) { return s.value > kLargestValue; });
  return list;
}

std::vector<Try> all_tries(const std::vector<int64_t>& n) {
  std::vector<Try> tries;
  for (size_t i = 0; i < 3; ++i) {
    for (size_t j = i + 1; j < 3; ++j) {
      const int64_t rest = n[3 - i - j];
      for (const Step& first : steps(n[i], n[j])) {
        for (const Step& second : steps(first.value, rest)) {
          // Where both operands are equal either reading is right.
          tries.push_back({first, second, second.a == first.value});
        }
      }
    }
  }
  return tries;
}

std::string question_of(const Problem& p) {
  return fmt::format("Use {}, {} and {} to make {}.", p.numbers[0], p.numbers[1], p.numbers[2],
                     p.target);
}

class Countdown : public Task {
 public:
  std::string_view name() const override { return "countdown"; }

  Problem problem(uint64_t seed, uint64_t index, Split split) const override {
    return draw_in_split(name(), seed, index, split, [](Dice& dice) {
      Problem p;
      for (int i = 0; i < 3; ++i) p.numbers.push_back(dice.between(1, kLargestNumber));
      std::vector<Try> good = all_tries(p.numbers);
      std::erase_if(
          good, [](const Try& t) { return t.second.value < 1 || t.second.value > kLargestTarget; });
      // Three numbers up to 30 always have a good one: their sum, at most 90.
      const Try& chosen = good[static_cast<size_t>(dice.below(static_cast<int64_t>(good.size())))];
      p.target = chosen.second.value;
      p.answer = chosen.expression();
      p.question = question_of(p);
      return p;
    });
  }

  std::optional<Problem> read(std::string_view question) const override {
    Problem p;
    for (size_t i = 0; i < question.size();) {
      if (question[i] < '0' || question[i] > '9') {
        ++i;
        continue;
      }
      int64_t number = 0;
      const auto [end, error] =
          std::from_chars(question.data() + i, question.data() + question.size(), number);
      if (error != std::errc{}) return std::nullopt;
      p.numbers.push_back(number);
      i = static_cast<size_t>(end - question.data());
    }
    if (p.numbers.size() != 4) return std::nullopt;
    p.target = p.numbers.back();
    p.numbers.pop_back();
    p.question = question_of(p);
    return p.question == question ? std::optional(p) : std::nullopt;
  }

  Verdict verify(const Problem& p, std::string_view answer) const override {
    if (answer.empty() || answer == kGivenUp)
      return {VerdictKind::kNoAnswer, answer.empty() ? "" : "gave up"};
    // "(7*3)+25 = 46" says what it makes; only the left side counts.
    const ExpressionResult result = evaluate_expression(answer.substr(0, answer.find('=')));
    if (!result.ok) return {VerdictKind::kMalformed, result.error};
    std::vector<int64_t> used = result.numbers, given = p.numbers;
    std::sort(used.begin(), used.end());
    std::sort(given.begin(), given.end());
    if (used != given) {
      return {VerdictKind::kWrongNumbers,
              fmt::format("uses {}, expected {}", fmt::join(used, ", "), fmt::join(given, ", "))};
    }
    if (result.value != p.target) {
      return {VerdictKind::kWrongValue, fmt::format("{}, expected {}", result.value, p.target)};
    }
    return {VerdictKind::kCorrect, {}};
  }

  // Tries in random order, none twice, until one hits or patience ends, which is short: a third of
  // the thoughts succeed, and trying longer is what reinforcement learning can find.
  WorkedSolution solve(const Problem& p, uint64_t seed) const override {
    Dice dice(seed, 1);
    std::vector<Try> tries = all_tries(p.numbers);
    WorkedSolution s;
    for (int64_t patience = dice.between(kFewestTries, kMostTries); patience > 0 && !tries.empty();
         --patience) {
      const auto pick = static_cast<size_t>(dice.below(static_cast<int64_t>(tries.size())));
      const Try t = tries[pick];
      tries.erase(tries.begin() + static_cast<std::ptrdiff_t>(pick));
      const bool hit = t.second.value == p.target;
      s.thought += fmt::format("{}; {} {}\n", t.text(), p.target, hit ? "yes" : "no");
      if (hit) {
        s.answer = t.expression();
        return s;
      }
    }
    s.answer = kGivenUp;
    return s;
  }

  // A quarter each: facts and chains, evaluations and checks; half: searches.
  std::string text(uint64_t seed, uint64_t index) const override {
    Dice dice(seed, index);
    const int64_t kind = dice.below(4);
    std::string text;
    for (int line = 0; line < 8; ++line) {
      const Problem p = problem(seed, index * 8 + static_cast<uint64_t>(line), Split::kTrain);
      const std::vector<Try> tries = all_tries(p.numbers);
      const Try& t = tries[static_cast<size_t>(dice.below(static_cast<int64_t>(tries.size())))];
      if (kind == 0) {
        text += dice.chance(0.5) ? t.second.text() + "\n" : t.text() + "\n";
      } else if (kind == 1 && dice.chance(0.5)) {
        text += fmt::format("{}={}\n", t.expression(), t.second.value);
      } else if (kind == 1) {
        const int64_t said = dice.chance(0.5)
                                 ? t.second.value
                                 : std::max<int64_t>(0, t.second.value + dice.between(-10, 10));
        text += fmt::format("is {} {}? {}\n", t.expression(), said,
                            said == t.second.value ? "yes" : "no");
      } else {
        const WorkedSolution s = solve(p, seed ^ (index * 8 + static_cast<uint64_t>(line)));
        return p.question + "\n" + s.thought + s.answer + "\n";
      }
    }
    return text;
  }
};

}  // namespace

std::unique_ptr<Task> make_countdown() { return std::make_unique<Countdown>(); }

}  // namespace fathom
