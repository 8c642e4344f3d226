// The Unicode character database, as far as splitting and NFC need it. Data only; unicode.h has the
// meaning.
#pragma once

#include <cstdint>
#include <span>

namespace fathom::unicode_tables {

struct Triple {
  uint32_t key, first, second;
};

// Runs of equal value in code point order: first code point << 3 | CharClass, and << 8 | combining
// class.
extern const std::span<const uint32_t> class_runs;
extern const std::span<const uint32_t> combining_runs;
// {code point, first, second or 0}: one level of canonical decomposition, by code point.
extern const std::span<const Triple> decompositions;
// {first, second, composed}: primary composites, by (first, second).
extern const std::span<const Triple> compositions;

}  // namespace fathom::unicode_tables
