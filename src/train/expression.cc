#include "train/expression.h"

namespace fathom {
namespace {

constexpr int kDeepest = 64;

// Recursive descent; the first error stops everything.
class Parser {
 public:
  explicit Parser(std::string_view text) : rest_(text) {}

  ExpressionResult run() {
    const int64_t value = sum(0);
    skip_blanks();
    if (ok() && !rest_.empty()) fail("unexpected character");
    result_.ok = ok();
    result_.value = ok() ? value : 0;
    return std::move(result_);
  }

 private:
  bool ok() const { return result_.error.empty(); }
  int64_t fail(const char* why) {
    if (ok()) result_.error = why;
    rest_ = {};
    return 0;
  }
  void skip_blanks() {
    while (!rest_.empty() &&
           (rest_[0] == ' ' || rest_[0] == '\t' || rest_[0] == '\n' || rest_[0] == '\r')) {
      rest_.remove_prefix(1);
    }
  }
  bool take(std::string_view sign) {
    skip_blanks();
    if (!rest_.starts_with(sign)) return false;
    rest_.remove_prefix(sign.size());
    return true;
  }

  int64_t sum(int depth) {
    int64_t value = product(depth);
    while (ok()) {
      if (take("+")) {
        if (__builtin_add_overflow(value, product(depth), &value)) return fail("too large");
      } else if (take("-") || take("−")) {
        if (__builtin_sub_overflow(value, product(depth), &value)) return fail("too large");
      } else {
        break;
      }
    }
    return value;
  }

  int64_t product(int depth) {
    int64_t value = factor(depth);
    while (ok()) {
      if (take("*") || take("×")) {
        if (__builtin_mul_overflow(value, factor(depth), &value)) return fail("too large");
      } else if (take("/") || take("÷")) {
        const int64_t by = factor(depth);
        if (!ok()) return 0;
        if (by == 0) return fail("division by zero");
        if (by == -1 && value == INT64_MIN) return fail("too large");
        if (value % by != 0) return fail("division that is not exact");
        value /= by;
      } else {
        break;
      }
    }
    return value;
  }

  int64_t factor(int depth) {
    if (depth > kDeepest) return fail("nested too deeply");
    if (take("(")) {
      const int64_t value = sum(depth + 1);
      if (ok() && !take(")")) return fail("missing )");
      return value;
    }
    if (take("-") || take("−")) {
      const int64_t value = factor(depth + 1);
      return value == INT64_MIN ? fail("too large") : -value;
    }
    return number();
  }

  int64_t number() {
    skip_blanks();
    if (rest_.empty() || rest_[0] < '0' || rest_[0] > '9') {
      return fail(rest_.empty() ? "ends too early" : "expected a number");
    }
    int64_t value = 0;
    while (!rest_.empty() && rest_[0] >= '0' && rest_[0] <= '9') {
      if (__builtin_mul_overflow(value, int64_t{10}, &value) ||
          __builtin_add_overflow(value, int64_t{rest_[0] - '0'}, &value)) {
        return fail("too large");
      }
      rest_.remove_prefix(1);
    }
    result_.numbers.push_back(value);
    return value;
  }

  std::string_view rest_;
  ExpressionResult result_;
};

}  // namespace

ExpressionResult evaluate_expression(std::string_view text) {
  if (text.size() > kLongestExpression) return {false, "longer than an expression may be", 0, {}};
  return Parser(text).run();
}

}  // namespace fathom
