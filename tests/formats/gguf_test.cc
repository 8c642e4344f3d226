#include "formats/gguf.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "tests/base/test_files.h"
#include "tests/formats/gguf_builder.h"

namespace fathom {
namespace {

Gguf parse(const std::string& bytes) { return Gguf::parse(std::as_bytes(std::span(bytes)), "f"); }
std::string refusal(const std::string& bytes) {
  return error_of([&] { parse(bytes); });
}
std::string refusal(const GgufBuilder& builder) { return refusal(builder.bytes()); }

constexpr uint32_t kF32 = 0;

// An array value of `elements`, already in bytes.
std::string array(uint32_t type, uint64_t count, const std::string& elements) {
  return le_bytes(type) + le_bytes(count) + elements;
}

TEST(Gguf, EveryMetadataTypeReadsBackWidened) {
  const std::string bytes =
      GgufBuilder()
          .key("u8", 0, le_bytes<uint8_t>(255))
          .key("i8", 1, le_bytes<int8_t>(-128))
          .key("u16", 2, le_bytes<uint16_t>(65535))
          .key("i16", 3, le_bytes<int16_t>(-32768))
          .key("u32", 4, le_bytes<uint32_t>(4294967295))
          .key("i32", 5, le_bytes<int32_t>(-5))
          .key("f32", 6, le_bytes(1.5f))
          .key("yes", 7, std::string("\1", 1))
          .key("no", 7, std::string("\0", 1))
          .key("text", 8, gguf_string("é\xff"))
          .key("u64", 10, le_bytes<uint64_t>(1ull << 62))
          .key("i64", 11, le_bytes<int64_t>(INT64_MIN))
          .key("f64", 12, le_bytes(-2.25))
          .key("u16s", 9, array(2, 2, le_bytes<uint16_t>(1) + le_bytes<uint16_t>(65535)))
          .key("i32s", 9,
               array(5, 3, le_bytes<int32_t>(1) + le_bytes<int32_t>(-2) + le_bytes<int32_t>(3)))
          .key("f32s", 9, array(6, 2, le_bytes(0.5f) + le_bytes(-1.0f)))
          .key("bools", 9, array(7, 3, std::string("\1\0\1", 3)))
          .key("texts", 9, array(8, 2, gguf_string("a b") + gguf_string("")))
          .key("none", 9, array(4, 0, ""))
          .bytes();
  const Gguf gguf = parse(bytes);
  EXPECT_EQ(gguf.metadata().size(), 19u);
  EXPECT_EQ(gguf.integer("u8", 0, 255), 255);
  EXPECT_EQ(gguf.integer("i8", -128, 0), -128);
  EXPECT_EQ(gguf.integer("u16", 0, 65535), 65535);
  EXPECT_EQ(gguf.integer("i16", -32768, 0), -32768);
  EXPECT_EQ(gguf.integer("u32", 0, INT64_MAX), 4294967295);
  EXPECT_EQ(gguf.integer("i32", -5, -5), -5);
  EXPECT_EQ(gguf.integer("u64", 0, INT64_MAX), int64_t{1} << 62);
  EXPECT_EQ(gguf.integer("i64", INT64_MIN, 0), INT64_MIN);
  EXPECT_EQ(gguf.number("f32"), 1.5);
  EXPECT_EQ(gguf.number("f64"), -2.25);
  EXPECT_EQ(gguf.number("i32"), -5.0);
  EXPECT_EQ(gguf.number("u8"), 255.0);
  EXPECT_EQ(gguf.optional_boolean("yes"), true);
  EXPECT_EQ(gguf.optional_boolean("no"), false);
  EXPECT_EQ(gguf.string("text"), "é\xff");
  EXPECT_EQ(gguf.optional_integers("u16s", 0, 65535), (std::vector<int64_t>{1, 65535}));
  EXPECT_EQ(gguf.optional_integers("i32s", -2, 3), (std::vector<int64_t>{1, -2, 3}));
  EXPECT_EQ(gguf.optional_integers("none", 0, 0), std::vector<int64_t>{});
  EXPECT_EQ(gguf.optional_numbers("f32s"), (std::vector<double>{0.5, -1.0}));
  EXPECT_EQ(*gguf.optional_strings("texts"), (std::vector<std::string>{"a b", ""}));
  EXPECT_EQ(std::get<std::vector<bool>>(gguf.metadata().at("bools").value),
            (std::vector<bool>{true, false, true}));
}

TEST(Gguf, AbsentKeysAreAbsentOrMissing) {
  const std::string bytes = GgufBuilder().bytes();
  const Gguf gguf = parse(bytes);
  EXPECT_FALSE(gguf.has("k"));
  EXPECT_FALSE(gguf.optional_integer("k", 0, 1));
  EXPECT_FALSE(gguf.optional_number("k"));
  EXPECT_FALSE(gguf.optional_boolean("k"));
  EXPECT_EQ(gguf.optional_string("k"), nullptr);
  EXPECT_EQ(gguf.optional_strings("k"), nullptr);
  EXPECT_FALSE(gguf.optional_integers("k", 0, 1));
  EXPECT_FALSE(gguf.optional_numbers("k"));
  EXPECT_EQ(error_of([&] { gguf.integer("k", 0, 1); }), "f: key 'k': missing");
  EXPECT_EQ(error_of([&] { gguf.number("k"); }), "f: key 'k': missing");
  EXPECT_EQ(error_of([&] { gguf.string("k"); }), "f: key 'k': missing");
}

TEST(Gguf, ValuesOfTheWrongTypeOrRangeAreRefusedByName) {
  const std::string bytes =
      GgufBuilder()
          .str("text", "x\n")
          .u32("five", 5)
          .key("minus", 5, le_bytes<int32_t>(-5))
          .key("half", 6, le_bytes(0.5f))
          .key("nan", 6, le_bytes(std::numeric_limits<float>::quiet_NaN()))
          .key("yes", 7, std::string("\1", 1))
          .key("huge", 10, le_bytes<uint64_t>(1ull << 63))
          .key("inf", 9, array(6, 2, le_bytes(0.5f) + le_bytes(INFINITY)))
          .key("ints", 9, array(4, 2, le_bytes<uint32_t>(1) + le_bytes<uint32_t>(9)))
          .bytes();
  const Gguf gguf = parse(bytes);
  EXPECT_EQ(error_of([&] { gguf.integer("text", 0, 9); }),
            "f: key 'text': found string 'x\\x0a', expected integer in [0, 9]");
  EXPECT_EQ(error_of([&] { gguf.integer("five", 6, 9); }),
            "f: key 'five': found integer 5, expected integer in [6, 9]");
  EXPECT_EQ(error_of([&] { gguf.integer("five", 0, 4); }),
            "f: key 'five': found integer 5, expected integer in [0, 4]");
  EXPECT_EQ(error_of([&] { gguf.optional_integer("minus", 0, 9); }),
            "f: key 'minus': found integer -5, expected integer in [0, 9]");
  EXPECT_EQ(error_of([&] { gguf.integer("huge", INT64_MIN, INT64_MAX); }),
            "f: key 'huge': found integer 9223372036854775808, expected integer in "
            "[-9223372036854775808, 9223372036854775807]");
  EXPECT_EQ(error_of([&] { gguf.integer("half", 0, 9); }),
            "f: key 'half': found number 0.5, expected integer in [0, 9]");
  EXPECT_EQ(error_of([&] { gguf.number("nan"); }),
            "f: key 'nan': found number nan, expected a finite number");
  EXPECT_EQ(error_of([&] { gguf.optional_number("yes"); }),
            "f: key 'yes': found boolean true, expected a finite number");
  EXPECT_EQ(error_of([&] { gguf.optional_boolean("five"); }),
            "f: key 'five': found integer 5, expected boolean");
  EXPECT_EQ(error_of([&] { gguf.optional_string("ints"); }),
            "f: key 'ints': found array of integers, expected string");
  EXPECT_EQ(error_of([&] { gguf.optional_strings("text"); }),
            "f: key 'text': found string 'x\\x0a', expected array of strings");
  EXPECT_EQ(error_of([&] { gguf.optional_integers("inf", 0, 9); }),
            "f: key 'inf': found array of numbers, expected array of integers");
  EXPECT_EQ(error_of([&] { gguf.optional_integers("ints", 0, 8); }),
            "f: key 'ints': element 1: found 9, expected an integer in [0, 8]");
  EXPECT_EQ(error_of([&] { gguf.optional_numbers("ints"); }),
            "f: key 'ints': found array of integers, expected array of numbers");
  EXPECT_EQ(error_of([&] { gguf.optional_numbers("inf"); }),
            "f: key 'inf': element 1: found inf, expected a finite number");
}

TEST(Gguf, TensorsHaveReversedDimensionsAndTheirBytes) {
  const std::string bytes = GgufBuilder()
                                .tensor("w", {3, 2}, kF32, std::string(24, 'w'))
                                .tensor("q", {64, 2, 3}, 8, std::string(6 * 2 * 34, 'q'))
                                .tensor("s", {}, kF32, "1234")
                                .tensor("e", {5, 0}, kF32, "")
                                .bytes();
  const Gguf gguf = parse(bytes);
  ASSERT_EQ(gguf.tensors().size(), 4u);
  const TensorInfo& w = *gguf.find("w");
  EXPECT_EQ(w.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(w.dtype, DType::kF32);
  EXPECT_EQ(w.bytes, 24u);
  EXPECT_EQ(static_cast<char>(w.data[23]), 'w');
  const TensorInfo& q = *gguf.find("q");
  EXPECT_EQ(q.shape, (std::vector<int64_t>{3, 2, 64}));
  EXPECT_EQ(q.dtype, DType::kQ8_0);
  EXPECT_EQ(static_cast<char>(q.data[0]), 'q');
  EXPECT_EQ((q.data - w.data) % 32, 0);
  EXPECT_EQ(gguf.find("s")->bytes, 4u);
  EXPECT_EQ(gguf.find("e")->bytes, 0u);
  EXPECT_EQ(gguf.find("x"), nullptr);
}

TEST(Gguf, EveryTypeIdIsTheTypeOfThisNameAndSize) {
  // ids, names, elements and bytes per block of the format
  const std::vector<std::tuple<uint32_t, std::string, uint64_t, size_t>> types = {
      {0, "F32", 1, 4},       {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},
      {3, "Q4_1", 32, 20},    {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},
      {8, "Q8_0", 32, 34},    {10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},
      {12, "Q4_K", 256, 144}, {13, "Q5_K", 256, 176},   {14, "Q6_K", 256, 210},
      {20, "IQ4_NL", 32, 18}, {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},
      {25, "I16", 1, 2},      {26, "I32", 1, 4},        {27, "I64", 1, 8},
      {28, "F64", 1, 8},      {30, "BF16", 1, 2},       {39, "MXFP4", 32, 17}};
  for (const auto& [id, name, elements, bytes] : types) {
    const std::string file =
        GgufBuilder().tensor("t", {2 * elements, 3}, id, std::string(6 * bytes, 'x')).bytes();
    const Gguf gguf = parse(file);
    EXPECT_EQ(dtype_name(gguf.tensors()[0].dtype), name);
    EXPECT_EQ(gguf.tensors()[0].bytes, 6 * bytes) << name;
    EXPECT_TRUE(
        refusal(GgufBuilder().tensor("t", {2 * elements, 3}, id, std::string(6 * bytes - 1, 'x')))
            .starts_with("f: tensor 't': " + std::to_string(6 * bytes) +
                         " bytes at offset 0 lie outside"))
        << name;
    if (elements == 1) continue;
    EXPECT_EQ(
        refusal(GgufBuilder().tensor("t", {elements + 1, 3}, id, std::string(6 * bytes, 'x'))),
        "f: tensor 't': rows of " + std::to_string(elements + 1) +
            " elements, expected a multiple of " + std::to_string(elements) + " (" + name +
            " blocks)");
  }
}

TEST(Gguf, TypesItCannotComputeAreRefusedByNameOrNumber) {
  EXPECT_EQ(refusal(GgufBuilder().tensor("t", {256}, 17, "x")),
            "f: tensor 't': type IQ2_XS is not supported");
  EXPECT_EQ(refusal(GgufBuilder().tensor("t", {256}, 9, "x")),
            "f: tensor 't': type Q8_1 is not supported");
  for (const uint32_t id : {4u, 5u, 31u, 40u, 4294967295u}) {
    EXPECT_EQ(refusal(GgufBuilder().tensor("t", {256}, id, "x")),
              "f: tensor 't': type " + std::to_string(id) + " is unknown");
  }
}

TEST(Gguf, MagicAndVersionAreChecked) {
  GgufBuilder builder;
  builder.magic = "GGML";
  EXPECT_EQ(refusal(builder), "f: begins with 'GGML', expected 'GGUF'");
  builder.magic = "GGUF";
  for (const uint32_t version : {0u, 1u, 4u}) {
    builder.version = version;
    EXPECT_EQ(refusal(builder), "f: GGUF version " + std::to_string(version) + ", expected 2 or 3");
  }
  builder.version = 0x03000000;
  EXPECT_EQ(refusal(builder), "f: big-endian GGUF is not supported");
  builder.version = 2;
  const std::string version2 = builder.bytes();
  EXPECT_TRUE(parse(version2).tensors().empty());
}

TEST(Gguf, EveryTruncationIsRefused) {
  const std::string bytes = GgufBuilder()
                                .str("text", "abc")
                                .u32("n", 5)
                                .key("list", 9, array(8, 2, gguf_string("a") + gguf_string("bc")))
                                .tensor("w", {4, 2}, kF32, std::string(32, 'w'))
                                .bytes();
  ASSERT_EQ(parse(bytes).tensors().size(), 1u);
  for (size_t size = 0; size < bytes.size(); ++size) {
    ASSERT_TRUE(refusal(bytes.substr(0, size)).starts_with("f: ")) << size;
  }
  EXPECT_EQ(refusal(std::string()), "f: header: found 0 bytes at byte 0, expected 4 (truncated)");
  EXPECT_EQ(refusal(bytes.substr(0, 30)),
            "f: key 1 of 3: found 6 bytes at byte 24, expected 8 (truncated)");
}

TEST(Gguf, DeclaredCountsAreNeverBelieved) {
  GgufBuilder keys;
  keys.extra_keys = 65'536;
  EXPECT_EQ(refusal(keys), "f: key 1 of 65536: found 0 bytes at byte 24, expected 8 (truncated)");
  keys.extra_keys = 65'537;
  EXPECT_EQ(refusal(keys), "f: 65537 keys, expected at most 65536");
  GgufBuilder tensors;
  tensors.extra_tensors = 1'000'000;
  EXPECT_EQ(refusal(tensors),
            "f: tensor 1 of 1000000: found 0 bytes at byte 24, expected 8 (truncated)");
  tensors.extra_tensors = UINT64_MAX;
  EXPECT_EQ(refusal(tensors), "f: 18446744073709551615 tensors, expected at most 1000000");

  const uint64_t limit = Limits{}.gguf_array_elements;
  EXPECT_EQ(refusal(GgufBuilder().key("k", 9, array(10, limit, "12345678"))),
            "f: key 'k': found 8 bytes at byte 49, expected 536870912 (truncated)");
  EXPECT_EQ(refusal(GgufBuilder().key("k", 9, array(8, limit, ""))),
            "f: key 'k': found 0 bytes at byte 49, expected 536870912 (truncated)");
  EXPECT_EQ(refusal(GgufBuilder().key("k", 9, array(0, limit + 1, ""))),
            "f: key 'k': array of 67108865 elements, expected at most 67108864");
}

TEST(Gguf, StringsAreRefusedOneAboveTheirLimit) {
  const uint64_t limit = Limits{}.gguf_string_bytes;
  const std::string text(limit + 1, 't');
  const std::string at = GgufBuilder().str("k", std::string_view(text).substr(1)).bytes();
  EXPECT_EQ(parse(at).string("k").size(), limit);
  EXPECT_EQ(refusal(GgufBuilder().str("k", text)),
            "f: key 'k': string of 16777217 bytes, expected at most 16777216");

  const uint64_t token = Limits{}.gguf_token_bytes;
  const std::string tokens =
      GgufBuilder().key("k", 9, array(8, 1, gguf_string(text.substr(0, token)))).bytes();
  EXPECT_EQ(parse(tokens).optional_strings("k")->at(0).size(), token);
  EXPECT_EQ(refusal(GgufBuilder().key("k", 9, array(8, 1, gguf_string(text.substr(0, token + 1))))),
            "f: key 'k': string of 65537 bytes, expected at most 65536");
  EXPECT_EQ(refusal(GgufBuilder().str(text.substr(0, token + 1), "")),
            "f: key 1 of 1: string of 65537 bytes, expected at most 65536");
  EXPECT_EQ(refusal(GgufBuilder().key("k", 8, le_bytes(UINT64_MAX) + "x")),
            "f: key 'k': string of 18446744073709551615 bytes, expected at most 16777216");
}

TEST(Gguf, KeysAndTensorsAreRefusedOneAboveTheirLimit) {
  GgufBuilder keys;
  for (uint64_t i = 0; i < Limits{}.gguf_keys; ++i)
    keys.key(std::to_string(i), 7, std::string(1, '\0'));
  const std::string at = keys.bytes();
  EXPECT_EQ(parse(at).metadata().size(), Limits{}.gguf_keys);
  EXPECT_EQ(refusal(keys.key("x", 7, std::string(1, '\0'))),
            "f: 65537 keys, expected at most 65536");

  GgufBuilder dims;
  const std::string four = dims.tensor("t", {1, 1, 1, 1}, kF32, "1234").bytes();
  EXPECT_EQ(parse(four).tensors()[0].shape.size(), Limits{}.gguf_dims);
  EXPECT_EQ(refusal(GgufBuilder().tensor("t", {1, 1, 1, 1, 1}, kF32, "1234")),
            "f: tensor 't': rank 5, expected at most 4");

  const std::string name(Limits{}.tensor_name_bytes, 'n');
  const std::string named = GgufBuilder().tensor(name, {1}, kF32, "1234").bytes();
  EXPECT_NE(parse(named).find(name), nullptr);
  EXPECT_EQ(refusal(GgufBuilder().tensor(name + "n", {1}, kF32, "1234")),
            "f: tensor 1 of 1: string of 513 bytes, expected at most 512");
}

TEST(Gguf, MalformedValuesAreRefused) {
  EXPECT_EQ(refusal(GgufBuilder().key("k", 13, "x")), "f: key 'k': value type 13 is unknown");
  EXPECT_EQ(refusal(GgufBuilder().key("k", 7, "\2")),
            "f: key 'k': found boolean 2, expected 0 or 1");
  EXPECT_EQ(refusal(GgufBuilder().key("k", 9, array(7, 2, "\1\3"))),
            "f: key 'k': found boolean 3, expected 0 or 1");
  EXPECT_EQ(refusal(GgufBuilder().key("k", 9, array(9, 1, array(4, 0, "")))),
            "f: key 'k': array of arrays is not supported");
  EXPECT_EQ(refusal(GgufBuilder().key("k", 9, array(99, 0, ""))),
            "f: key 'k': array element type 99 is unknown");
}

TEST(Gguf, DuplicatesAreRefused) {
  EXPECT_EQ(refusal(GgufBuilder().u32("k", 1).u32("k", 1)), "f: key 'k': found twice");
  EXPECT_EQ(refusal(GgufBuilder().tensor("t", {1}, kF32, "1234").tensor("t", {1}, kF32, "1234")),
            "f: tensor 't': found twice");
}

TEST(Gguf, TensorNamesAreNonEmptyUtf8) {
  EXPECT_EQ(refusal(GgufBuilder().tensor("", {1}, kF32, "1234")),
            "f: tensor '': name of 0 bytes, expected 1 to 512");
  EXPECT_EQ(refusal(GgufBuilder().tensor("a\xff", {1}, kF32, "1234")),
            "f: tensor 'a\\xff': name is not valid UTF-8");
}

TEST(Gguf, ShapesTooLargeForAnyFileAreRefused) {
  EXPECT_EQ(refusal(GgufBuilder().tensor("t", {1ull << 63}, kF32, "1234")),
            "f: tensor 't': size 9223372036854775808 of dimension 0 is too large");
  EXPECT_EQ(refusal(GgufBuilder().tensor("t", {1ull << 32, 1ull << 32}, 24, "1234")),
            "f: tensor 't': shape [4294967296, 4294967296] of I8 is larger than any file");
  EXPECT_EQ(refusal(GgufBuilder().tensor("t", {1ull << 62, 4}, kF32, "1234")),
            "f: tensor 't': shape [4, 4611686018427387904] of F32 is larger than any file");
}

TEST(Gguf, OffsetsAreAlignedInTheFileAndDoNotOverlap) {
  const auto at = [](uint64_t offset) {
    GgufBuilder builder;
    builder.tensor("a", {16}, kF32, std::string(64, 'a')).info("b", {1}, kF32, offset);
    builder.data.resize(96);
    return builder;
  };
  const std::string good = at(64).bytes();
  EXPECT_EQ(parse(good).find("b")->data - parse(good).find("a")->data, 64);
  EXPECT_EQ(refusal(at(68)), "f: tensor 'b': offset 68, expected a multiple of 32");
  EXPECT_EQ(refusal(at(32)), "f: tensor 'b': overlaps tensor 'a'");
  EXPECT_TRUE(refusal(at(0)).ends_with("overlaps tensor 'a'") ||
              refusal(at(0)).ends_with("overlaps tensor 'b'"));
  EXPECT_TRUE(
      refusal(at(96)).starts_with("f: tensor 'b': 4 bytes at offset 96 lie outside the file of "));
  EXPECT_TRUE(
      refusal(at(UINT64_MAX - 31))
          .starts_with(
              "f: tensor 'b': 4 bytes at offset 18446744073709551584 lie outside the file of "));
}

TEST(Gguf, AlignmentIsAPowerOfTwoWithinItsLimits) {
  for (const uint32_t alignment : {8u, 64u, 65536u}) {
    GgufBuilder builder;
    builder.alignment = alignment;
    const std::string bytes = builder.u32("general.alignment", alignment)
                                  .tensor("a", {1}, kF32, "1234")
                                  .tensor("b", {1}, kF32, "5678")
                                  .bytes();
    const Gguf gguf = parse(bytes);
    EXPECT_EQ(gguf.find("b")->data - gguf.find("a")->data, alignment);
    EXPECT_EQ(std::memcmp(gguf.find("b")->data, "5678", 4), 0);
  }
  EXPECT_EQ(refusal(GgufBuilder().u32("general.alignment", 24)),
            "f: key 'general.alignment': found 24, expected a power of two");
  const std::string range = ", expected integer in [8, 65536]";
  EXPECT_EQ(refusal(GgufBuilder().u32("general.alignment", 4)),
            "f: key 'general.alignment': found integer 4" + range);
  EXPECT_EQ(refusal(GgufBuilder().u32("general.alignment", 131072)),
            "f: key 'general.alignment': found integer 131072" + range);
  EXPECT_EQ(refusal(GgufBuilder().u32("general.alignment", 0)),
            "f: key 'general.alignment': found integer 0" + range);
  EXPECT_EQ(refusal(GgufBuilder().str("general.alignment", "32")),
            "f: key 'general.alignment': found string '32'" + range);
}

// Part `no` of `count`, with tensor "t<no>".
GgufBuilder part(uint16_t no, uint16_t count, int32_t tensors) {
  GgufBuilder builder;
  builder.key("split.no", 2, le_bytes(no))
      .key("split.count", 2, le_bytes(count))
      .key("split.tensors.count", 5, le_bytes(tensors));
  if (no == 0) builder.str("general.architecture", "deepseek2");
  return builder.tensor("t" + std::to_string(no), {2}, kF32,
                        std::string(8, static_cast<char>('0' + no)));
}

TEST(GgufSplit, TheFirstPartOpensAll) {
  const TempDir dir;
  for (const uint16_t no : {0, 1, 2})
    dir.write("m-0000" + std::to_string(no + 1) + "-of-00003.gguf", part(no, 3, 3).bytes());
  Gguf opened = Gguf::open(dir / "m-00001-of-00003.gguf");
  const Gguf gguf = std::move(opened);  // pointers and name index survive
  ASSERT_EQ(gguf.tensors().size(), 3u);
  ASSERT_EQ(gguf.files().size(), 3u);
  EXPECT_EQ(gguf.path(), (dir / "m-00001-of-00003.gguf").string());
  EXPECT_EQ(gguf.string("general.architecture"), "deepseek2");
  for (uint32_t no = 0; no < 3; ++no) {
    const TensorInfo* tensor = gguf.find("t" + std::to_string(no));
    ASSERT_EQ(tensor, &gguf.tensors()[no]);
    EXPECT_EQ(tensor->file, no);
    EXPECT_EQ(static_cast<uint32_t>(static_cast<char>(tensor->data[7]) - '0'), no);
  }
}

TEST(GgufSplit, PartsMustAgree) {
  const TempDir dir;
  const auto name = [](int no) { return "m-0000" + std::to_string(no) + "-of-00002.gguf"; };
  const std::string first = dir.write(name(1), part(0, 2, 2).bytes()).string();
  const auto refused = [&] { return error_of([&] { Gguf::open(first); }); };
  const std::string second = (dir / name(2)).string();
  EXPECT_EQ(refused(), second + ": cannot open: No such file or directory");
  dir.write(name(2), part(0, 2, 2).bytes());
  EXPECT_EQ(refused(), second + ": key 'split.no': found integer 0, expected integer in [1, 1]");
  dir.write(name(2), part(1, 3, 2).bytes());
  EXPECT_EQ(refused(), second + ": key 'split.count': found integer 3, expected integer in [2, 2]");
  dir.write(name(2), part(1, 2, 2).bytes());
  EXPECT_EQ(Gguf::open(first).tensors().size(), 2u);
  dir.write(name(2), part(1, 2, 2).tensor("t0", {1}, kF32, "1234").bytes());
  EXPECT_EQ(refused(), first + ": 3 tensors in all parts, expected 2 (split.tensors.count)");
  dir.write(name(1), part(0, 2, 3).bytes());
  EXPECT_EQ(refused(), first + ": tensor 't0': found twice");
  EXPECT_EQ(error_of([&] { Gguf::open(second); }),
            second + ": is part 2 of 2, expected the first part (*-00001-of-00002.gguf)");
  const std::string renamed = dir.write("m.gguf", part(0, 2, 2).bytes()).string();
  EXPECT_EQ(error_of([&] { Gguf::open(renamed); }),
            renamed + ": is the first of 2 parts, expected a name ending in -00001-of-00002.gguf");
}

TEST(GgufSplit, CountIsRefusedOneAboveTheLimit) {
  const TempDir dir;
  const std::string path = dir.write("m-00001-of-01025.gguf", part(0, 1025, 1).bytes()).string();
  EXPECT_EQ(error_of([&] { Gguf::open(path); }),
            path + ": key 'split.count': found integer 1025, expected integer in [0, 1024]");
  const std::string at = dir.write("m-00001-of-01024.gguf", part(0, 1024, 1).bytes()).string();
  EXPECT_EQ(error_of([&] { Gguf::open(at); }),
            (dir / "m-00002-of-01024.gguf").string() + ": cannot open: No such file or directory");
  const std::string single = dir.write("single.gguf", part(0, 1, 1).bytes()).string();
  EXPECT_EQ(Gguf::open(single).tensors().size(), 1u);
}

TEST(GgufGolden, FilesOfAnIndependentWriterOpen) {
  const std::string folder = FATHOM_SOURCE_DIR "/tests/golden/gguf/";
  const Gguf lite = Gguf::open(folder + "v2-lite-256-Q4_K_M.gguf");
  EXPECT_EQ(lite.string("general.architecture"), "deepseek2");
  EXPECT_EQ(lite.integer("deepseek2.block_count", 1, 99), 2);
  EXPECT_EQ(lite.optional_strings("tokenizer.ggml.tokens")->size(), 256u);
  EXPECT_EQ(lite.tensors().size(), 29u);
  std::map<std::string, int> types;
  for (const TensorInfo& tensor : lite.tensors()) ++types[std::string(dtype_name(tensor.dtype))];
  // info.json
  EXPECT_EQ(types, (std::map<std::string, int>{
                       {"F32", 8}, {"Q4_K", 13}, {"Q5_0", 5}, {"Q6_K", 1}, {"Q8_0", 2}}));
  EXPECT_EQ(lite.find("token_embd.weight")->shape, (std::vector<int64_t>{256, 256}));
  EXPECT_EQ(Gguf::open(folder + "qwen2-256-Q4_K_M.gguf").tensors().size(), 14u);
  EXPECT_EQ(Gguf::open(folder + "v2-lite-256-Q2_K-kv_b.gguf").tensors().size(), 27u);
  const Gguf llama = Gguf::open(folder + "llama3-BF16.gguf");
  EXPECT_EQ(llama.find("token_embd.weight")->dtype, DType::kBF16);
}

}  // namespace
}  // namespace fathom
