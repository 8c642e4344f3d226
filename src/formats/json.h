// Strict JSON from strangers: depth and nodes counted while parsing, duplicate keys and trailing
// bytes refused, and numbers read through helpers that check kind and range and name the field.
//
// nlohmann::json does the parsing; only its forward header is included here.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/limits.h"

namespace fathom {

// Parses all of `text`. `place` (a path or "request body") begins every error: "place: what (line,
// column)".
nlohmann::json parse_json(std::string_view text, std::string_view place,
                          uint64_t max_nodes = Limits{}.json_file_nodes,
                          uint64_t max_depth = Limits{}.json_depth);

// What a message calls a value it did not expect: "null", "true", "12.5", "string 'abc'", "an
// array", "an object".
std::string describe(const nlohmann::json& value);

// Typed reading of one object's fields. Every failure reads "place: key: found X, expected Y".
// An explicit null counts as absent for the optional forms, as Hugging Face configs use it.
class JsonObject {
 public:
  // `object` must outlive this; throws if it is not an object.
  JsonObject(const nlohmann::json& object, std::string place);

  bool has(std::string_view key) const;  // present and not null
  int64_t integer(std::string_view key, int64_t min, int64_t max) const;
  std::optional<int64_t> optional_integer(std::string_view key, int64_t min, int64_t max) const;
  double number(std::string_view key) const;  // any finite JSON number
  std::optional<double> optional_number(std::string_view key) const;
  bool boolean(std::string_view key) const;
  std::optional<bool> optional_boolean(std::string_view key) const;
  std::string string(std::string_view key) const;
  std::optional<std::string> optional_string(std::string_view key) const;
  // an array of integers
  std::vector<int64_t> integers(std::string_view key, int64_t min, int64_t max) const;
  std::optional<JsonObject> optional_object(std::string_view key) const;
  const nlohmann::json& value(std::string_view key) const;  // throws if absent
  const std::string& place() const { return place_; }

 private:
  const nlohmann::json& object_;
  std::string place_;
};

// JSON Lines: body(object, offset of its line's end) for each line that is not blank; the object's
// place is "place:LINE".
void for_each_json_line(std::string_view text, std::string_view place,
                        const std::function<void(const JsonObject&, size_t end)>& body);

}  // namespace fathom
