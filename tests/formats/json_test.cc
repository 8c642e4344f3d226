#include "formats/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/base/test_files.h"

namespace fathom {
namespace {

using nlohmann::json;

std::string refusal(std::string_view text, uint64_t max_nodes = 100, uint64_t max_depth = 8) {
  return error_of([&] { parse_json(text, "f.json", max_nodes, max_depth); });
}

std::string arrays(int depth) {
  return std::string(static_cast<size_t>(depth), '[') +
         std::string(static_cast<size_t>(depth), ']');
}

TEST(ParseJson, BuildsWhatTheTextSays) {
  const std::string text =
      R"( {"a": [1, -2, 1.5, true, false, null, "x\u00e9\n", {}, []], "b": {"c": {"d": 18446744073709551615}}} )";
  EXPECT_EQ(parse_json(text, "f.json"), json::parse(text));
  for (const char* scalar : {"1", "\"a\"", "null", "-0.5e3", "[]", "{}"}) {
    EXPECT_EQ(parse_json(scalar, "f.json"), json::parse(scalar));
  }
}

TEST(ParseJson, SyntaxErrorsNameThePlaceTheKindAndThePosition) {
  EXPECT_EQ(
      refusal(""),
      "f.json: invalid JSON: syntax error while parsing value - unexpected end of input; expected "
      "'[', '{', or a literal (line 1, column 1)");
  EXPECT_EQ(refusal("{\n  \"a\": 1,\n  x}"),
            "f.json: invalid JSON: syntax error while parsing object key - invalid literal (line "
            "3, column 3)");
  EXPECT_TRUE(
      refusal("{\"a\":1").starts_with("f.json: invalid JSON: syntax error while parsing object"));
  EXPECT_TRUE(refusal("[1,]").starts_with("f.json: invalid JSON: "));
  EXPECT_TRUE(refusal("[1 2]").starts_with("f.json: invalid JSON: "));
  EXPECT_TRUE(refusal("// comment\n1").starts_with("f.json: invalid JSON: "));
  EXPECT_TRUE(refusal("{'a':1}").starts_with("f.json: invalid JSON: "));
  EXPECT_TRUE(refusal("[NaN]").starts_with("f.json: invalid JSON: "));
  EXPECT_TRUE(refusal("[01]").starts_with("f.json: invalid JSON: "));
}

TEST(ParseJson, TrailingBytesAreRefused) {
  EXPECT_EQ(parse_json("{} \n\t", "f.json"), json::object());
  EXPECT_TRUE(refusal("{} x").starts_with("f.json: invalid JSON: "));
  EXPECT_TRUE(refusal("{}{}").starts_with("f.json: invalid JSON: "));
  EXPECT_EQ(refusal(std::string_view("{}\0", 3)),
            "f.json: invalid JSON: NUL byte (line 1, column 3)");
  EXPECT_EQ(refusal(std::string_view("{}\n\0 {}", 7)),
            "f.json: invalid JSON: NUL byte (line 2, column 1)");
}

TEST(ParseJson, InvalidUtf8IsRefusedAndNotEchoed) {
  const std::string text = refusal("{\"a\": \"x\xff\"}");
  EXPECT_EQ(text,
            "f.json: invalid JSON: syntax error while parsing value - invalid string: ill-formed "
            "UTF-8 byte "
            "(line 1, column 9)");
  EXPECT_FALSE(refusal("[\"\xed\xa0\x80\"]").empty());
  EXPECT_FALSE(refusal("[\"\\ud800\"]").empty());
  EXPECT_FALSE(refusal("[\"\xc0\x80\"]").empty());
}

TEST(ParseJson, NumbersTooLargeForADoubleAreRefused) {
  EXPECT_EQ(refusal("[1e999]"),
            "f.json: invalid JSON: number too large for a double (line 1, column 7)");
  EXPECT_EQ(parse_json("[1e308]", "f.json")[0].get<double>(), 1e308);
}

TEST(ParseJson, DuplicateKeysAreComparedDecoded) {
  EXPECT_EQ(refusal(R"({"a": 1, "a": 2})"), "f.json: duplicate key 'a' (line 1, column 12)");
  EXPECT_EQ(refusal(R"({"x": {"a": 1, "b": 2, "\u0061": 3}})"),
            "f.json: duplicate key 'a' (line 1, column 31)");
  EXPECT_EQ(parse_json(R"({"a": {"a": 1}, "b": {"a": 1}})", "f.json").size(),
            2u);  // not the same object
}

TEST(ParseJson, DepthIsRefusedOneAboveTheLimit) {
  EXPECT_EQ(parse_json(arrays(8), "f.json", 100, 8).dump(), arrays(8));
  EXPECT_EQ(refusal(arrays(9)), "f.json: nested deeper than 8 levels (line 1, column 9)");
  EXPECT_EQ(refusal(R"({"a":{"a":{"a":1}}})", 100, 2),
            "f.json: nested deeper than 2 levels (line 1, column 11)");
  EXPECT_EQ(parse_json(arrays(static_cast<int>(Limits{}.json_depth)), "f.json").size(), 1u);
  EXPECT_THROW(parse_json(arrays(static_cast<int>(Limits{}.json_depth) + 1), "f.json"), Error);
  EXPECT_THROW(parse_json(std::string(10'000'000, '['), "f.json"), Error);
  // Closed containers do not count.
  EXPECT_EQ(parse_json("[[],[],[],{}]", "f.json", 100, 2).size(), 4u);
}

TEST(ParseJson, NodesAreRefusedOneAboveTheLimit) {
  EXPECT_EQ(parse_json(R"([1, {"a": 2}, []])", "f.json", 5).size(), 3u);
  EXPECT_EQ(refusal(R"([1, {"a": 2}, [], 3])", 5),
            "f.json: more than 5 values (line 1, column 20)");
  EXPECT_EQ(refusal("[[],[]]", 2), "f.json: more than 2 values (line 1, column 5)");
}

TEST(JsonObject, NeedsAnObject) {
  for (const auto& [text, found] :
       {std::pair("[1]", "an array"), {"\"x\"", "string 'x'"}, {"3", "3"}, {"null", "null"}}) {
    const json value = json::parse(text);
    EXPECT_EQ(error_of([&] { JsonObject(value, "f.json"); }),
              std::string("f.json: found ") + found + ", expected an object");
  }
}

class JsonObjectFields : public testing::Test {
 protected:
  const json value_ = json::parse(
      R"({"int": -5, "big": 9223372036854775808, "float": 1.5, "whole": 2.0, "yes": true, "text": "t",
    "nothing": null, "list": [1, 2], "mixed": [1, "x"], "inner": {"deep": "d"}})");
  const JsonObject object_{value_, "f.json"};
};

TEST_F(JsonObjectFields, AreReadByType) {
  EXPECT_EQ(object_.integer("int", -5, -5), -5);
  EXPECT_EQ(object_.number("int"), -5.0);
  EXPECT_EQ(object_.number("float"), 1.5);
  EXPECT_EQ(object_.number("big"), 0x1p63);
  EXPECT_TRUE(object_.boolean("yes"));
  EXPECT_EQ(object_.string("text"), "t");
  EXPECT_EQ(object_.integers("list", 0, 2), (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(object_.value("nothing"), json());
  EXPECT_EQ(object_.optional_integer("int", -9, 0), -5);
  EXPECT_EQ(object_.optional_number("float"), 1.5);
  EXPECT_EQ(object_.optional_boolean("yes"), true);
  EXPECT_EQ(object_.optional_string("text"), "t");
  EXPECT_EQ(object_.optional_object("inner")->string("deep"), "d");
}

TEST_F(JsonObjectFields, AbsentAndNullAreAbsentForTheOptionalForms) {
  for (const char* key : {"missing", "nothing"}) {
    EXPECT_FALSE(object_.has(key));
    EXPECT_FALSE(object_.optional_integer(key, 0, 9));
    EXPECT_FALSE(object_.optional_number(key));
    EXPECT_FALSE(object_.optional_boolean(key));
    EXPECT_FALSE(object_.optional_string(key));
    EXPECT_FALSE(object_.optional_object(key));
  }
  EXPECT_EQ(error_of([&] { object_.integer("missing", 0, 9); }), "f.json: missing: missing");
  EXPECT_EQ(error_of([&] { object_.integer("nothing", 0, 9); }),
            "f.json: nothing: found null, expected an integer in [0, 9]");
}

TEST_F(JsonObjectFields, OfTheWrongKindOrRangeAreRefusedByName) {
  EXPECT_EQ(error_of([&] { object_.integer("int", -4, 9); }),
            "f.json: int: found -5, expected an integer in [-4, 9]");
  EXPECT_EQ(error_of([&] { object_.integer("int", -9, -6); }),
            "f.json: int: found -5, expected an integer in [-9, -6]");
  EXPECT_EQ(error_of([&] { object_.integer("whole", 0, 9); }),
            "f.json: whole: found 2.0, expected an integer in [0, 9]");
  EXPECT_EQ(error_of([&] { object_.integer("yes", 0, 9); }),
            "f.json: yes: found true, expected an integer in [0, 9]");
  EXPECT_EQ(error_of([&] { object_.integer("big", INT64_MIN, INT64_MAX); }),
            "f.json: big: found 9223372036854775808, expected an integer in [-9223372036854775808, "
            "9223372036854775807]");
  EXPECT_EQ(error_of([&] { object_.number("text"); }),
            "f.json: text: found string 't', expected a number");
  EXPECT_EQ(error_of([&] { object_.boolean("int"); }),
            "f.json: int: found -5, expected true or false");
  EXPECT_EQ(error_of([&] { object_.string("list"); }),
            "f.json: list: found an array, expected a string");
  EXPECT_EQ(error_of([&] { object_.integers("int", 0, 9); }),
            "f.json: int: found -5, expected an array of integers");
  EXPECT_EQ(error_of([&] { object_.integers("mixed", 0, 9); }),
            "f.json: mixed: found string 'x', expected an integer in [0, 9]");
  EXPECT_EQ(error_of([&] { object_.optional_object("int"); }),
            "f.json: int: found -5, expected an object");
  EXPECT_EQ(error_of([&] { object_.optional_object("inner")->integer("deep", 0, 9); }),
            "f.json: inner: deep: found string 'd', expected an integer in [0, 9]");
}

}  // namespace
}  // namespace fathom
