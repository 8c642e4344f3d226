// The tasks of tasks.h, one constructor each. Internal to src/train.
#pragma once

#include <memory>

#include "train/tasks.h"

namespace fathom {

std::unique_ptr<Task> make_countdown();
std::unique_ptr<Task> make_digit_sum();
std::unique_ptr<Task> make_arithmetic();
std::unique_ptr<Task> make_linear_equation();
enum class Language { kEnglish, kGerman, kChinese };
std::unique_ptr<Task> make_word_problem(Language language);

// Draws until `draw(dice)` gives a problem whose canonical form lies in the split; pure function of
// its arguments.
template <class Draw>
Problem draw_in_split(std::string_view name, uint64_t seed, uint64_t index, Split split,
                      Draw draw) {
  for (uint64_t attempt = 0;; ++attempt) {
    Dice dice(seed * 3 + static_cast<uint64_t>(split), index << 16 | attempt);
    Problem problem = draw(dice);
    if (split_of(hash_numbers(name, problem.numbers)) == split) return problem;
  }
}

// The verdict on a text that shall be one integer.
Verdict verify_integer(int64_t expected, std::string_view answer);

}  // namespace fathom
