// Integer expressions as people write them, evaluated exactly: the verifier behind every arithmetic
// task.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

struct ExpressionResult {
  bool ok = false;
  std::string error;  // why not, in a few words
  int64_t value = 0;
  std::vector<int64_t> numbers;  // as written, left to right
};

// + - * / with the usual precedence, parentheses, a minus sign in front, the signs × ÷ − also,
// blanks anywhere. Division must be exact and every intermediate value fit an int64. Accepts any
// bytes up to kLongestExpression; nesting up to 64.
inline constexpr size_t kLongestExpression = 512;
ExpressionResult evaluate_expression(std::string_view text);

}  // namespace fathom
