#include "base/utf8.h"

#include <gtest/gtest.h>

#include <string>

namespace fathom {
namespace {

void expect_invalid(std::string_view text, uint32_t bytes, bool incomplete) {
  const Utf8Char c = decode_utf8(text);
  EXPECT_FALSE(c.valid) << testing::PrintToString(text);
  EXPECT_EQ(c.bytes, bytes) << testing::PrintToString(text);
  EXPECT_EQ(c.incomplete, incomplete) << testing::PrintToString(text);
  EXPECT_EQ(c.code_point, 0xfffdu);
}

TEST(Utf8, EveryScalarValueSurvivesEncodeAndDecode) {
  for (uint32_t c = 0; c <= 0x10ffff; ++c) {
    if (c == 0xd800) c = 0xe000;
    std::string text;
    append_utf8(c, text);
    const Utf8Char decoded = decode_utf8(text);
    ASSERT_TRUE(decoded.valid && decoded.code_point == c && decoded.bytes == text.size()) << c;
    ASSERT_EQ(text.size(), c < 0x80 ? 1u : c < 0x800 ? 2u : c < 0x10000 ? 3u : 4u) << c;
    // every proper prefix could still become a character
    for (size_t cut = 1; cut < text.size(); ++cut) {
      ASSERT_TRUE(decode_utf8(text.substr(0, cut)).incomplete) << c;
    }
  }
}

TEST(Utf8, OverlongFormsSurrogatesAndValuesTooLargeAreInvalid) {
  expect_invalid("\xc0\x80", 1, false);
  expect_invalid("\xc1\xbf", 1, false);
  expect_invalid("\xe0\x9f\xbf", 1, false);
  expect_invalid("\xed\xa0\x80", 1, false);
  expect_invalid("\xf0\x8f\xbf\xbf", 1, false);
  expect_invalid("\xf4\x90\x80\x80", 1, false);
  expect_invalid("\xf5\x80\x80\x80", 1, false);
  expect_invalid("\x80", 1, false);
  expect_invalid("\xff", 1, false);
}

TEST(Utf8, AnIllFormedPrefixIsMaximal) {
  expect_invalid("\xe2\x82(", 2, false);
  expect_invalid("\xf0\x9f\x98(", 3, false);
  expect_invalid("\xf0\x9f\x98", 3, true);
  expect_invalid("\xc3(", 1, false);
  expect_invalid("\xed\xa0", 1, false);  // incomplete it may be, but no third byte can save it
}

TEST(Utf8, ReplacementFollowsTheUnicodeExample) {
  // Unicode §3.9, table 3-8: one U+FFFD per maximal ill-formed prefix.
  EXPECT_EQ(replace_invalid_utf8("a\xf1\x80\x80\xe1\x80\xc2"
                                 "b\x80"
                                 "c\x80\xbf"
                                 "d"),
            "a���b�c��d");
  EXPECT_EQ(replace_invalid_utf8("plain é"), "plain é");
  EXPECT_EQ(replace_invalid_utf8(""), "");
}

TEST(Utf8, ValidityIsThatOfEveryCharacter) {
  EXPECT_TRUE(is_valid_utf8(""));
  EXPECT_TRUE(is_valid_utf8("a｜😀"));
  EXPECT_FALSE(is_valid_utf8("a\xff"));
  EXPECT_FALSE(is_valid_utf8("é\xc3"));
}

}  // namespace
}  // namespace fathom
