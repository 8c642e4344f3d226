#include "formats/json.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"

namespace fathom {
namespace {

using nlohmann::json;

// Reads the text for nlohmann's lexer and publishes how far it got, so that our own refusals know
// their line too.
struct CountingIterator {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  const char* at;
  const char** reached;

  reference operator*() const { return *at; }
  CountingIterator& operator++() {
    *reached = ++at;
    return *this;
  }
  CountingIterator operator++(int) {
    CountingIterator before = *this;
    ++*this;
    return before;
  }
  friend bool operator==(CountingIterator a, CountingIterator b) { return a.at == b.at; }
};

// Builds the tree from nlohmann's events and refuses at the event that breaks a rule, before memory
// is spent on it.
class Builder {
 public:
  Builder(std::string_view text, std::string_view place, uint64_t max_nodes, uint64_t max_depth)
      : text_(text),
        place_(place),
        reached_(text.data()),
        max_nodes_(max_nodes),
        max_depth_(max_depth) {}

  json build() {
    // nlohmann's lexer takes it for the end
    if (const size_t nul = text_.find('\0'); nul != text_.npos) {
      reached_ += nul + 1;
      refuse("invalid JSON: NUL byte");
    }
    const CountingIterator begin{text_.data(), &reached_};
    const CountingIterator end{text_.data() + text_.size(), &reached_};
    json::sax_parse(begin, end, this);
    return std::move(root_);
  }

  // nlohmann's SAX interface.
  bool null() { return add(nullptr); }
  bool boolean(bool value) { return add(value); }
  bool number_integer(int64_t value) { return add(value); }
  bool number_unsigned(uint64_t value) { return add(value); }
  bool number_float(double value, const std::string&) { return add(value); }
  bool string(std::string& value) { return add(std::move(value)); }
  bool binary(json::binary_t&) { return false; }  // JSON text has none
  bool start_object(size_t) { return enter(json::object()); }
  bool start_array(size_t) { return enter(json::array()); }
  bool end_object() { return leave(); }
  bool end_array() { return leave(); }
  bool key(std::string& name) {
    const auto [field, is_new] =
        open_.back()->get_ref<json::object_t&>().try_emplace(std::move(name));
    if (!is_new) refuse(fmt::format("duplicate key {}", quoted(field->first)));
    field_ = &field->second;
    return true;
  }
  bool parse_error(size_t, const std::string&, const json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ...; last
    // read: '...'"
    std::string_view what = error.what();
    if (const size_t prefix = what.find("syntax error"); prefix != what.npos) {
      what.remove_prefix(prefix);
    } else if (const size_t tag = what.find("] "); tag != what.npos) {
      what.remove_prefix(tag + 2);
    }
    // raw bytes from outside: the position says enough
    what = what.substr(0, what.find("; last read: "));
    if (what.starts_with("number overflow")) what = "number too large for a double";
    refuse(fmt::format("invalid JSON: {}", what));
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    const auto read = static_cast<size_t>(reached_ - text_.data());
    const std::string_view before = text_.substr(0, read > 0 ? read - 1 : 0);
    const size_t line_start = before.rfind('\n') + 1;  // npos + 1 is 0
    fail("{}: {} (line {}, column {})", place_, what,
         1 + std::count(before.begin(), before.end(), '\n'), 1 + before.size() - line_start);
  }
  bool add(json value) {
    place_value(std::move(value));
    return true;
  }
  bool enter(json container) {
    if (open_.size() >= max_depth_) refuse(fmt::format("nested deeper than {} levels", max_depth_));
    open_.push_back(place_value(std::move(container)));
    return true;
  }
  bool leave() {
    open_.pop_back();
    return true;
  }
  json* place_value(json value) {
    if (++nodes_ > max_nodes_) refuse(fmt::format("more than {} values", max_nodes_));
    json* slot = &root_;
    if (!open_.empty() && open_.back()->is_array()) {
      slot = &open_.back()->get_ref<json::array_t&>().emplace_back();
    } else if (!open_.empty()) {
      slot = field_;
    }
    *slot = std::move(value);
    return slot;
  }

  std::string_view text_;
  std::string_view place_;
  const char* reached_;
  uint64_t max_nodes_;
  uint64_t max_depth_;
  uint64_t nodes_ = 0;
  json root_;
  json* field_ = nullptr;    // where the value of the key just read goes
  std::vector<json*> open_;  // containers not yet closed; each stays put until it is closed
};

}  // namespace

json parse_json(std::string_view text, std::string_view place, uint64_t max_nodes,
                uint64_t max_depth) {
  return Builder(text, place, max_nodes, max_depth).build();
}

std::string describe(const json& value) {
  if (value.is_object()) return "an object";
  if (value.is_array()) return "an array";
  if (value.is_string()) return "string " + quoted(value.get_ref<const std::string&>());
  return value.dump();
}

JsonObject::JsonObject(const json& object, std::string place)
    : object_(object), place_(std::move(place)) {
  if (!object_.is_object()) fail("{}: found {}, expected an object", place_, describe(object_));
}

bool JsonObject::has(std::string_view key) const {
  const auto field = object_.find(key);
  return field != object_.end() && !field->is_null();
}

const json& JsonObject::value(std::string_view key) const {
  const auto field = object_.find(key);
  if (field == object_.end()) fail("{}: {}: missing", place_, key);
  return *field;
}

namespace {

int64_t integer_in(const json& value, const std::string& place, std::string_view key, int64_t min,
                   int64_t max) {
  const bool fits =
      value.is_number_integer() &&
      (!value.is_number_unsigned() || std::in_range<int64_t>(value.get_ref<const uint64_t&>()));
  if (fits) {
    const auto number = value.get<int64_t>();
    if (number >= min && number <= max) return number;
  }
  fail("{}: {}: found {}, expected an integer in [{}, {}]", place, key, describe(value), min, max);
}

}  // namespace

int64_t JsonObject::integer(std::string_view key, int64_t min, int64_t max) const {
  return integer_in(value(key), place_, key, min, max);
}

std::vector<int64_t> JsonObject::integers(std::string_view key, int64_t min, int64_t max) const {
  const json& array = value(key);
  if (!array.is_array())
    fail("{}: {}: found {}, expected an array of integers", place_, key, describe(array));
  std::vector<int64_t> numbers;
  for (const json& element : array) numbers.push_back(integer_in(element, place_, key, min, max));
  return numbers;
}

double JsonObject::number(std::string_view key) const {
  const json& field = value(key);
  if (!field.is_number()) fail("{}: {}: found {}, expected a number", place_, key, describe(field));
  return field.get<double>();  // finite: the parser refuses what overflows a double
}

bool JsonObject::boolean(std::string_view key) const {
  const json& field = value(key);
  if (!field.is_boolean())
    fail("{}: {}: found {}, expected true or false", place_, key, describe(field));
  return field.get<bool>();
}

std::string JsonObject::string(std::string_view key) const {
  const json& field = value(key);
  if (!field.is_string()) fail("{}: {}: found {}, expected a string", place_, key, describe(field));
  return field.get<std::string>();
}

std::optional<int64_t> JsonObject::optional_integer(std::string_view key, int64_t min,
                                                    int64_t max) const {
  return has(key) ? std::optional(integer(key, min, max)) : std::nullopt;
}
std::optional<double> JsonObject::optional_number(std::string_view key) const {
  return has(key) ? std::optional(number(key)) : std::nullopt;
}
std::optional<bool> JsonObject::optional_boolean(std::string_view key) const {
  return has(key) ? std::optional(boolean(key)) : std::nullopt;
}
std::optional<std::string> JsonObject::optional_string(std::string_view key) const {
  return has(key) ? std::optional(string(key)) : std::nullopt;
}
std::optional<JsonObject> JsonObject::optional_object(std::string_view key) const {
  if (!has(key)) return std::nullopt;
  return JsonObject(value(key), fmt::format("{}: {}", place_, key));
}

void for_each_json_line(std::string_view text, std::string_view place,
                        const std::function<void(const JsonObject&, size_t end)>& body) {
  size_t number = 0;
  for (size_t begin = 0; begin < text.size(); ++begin) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = text.substr(begin, end - begin);
    begin = end;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string where = fmt::format("{}:{}", place, number);
    const nlohmann::json value = parse_json(line, where);
    body(JsonObject(value, where), end);
  }
}

}  // namespace fathom
