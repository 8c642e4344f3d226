#include "text/thinking_parser.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace fathom {
namespace {

constexpr ThinkingMarks kOpen{"<think>", "</think>", true};
constexpr ThinkingMarks kClosed{"<think>", "</think>", false};

// The labelled text, thoughts in braces: one line per label change, whatever the pieces.
std::string labelled(const std::vector<OutputPart>& parts) {
  std::string text;
  bool thought = false;
  for (const OutputPart& part : parts) {
    EXPECT_FALSE(part.text.empty());
    if (part.thought != thought) text += part.thought ? "{" : "}";
    thought = part.thought;
    text += part.text;
  }
  return text;
}

std::string parse(std::optional<ThinkingMarks> marks, const std::vector<std::string>& pieces) {
  ThinkingParser parser(marks);
  std::vector<OutputPart> all;
  const auto take = [&](const std::vector<OutputPart>& parts) {
    all.insert(all.end(), parts.begin(), parts.end());
  };
  for (const std::string& piece : pieces) take(parser.push(piece));
  take(parser.finish());
  return labelled(all);
}

TEST(ThinkingParser, SplitsThoughtFromAnswer) {
  EXPECT_EQ(parse(kOpen, {"why\n</think>\n\nbecause"}), "{why\n}\n\nbecause");
  EXPECT_EQ(parse(kClosed, {"<think>why</think>because"}), "{why}because");
  // the prompt's mark repeated
  EXPECT_EQ(parse(kOpen, {"<think>why</think>because"}), "{why}because");
  EXPECT_EQ(parse(kOpen, {"</think>because"}), "because");
  EXPECT_EQ(parse(kClosed, {"<think></think>because"}), "because");
}

TEST(ThinkingParser, LeavesOtherMarksAsText) {
  EXPECT_EQ(parse(std::nullopt, {"<think>a</think>b"}), "<think>a</think>b");
  EXPECT_EQ(parse(kClosed, {"I <think> so</think>"}), "I <think> so</think>");
  EXPECT_EQ(parse(kOpen, {"a<think>b</think>c<think>d</think>e"}), "{a<think>b}c<think>d</think>e");
}

TEST(ThinkingParser, FlushesAnUnfinishedThoughtOrMark) {
  EXPECT_EQ(parse(kOpen, {"never ends</thi"}), "{never ends</thi");
  EXPECT_EQ(parse(kClosed, {"<thin"}), "<thin");
  EXPECT_EQ(parse(kOpen, {"<thin"}), "{<thin");
  EXPECT_EQ(parse(kOpen, {"", ""}), "");
}

TEST(ThinkingParser, HoldsBackOnlyWhatMayBecomeAMark) {
  ThinkingParser parser(kOpen);
  EXPECT_EQ(labelled(parser.push("ab<")), "{ab");
  EXPECT_EQ(labelled(parser.push("/think")), "");
  EXPECT_EQ(labelled(parser.push("<")), "{</think");
  EXPECT_TRUE(parser.in_thought());
  EXPECT_EQ(labelled(parser.push("/think>x<")), "x<");
  EXPECT_FALSE(parser.in_thought());
  EXPECT_EQ(labelled(parser.push("/think>")), "/think>");
  EXPECT_TRUE(parser.finish().empty());
}

TEST(ThinkingParser, GivesTheSameForEverySplit) {
  const char* const words[] = {"<think>", "</think>", "<", "</", "</thi", "think>", "a", "é", "\n"};
  for (uint64_t round = 0; round < 3000; ++round) {
    const RandomKey key{7, RandomPurpose::kTest, round};
    std::string text;
    for (uint64_t i = 0; i < random_bits(key, 0) % 8; ++i)
      text += words[random_bits(key, 1 + i) % 9];
    std::vector<std::string> bytes, pieces(1);
    for (size_t i = 0; i < text.size(); ++i) {
      bytes.emplace_back(1, text[i]);
      if (random_bits(key, 100 + i) % 3 == 0) pieces.emplace_back();
      pieces.back() += text[i];
    }
    for (const std::optional<ThinkingMarks>& marks :
         {std::optional<ThinkingMarks>(kOpen), {kClosed}, {std::nullopt}}) {
      const std::string whole = parse(marks, {text});
      EXPECT_EQ(parse(marks, bytes), whole) << text;
      EXPECT_EQ(parse(marks, pieces), whole) << text;
    }
  }
}

}  // namespace
}  // namespace fathom
