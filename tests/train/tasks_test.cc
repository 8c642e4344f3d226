// Problems, their verifiers and splits.
#include "train/tasks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "base/error.h"
#include "train/expression.h"

namespace fathom {
namespace {

class EveryTask : public testing::TestWithParam<std::string> {};

TEST_P(EveryTask, AcceptsItsOwnAnswersAndRefusesOthers) {
  const auto task = make_task(GetParam());
  for (uint64_t i = 0; i < 2000; ++i) {
    const Problem p = task->problem(1, i, Split::kTest);
    EXPECT_TRUE(task->verify(p, p.answer).correct()) << p.question << " " << p.answer;
    for (const char* wrong :
         {"", "none", "1/0", "((((", "99999999999999999999", "\xff\xfe", "1+1=2"}) {
      EXPECT_FALSE(task->verify(p, wrong).correct()) << p.question << " " << wrong;
    }
    const WorkedSolution s = task->solve(p, i);
    const Verdict verdict = task->verify(p, answer_of(s.thought + "</think>\n\n" + s.answer));
    EXPECT_TRUE(verdict.correct() || s.answer == "none") << p.question << "\n"
                                                         << s.thought << s.answer;
  }
}

TEST_P(EveryTask, SplitsNeverMeetUnderAnySeed) {
  const auto task = make_task(GetParam());
  std::set<std::vector<int64_t>> test;
  const auto canonical = [](Problem p) {
    std::sort(p.numbers.begin(), p.numbers.end());
    return p.numbers;
  };
  for (uint64_t i = 0; i < 3000; ++i) test.insert(canonical(task->problem(i % 7, i, Split::kTest)));
  for (uint64_t i = 0; i < 20000; ++i) {
    EXPECT_FALSE(test.contains(canonical(task->problem(i % 5, i, Split::kTrain)))) << i;
    if (i % 8 == 0) {
      EXPECT_FALSE(test.contains(canonical(task->problem(i % 5, i, Split::kValidation)))) << i;
    }
  }
}

TEST_P(EveryTask, IsAFunctionOfSeedAndIndex) {
  const auto task = make_task(GetParam());
  std::set<std::string> questions;
  for (uint64_t i = 0; i < 200; ++i) {
    EXPECT_EQ(task->problem(3, i, Split::kTrain).question,
              task->problem(3, i, Split::kTrain).question);
    EXPECT_EQ(task->text(3, i), task->text(3, i));
    questions.insert(task->problem(3, i, Split::kTrain).question);
    EXPECT_LT(task->text(3, i).size(), 400u);
  }
  EXPECT_GT(questions.size(), 150u);
}

INSTANTIATE_TEST_SUITE_P(All, EveryTask, testing::ValuesIn(task_names()),
                         [](const auto& parameter) { return parameter.param; });

TEST(Countdown, TextsNeverHoldATestTriple) {
  const auto task = make_task("countdown");
  // Every search text begins with its question; its numbers must be a training triple.
  int searches = 0;
  for (uint64_t i = 0; i < 3000; ++i) {
    int64_t a = 0, b = 0, c = 0, target = 0;
    if (std::sscanf(task->text(9, i).c_str(), "Use %ld, %ld and %ld to make %ld.", &a, &b, &c,
                    &target) != 4)
      continue;
    ++searches;
    EXPECT_EQ(split_of(hash_numbers("countdown", {a, b, c})), Split::kTrain);
  }
  EXPECT_GT(searches, 800);
}

TEST(Countdown, SearchesHitInTheWindowThatLearningNeeds) {
  const auto task = make_task("countdown");
  int right = 0;
  for (uint64_t i = 0; i < 2000; ++i) {
    right += task->solve(task->problem(1, i, Split::kTrain), i).answer != "none" ? 1 : 0;
  }
  EXPECT_GT(right, 2000 * 0.2);
  EXPECT_LT(right, 2000 * 0.45);
}

TEST(Countdown, ReadsItsOwnQuestionsAndNoOthers) {
  const auto task = make_task("countdown");
  for (uint64_t i = 0; i < 200; ++i) {
    const Problem p = task->problem(2, i, Split::kTest);
    const auto read = task->read(p.question);
    ASSERT_TRUE(read) << p.question;
    EXPECT_EQ(read->numbers, p.numbers);
    EXPECT_EQ(read->target, p.target);
    EXPECT_TRUE(task->verify(*read, p.answer).correct());
  }
  for (const char* other : {"", "Use 3, 7 and 25 to make 46", "Use 3, 7 and 25 to make 046.",
                            "Use 99999999999999999999, 1 and 2 to make 3.",
                            "What is 1 and 2 and 3 and 4?", "Use 1, 2, 3 and 4 to make 5."}) {
    EXPECT_FALSE(task->read(other)) << other;
  }
}

TEST(Countdown, SaysWhyAnAnswerIsWrong) {
  const auto task = make_task("countdown");
  const Problem p{"", "", {3, 7, 25}, 46};
  EXPECT_TRUE(task->verify(p, "(7*3)+25").correct());
  EXPECT_TRUE(task->verify(p, " 25 + 3 × 7 = 46").correct());
  EXPECT_EQ(task->verify(p, "25+7*3+0").kind, VerdictKind::kWrongNumbers);
  EXPECT_EQ(task->verify(p, "25+7").reason, "uses 7, 25, expected 3, 7, 25");
  EXPECT_EQ(task->verify(p, "25+7+3").reason, "35, expected 46");
  EXPECT_EQ(task->verify(p, "25/7+3").reason, "division that is not exact");
  EXPECT_EQ(task->verify(p, "").kind, VerdictKind::kNoAnswer);
}

TEST(Expression, EvaluatesAsPeopleWrite) {
  const auto value = [](std::string_view text) { return evaluate_expression(text).value; };
  EXPECT_EQ(value("2+3*4"), 14);
  EXPECT_EQ(value("(2+3)*4"), 20);
  EXPECT_EQ(value("20-3-4"), 13);
  EXPECT_EQ(value("-(3-10) / 7"), 1);
  EXPECT_EQ(value("12 ÷ 4 × 2"), 6);
}

TEST(Expression, RefusesWithAReason) {
  const std::pair<std::string, const char*> kCases[] = {
      {"", "ends too early"},
      {"2+", "ends too early"},
      {"2 3", "unexpected character"},
      {"(2", "missing )"},
      {"7/2", "division that is not exact"},
      {"7/(3-3)", "division by zero"},
      {"9223372036854775807+1", "too large"},
      {"99999999999999999999", "too large"},
      {"a", "expected a number"},
      {std::string(100, '(') + "1", "nested too deeply"},
      {std::string(600, '1'), "longer than an expression may be"},
      {"-9223372036854775807-1-1", "too large"}};
  for (const auto& [text, why] : kCases) {
    const ExpressionResult r = evaluate_expression(text);
    EXPECT_FALSE(r.ok) << text;
    EXPECT_EQ(r.error, why) << text;
  }
}

TEST(AnswerOf, TakesWhatFollowsTheThought) {
  EXPECT_EQ(answer_of("tries</think>\n\n(1+2)*3\n"), "(1+2)*3");
  EXPECT_EQ(answer_of("a</think> b </think><answer> 7 </answer> tail"), "7");
  EXPECT_EQ(answer_of("Answer: 12"), "12");
  EXPECT_EQ(answer_of("</think>"), "");
}

TEST(PassAtK, IsTheProbabilityOfAHitAmongKOfTheSamples) {
  EXPECT_DOUBLE_EQ(pass_at_k(4, 0, 2), 0);
  EXPECT_DOUBLE_EQ(pass_at_k(4, 1, 1), 0.25);
  EXPECT_NEAR(pass_at_k(4, 2, 2), 1 - 1.0 / 6, 1e-15);
  EXPECT_DOUBLE_EQ(pass_at_k(16, 1, 16), 1);
}

TEST(Tasks, AnUnknownNameIsAnsweredWithTheChoices) {
  try {
    make_task("sudoku");
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(
        std::string(e.what()).find("task 'sudoku': unknown, expected one of countdown, digit_sum"),
        std::string::npos);
  }
}

}  // namespace
}  // namespace fathom
