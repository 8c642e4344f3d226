// Digit sums, multi-digit arithmetic and linear equations.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "train/task_list.h"

namespace fathom {
namespace {

// The sum of d digits modulo 10: chance is exactly one in ten, and a running total makes it easy.
// Nine texts in ten give the answer at once, one shows the work, and only for up to 8 digits: the
// habit that reinforcement learning can amplify.
class DigitSum : public Task {
 public:
  std::string_view name() const override { return "digit_sum"; }

  Problem problem(uint64_t seed, uint64_t index, Split split) const override {
    return draw_in_split(name(), seed, index, split, [](Dice& dice) { return draw(dice, 2, 12); });
  }
  Verdict verify(const Problem& p, std::string_view answer) const override {
    return verify_integer(p.target, answer);
  }

  WorkedSolution solve(const Problem& p, uint64_t) const override {
    WorkedSolution s;
    int64_t total = 0;
    for (const int64_t digit : p.numbers) {
      total = (total + digit) % 10;
      s.thought += fmt::format("{}:{} ", digit, total);
    }
    s.thought.back() = '\n';
    s.answer = p.answer;
    return s;
  }

  std::string text(uint64_t seed, uint64_t index) const override {
    Dice dice(seed, index);
    std::string text;
    for (uint64_t line = 0; line < 4; ++line) {
      const bool shows_work = dice.chance(0.12);
      const Problem p = draw_in_split(name(), seed, index * 4 + line, Split::kTrain,
                                      [&](Dice& d) { return draw(d, 2, shows_work ? 8 : 12); });
      const std::string between = shows_work ? fmt::format("\n{}", solve(p, 0).thought) : " ";
      text += fmt::format("{}{}={}\n", p.question, between, p.answer);
    }
    return text;
  }

 private:
  static Problem draw(Dice& dice, int64_t fewest, int64_t most) {
    Problem p;
    const int64_t digits = dice.between(fewest, most);
    for (int64_t i = 0; i < digits; ++i) {
      p.numbers.push_back(dice.below(10));
      p.question += static_cast<char>('0' + p.numbers.back());
      p.target = (p.target + p.numbers.back()) % 10;
    }
    p.answer = std::to_string(p.target);
    return p;
  }
};

// a + b, a - b, a * b of up to three digits, the long form digit by digit.
class Arithmetic : public Task {
 public:
  std::string_view name() const override { return "arithmetic"; }

  Problem problem(uint64_t seed, uint64_t index, Split split) const override {
    return draw_in_split(name(), seed, index, split, [](Dice& dice) {
      static constexpr int64_t kBelow[] = {10, 100, 1000};
      Problem p;
      const int64_t op = dice.below(3);
      int64_t a = dice.below(kBelow[dice.below(3)]);
      int64_t b = dice.below(op == 2 ? kBelow[dice.below(2)] : kBelow[dice.below(3)]);
      if (op == 1 && a < b) std::swap(a, b);
      p.numbers = {a, b, op};
      p.target = op == 0 ? a + b : op == 1 ? a - b : a * b;
      p.question = fmt::format("{}{}{}", a, "+-*"[op], b);
      p.answer = std::to_string(p.target);
      return p;
    });
  }
  Verdict verify(const Problem& p, std::string_view answer) const override {
    return verify_integer(p.target, answer);
  }

  // By place value: 345*67 = 345*60 + 345*7; 345+67 = 300+0, 40+60, 5+7.
  WorkedSolution solve(const Problem& p, uint64_t) const override {
    const int64_t a = p.numbers[0], b = p.numbers[1], op = p.numbers[2];
    WorkedSolution s{{}, p.answer};
    int64_t total = 0;
    for (int64_t place = 100; place >= 1; place /= 10) {
      const int64_t a_part = a / place % 10 * place, b_part = b / place % 10 * place;
      if (op == 2 ? b_part == 0 : a_part == 0 && b_part == 0) continue;
      const int64_t value = op == 0 ? a_part + b_part : op == 1 ? a_part - b_part : a * b_part;
      total += value;
      s.thought +=
          fmt::format("{}{}{}={}, {}\n", op == 2 ? a : a_part, "+-*"[op], b_part, value, total);
    }
    return s;
  }

  std::string text(uint64_t seed, uint64_t index) const override {
    Dice dice(seed, index);
    std::string text;
    for (uint64_t line = 0; line < 6; ++line) {
      const Problem p = problem(seed, index * 6 + line, Split::kTrain);
      if (dice.chance(0.3)) text += p.question + "\n" + solve(p, 0).thought;
      text += p.question + "=" + p.answer + "\n";
    }
    return text;
  }
};

// a x + b = c with an integer solution.
class LinearEquation : public Task {
 public:
  std::string_view name() const override { return "linear_equation"; }

  Problem problem(uint64_t seed, uint64_t index, Split split) const override {
    return draw_in_split(name(), seed, index, split, [](Dice& dice) {
      Problem p;
      const int64_t a = dice.between(2, 12), x = dice.between(-20, 20), b = dice.between(-50, 50);
      p.numbers = {a, b, x};
      p.target = x;
      p.question = fmt::format("Solve {}x{}{}={}.", a, b < 0 ? "-" : "+", std::abs(b), a * x + b);
      p.answer = std::to_string(x);
      return p;
    });
  }
  Verdict verify(const Problem& p, std::string_view answer) const override {
    if (answer.starts_with("x=")) answer.remove_prefix(2);
    return verify_integer(p.target, answer);
  }
  WorkedSolution solve(const Problem& p, uint64_t) const override {
    const int64_t a = p.numbers[0], b = p.numbers[1], x = p.numbers[2];
    return {fmt::format("{}x={}{}{}={}\nx={}/{}={}\n", a, a * x + b, b < 0 ? "+" : "-", std::abs(b),
                        a * x, a * x, a, x),
            p.answer};
  }
  std::string text(uint64_t seed, uint64_t index) const override {
    std::string text;
    for (uint64_t line = 0; line < 3; ++line) {
      const Problem p = problem(seed, index * 3 + line, Split::kTrain);
      text += p.question + "\n" + solve(p, 0).thought;
    }
    return text;
  }
};

}  // namespace

std::unique_ptr<Task> make_digit_sum() { return std::make_unique<DigitSum>(); }
std::unique_ptr<Task> make_arithmetic() { return std::make_unique<Arithmetic>(); }
std::unique_ptr<Task> make_linear_equation() { return std::make_unique<LinearEquation>(); }

}  // namespace fathom
