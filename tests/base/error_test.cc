#include "base/error.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/base/test_files.h"

namespace fathom {
namespace {

TEST(Error, FailFormatsItsTextAndMeansBadInput) {
  EXPECT_EQ(error_of([] { fail("{}: found {}, expected {}", "a.json", 3, 4); }),
            "a.json: found 3, expected 4");
}

TEST(Error, FailResourceMeansNoResources) {
  EXPECT_EQ(error_of([] { fail_resource("disk full"); }, ExitCode::kNoResources), "disk full");
}

TEST(Error, QuotedKeepsPrintableUnicode) {
  EXPECT_EQ(quoted("model.norm"), "'model.norm'");
  EXPECT_EQ(quoted("é｜▁😀"), "'é｜▁😀'");
  EXPECT_EQ(quoted(std::string("from a string")), "'from a string'");
  EXPECT_EQ(quoted(""), "''");
}

TEST(Error, QuotedEscapesControlBytesAndInvalidUtf8) {
  EXPECT_EQ(quoted("a\nb\x1b[2J\x7f"), "'a\\x0ab\\x1b[2J\\x7f'");
  EXPECT_EQ(quoted(std::string_view("\0x", 2)), "'\\x00x'");
  EXPECT_EQ(quoted("\xc2\x85"), "'\\xc2\\x85'");  // U+0085, a C1 control
  EXPECT_EQ(quoted("\xff\xc3(\xe2\x82"), "'\\xff\\xc3(\\xe2\\x82'");
  EXPECT_EQ(quoted("\xed\xa0\x80"), "'\\xed\\xa0\\x80'");  // a surrogate
}

TEST(Error, QuotedCutsAfter128BytesBetweenCharacters) {
  EXPECT_EQ(quoted(std::string(128, 'a')), "'" + std::string(128, 'a') + "'");
  EXPECT_EQ(quoted(std::string(129, 'a')), "'" + std::string(128, 'a') + "…'");
  // The character that begins before the cut is kept whole.
  EXPECT_EQ(quoted(std::string(127, 'a') + "éb"), "'" + std::string(127, 'a') + "é…'");
}

}  // namespace
}  // namespace fathom
