#include "text/stop_strings.h"

#include <gtest/gtest.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/random.h"

namespace fathom {
namespace {

std::string message_of(std::vector<std::string> stops) {
  try {
    StopStrings matcher(std::move(stops));
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing thrown";
}

// "text|" if stopped, "text" if not.
std::string run(const std::vector<std::string>& stops, const std::vector<std::string>& pieces) {
  StopStrings matcher(stops);
  std::string text;
  for (const std::string& piece : pieces) text += matcher.push(piece);
  text += matcher.finish();
  return text + (matcher.stopped() ? "|" : "");
}

// The definition, by search: the first end of a match, of those the longest.
std::string by_search(const std::vector<std::string>& stops, const std::string& text) {
  for (size_t end = 1; end <= text.size(); ++end) {
    size_t longest = 0;
    for (const std::string& stop : stops) {
      if (std::string_view(text).substr(0, end).ends_with(stop))
        longest = std::max(longest, stop.size());
    }
    if (longest > 0) return text.substr(0, end - longest) + "|";
  }
  return text;
}

TEST(StopStrings, StopsAcrossPieces) {
  EXPECT_EQ(run({"END"}, {"go E", "N", "D and on"}), "go |");
  EXPECT_EQ(run({"END"}, {"go E", "N"}), "go EN");
  EXPECT_EQ(run({"abcd", "bc"}, {"abcd"}), "a|");
  EXPECT_EQ(run({"c", "abc"}, {"xabc"}), "x|");
  EXPECT_EQ(run({}, {"any", "thing"}), "anything");
}

TEST(StopStrings, HoldsBackOnlyPossibleBeginnings) {
  StopStrings matcher({"aab", "\n\n"});
  EXPECT_EQ(matcher.push("xaa"), "x");
  EXPECT_EQ(matcher.push("a"), "a");
  EXPECT_EQ(matcher.push("c\n"), "aac");
  EXPECT_EQ(matcher.push("d"), "\nd");
  EXPECT_FALSE(matcher.stopped());
  EXPECT_EQ(matcher.push("aab and more"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.push("later") + matcher.finish(), "");
}

TEST(StopStrings, GivesTheSameForEverySplit) {
  for (uint64_t round = 0; round < 5000; ++round) {
    const RandomKey key{3, RandomPurpose::kTest, round};
    uint64_t position = 0;
    const auto word = [&](uint64_t longest) {
      std::string text;
      for (uint64_t length = 1 + random_bits(key, position++) % longest; length > 0; --length) {
        text += static_cast<char>('a' + random_bits(key, position++) % 2);
      }
      return text;
    };
    std::vector<std::string> stops;
    for (uint64_t i = random_bits(key, position++) % 4; i > 0; --i) stops.push_back(word(12));
    const std::string text = word(40);
    std::vector<std::string> bytes, pieces(1);
    for (const char c : text) {
      bytes.emplace_back(1, c);
      if (random_bits(key, position++) % 3 == 0) pieces.emplace_back();
      pieces.back() += c;
    }
    const std::string expected = by_search(stops, text);
    EXPECT_EQ(run(stops, {text}), expected) << text;
    EXPECT_EQ(run(stops, bytes), expected) << text;
    EXPECT_EQ(run(stops, pieces), expected) << text;
  }
}

TEST(StopStrings, TakesLinearTimeOnLongHeldText) {
  const std::string stop = std::string(1 << 18, 'a') + "b";
  StopStrings matcher({stop});
  const double start = seconds_now();
  size_t emitted = 0;
  for (int i = 0; i < 1 << 20; ++i) emitted += matcher.push("a").size();
  EXPECT_EQ(emitted, (1u << 20) - (1u << 18));
  EXPECT_EQ(matcher.finish().size(), 1u << 18);
  // moving the held text for every byte would be 2^38 bytes and more
  EXPECT_LT(seconds_now() - start, 20.0);
}

TEST(StopStrings, RefusesTooManyAndEmptyOnes) {
  EXPECT_EQ(message_of(std::vector<std::string>(16, "x")), "nothing thrown");
  EXPECT_EQ(message_of(std::vector<std::string>(17, "x")), "stop: 17 strings, expected at most 16");
  EXPECT_EQ(message_of({"x", ""}), "stop: string 1: empty, expected at least one byte");
}

}  // namespace
}  // namespace fathom
