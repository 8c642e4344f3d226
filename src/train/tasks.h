// Problems without end, each with an exact verifier: what small models are trained and judged on.
//
// A problem is a pure function of (seed, split, index). The splits are disjoint by construction: a
// hash of the problem's canonical form (for Countdown the multiset of its numbers) says which split
// it belongs to, and only problems of the split asked for are drawn; so no test problem, under
// whatever seed, can occur in a text made for training.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

enum class Split { kTrain, kValidation, kTest };  // 90 %, 5 %, 5 % of the canonical forms

struct Problem {
  std::string question;  // as a user would type it
  std::string answer;    // one right answer
  std::vector<int64_t> numbers;
  int64_t target = 0;
};

enum class VerdictKind { kCorrect, kNoAnswer, kMalformed, kWrongNumbers, kWrongValue };
struct Verdict {
  VerdictKind kind = VerdictKind::kNoAnswer;
  std::string reason;  // "12, expected 46"
  bool correct() const { return kind == VerdictKind::kCorrect; }
};
std::string_view verdict_name(VerdictKind kind);

// A worked solution: what goes between <think> and </think>, and what follows.
struct WorkedSolution {
  std::string thought, answer;
};

class Task {
 public:
  virtual ~Task() = default;
  virtual std::string_view name() const = 0;
  virtual Problem problem(uint64_t seed, uint64_t index, Split split) const = 0;
  // The problem that a question of this task's own form asks ("Use 3, 7 and 25 to make 46."),
  // without its answer; absent for any other text, and for tasks whose words do not say what to
  // verify.
  virtual std::optional<Problem> read(std::string_view question) const;
  // Never throws, whatever the bytes.
  virtual Verdict verify(const Problem& problem, std::string_view answer) const = 0;
  // As a teacher would think aloud; not always with success, where failing is part of the lesson.
  virtual WorkedSolution solve(const Problem& problem, uint64_t seed) const = 0;
  // One document of pre-training text about this task, made of problems of the training split only.
  virtual std::string text(uint64_t seed, uint64_t index) const = 0;
};

// "countdown", "digit_sum", "arithmetic", "linear_equation", "word_problem_en", "word_problem_de",
// "word_problem_zh". Throws, naming the choices.
std::unique_ptr<Task> make_task(std::string_view name);
const std::vector<std::string>& task_names();

// The answer of a completion: what follows the last </think> (all of it if there is none), without
// <answer> tags around it, "Answer:" before it, or white space.
std::string_view answer_of(std::string_view completion);

// A stream of random choices for one purpose: made from a key, so that no state is ever saved.
class Dice {
 public:
  Dice(uint64_t seed, uint64_t stream) : seed_(seed), stream_(stream) {}
  int64_t below(int64_t n);  // uniform in [0, n)
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool chance(double probability);

 private:
  uint64_t seed_, stream_, position_ = 0;
};

// Which split the canonical form belongs to.
Split split_of(uint64_t hash);
uint64_t hash_numbers(std::string_view name, std::vector<int64_t> numbers);

// Unbiased estimate of pass@k from n samples of which c were right: 1 - C(n - c, k) / C(n, k).
// REQUIRES: 1 <= k <= n.
double pass_at_k(int64_t n, int64_t c, int64_t k);

}  // namespace fathom
