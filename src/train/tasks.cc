#include "train/tasks.h"

#include <algorithm>

#include "base/error.h"
#include "base/random.h"
#include "train/expression.h"
#include "train/task_list.h"

namespace fathom {
namespace {

struct Entry {
  const char* name;
  std::unique_ptr<Task> (*make)();
};
constexpr Entry kTasks[] = {
    {"countdown", make_countdown},
    {"digit_sum", make_digit_sum},
    {"arithmetic", make_arithmetic},
    {"linear_equation", make_linear_equation},
    {"word_problem_en", [] { return make_word_problem(Language::kEnglish); }},
    {"word_problem_de", [] { return make_word_problem(Language::kGerman); }},
    {"word_problem_zh", [] { return make_word_problem(Language::kChinese); }},
};

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n";
  const size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) - begin + 1);
}

}  // namespace

std::unique_ptr<Task> make_task(std::string_view name) {
  for (const Entry& entry : kTasks) {
    if (name == entry.name) return entry.make();
  }
  fail("task {}: unknown, expected one of {}", quoted(name), fmt::join(task_names(), ", "));
}

const std::vector<std::string>& task_names() {
  static const std::vector<std::string> kNames = [] {
    std::vector<std::string> names;
    for (const Entry& entry : kTasks) names.emplace_back(entry.name);
    return names;
  }();
  return kNames;
}

std::optional<Problem> Task::read(std::string_view) const { return std::nullopt; }

std::string_view verdict_name(VerdictKind kind) {
  switch (kind) {
    case VerdictKind::kCorrect:
      return "correct";
    case VerdictKind::kNoAnswer:
      return "no answer";
    case VerdictKind::kMalformed:
      return "malformed";
    case VerdictKind::kWrongNumbers:
      return "wrong numbers";
    case VerdictKind::kWrongValue:
      return "wrong value";
  }
  return "";
}

std::string_view answer_of(std::string_view text) {
  if (const size_t end = text.rfind("</think>"); end != std::string_view::npos)
    text.remove_prefix(end + 8);
  if (const size_t open = text.rfind("<answer>"); open != std::string_view::npos) {
    text.remove_prefix(open + 8);
    text = text.substr(0, text.find("</answer>"));
  }
  text = trimmed(text);
  if (text.starts_with("Answer:")) text = trimmed(text.substr(7));
  return text;
}

int64_t Dice::below(int64_t n) {
  const uint64_t bits = random_bits(
      {.seed = seed_, .purpose = RandomPurpose::kData, .sequence = stream_}, position_++);
  // off by less than n / 2^64 from uniform
  return static_cast<int64_t>(bits % static_cast<uint64_t>(n));
}

bool Dice::chance(double probability) {
  return random_uniform({.seed = seed_, .purpose = RandomPurpose::kData, .sequence = stream_},
                        position_++) < probability;
}

Split split_of(uint64_t hash) {
  switch (hash % 20) {
    case 0:
      return Split::kTest;
    case 1:
      return Split::kValidation;
    default:
      return Split::kTrain;
  }
}

uint64_t hash_numbers(std::string_view name, std::vector<int64_t> numbers) {
  std::sort(numbers.begin(), numbers.end());
  uint64_t hash = 0;
  for (const char letter : name) hash = mix_bits(hash ^ static_cast<unsigned char>(letter));
  for (const int64_t number : numbers) hash = mix_bits(hash ^ static_cast<uint64_t>(number));
  return hash;
}

double pass_at_k(int64_t n, int64_t c, int64_t k) {
  if (n - c < k) return 1;
  double all_wrong = 1;  // product of (n - c - i) / (n - i)
  for (int64_t i = 0; i < k; ++i)
    all_wrong *= static_cast<double>(n - c - i) / static_cast<double>(n - i);
  return 1 - all_wrong;
}

Verdict verify_integer(int64_t expected, std::string_view answer) {
  const std::string_view text = trimmed(answer);
  if (text.empty()) return {VerdictKind::kNoAnswer, "no answer"};
  const ExpressionResult result = evaluate_expression(text);
  if (!result.ok) return {VerdictKind::kMalformed, result.error};
  if (result.numbers.size() != 1) return {VerdictKind::kMalformed, "expected one number"};
  if (result.value != expected) {
    return {VerdictKind::kWrongValue, fmt::format("{}, expected {}", result.value, expected)};
  }
  return {VerdictKind::kCorrect, {}};
}

}  // namespace fathom
