#include "text/unicode.h"

#include <gtest/gtest.h>

namespace fathom {
namespace {

TEST(Unicode, ClassesAreGeneralCategories) {
  EXPECT_EQ(char_class('a'), CharClass::kLetter);
  EXPECT_EQ(char_class(0x4f60), CharClass::kLetter);
  EXPECT_EQ(char_class(0x301), CharClass::kMark);
  EXPECT_EQ(char_class(0x664), CharClass::kNumber);
  EXPECT_EQ(char_class(0xb2), CharClass::kNumber);    // No
  EXPECT_EQ(char_class(0x2167), CharClass::kNumber);  // Nl
  EXPECT_EQ(char_class('_'), CharClass::kPunctuation);
  EXPECT_EQ(char_class('$'), CharClass::kSymbol);
  EXPECT_EQ(char_class(0xfffd), CharClass::kSymbol);
  EXPECT_EQ(char_class(0x2028), CharClass::kSpace);
  EXPECT_EQ(char_class(0), CharClass::kOther);
  EXPECT_EQ(char_class(0x10ffff), CharClass::kOther);
}

TEST(Unicode, NfcComposesMarksInCanonicalOrder) {
  EXPECT_EQ(to_nfc("plain \u00e9"), "plain \u00e9");
  EXPECT_EQ(to_nfc("e\u0301"), "\u00e9");
  EXPECT_EQ(to_nfc("q\u0307\u0323"), "q\u0323\u0307");  // reordered, nothing to compose
  EXPECT_EQ(to_nfc("a\u0308\u0323"), "\u1ea1\u0308");   // the lower class goes first
  EXPECT_EQ(to_nfc("\u1e9b\u0323"), "\u1e9b\u0323");
  EXPECT_EQ(to_nfc("\u212b\u2126\u212a"), "\u00c5\u03a9K");  // singletons
  EXPECT_EQ(to_nfc("\u0344"), "\u0308\u0301");               // never recomposed
  EXPECT_EQ(to_nfc("\u0958"), "\u0915\u093c");               // composition exclusion
  EXPECT_EQ(to_nfc("a\u0315\u0300"), "\u00e0\u0315");        // reached over a higher class
  // blocked by one of its own class
  EXPECT_EQ(to_nfc("a\u0305\u0301"), "a\u0305\u0301");
  // a starter is blocked by any mark
  EXPECT_EQ(to_nfc("\u1100\u0301\u1161"), "\u1100\u0301\u1161");
  EXPECT_EQ(to_nfc("a\u0327\u0327\u0301"), "\u00e1\u0327\u0327");
  EXPECT_EQ(to_nfc("\U0001d15e"), "\U0001d157\U0001d165");
}

TEST(Unicode, NfcComposesHangulByArithmetic) {
  EXPECT_EQ(to_nfc("\u1100\u1161\u11a8"), "\uac01");
  EXPECT_EQ(to_nfc("\uac00\u11a8"), "\uac01");
  EXPECT_EQ(to_nfc("\uac01\u11a8"), "\uac01\u11a8");
  EXPECT_EQ(to_nfc("\u1100\u1161\u11a7"), "\uac00\u11a7");  // U+11A7 is no tail
}

TEST(Unicode, NfcKeepsIllFormedBytesAndComposesNothingAcrossThem) {
  EXPECT_EQ(to_nfc("e\xff\u0301\xcc"), "e\xff\u0301\xcc");
}

}  // namespace
}  // namespace fathom
