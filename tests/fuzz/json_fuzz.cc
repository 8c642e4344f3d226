// Any bytes: the strict JSON parser refuses or builds a tree that prints and parses back to itself.
#include <cstdint>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/error.h"
#include "formats/json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const nlohmann::json value = fathom::parse_json(text, "input", 10'000, 64);
    FATHOM_CHECK(fathom::parse_json(value.dump(), "dump", 10'000, 64) == value);
    if (!value.is_object()) return 0;
    const fathom::JsonObject object(value, "input");
    for (const auto& [key, field] : value.items()) {
      if (field.is_number_integer()) object.number(key);
      try {
        object.optional_integer(key, -100, 100);
        object.optional_number(key);
        object.optional_string(key);
        object.optional_object(key);
        object.integers(key, 0, 100);
      } catch (const fathom::Error&) {
      }
    }
  } catch (const fathom::Error&) {
  }
  return 0;
}
