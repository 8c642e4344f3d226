// Lookups in the generated tables, and NFC after Unicode §3.11: decompose, order the marks,
// compose.
#include "text/unicode.h"

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>
#include <vector>

#include "base/utf8.h"
#include "text/unicode_tables.h"

namespace fathom {
namespace {

using unicode_tables::Triple;

// Hangul syllables compose by arithmetic (Unicode §3.12).
constexpr uint32_t kHangul = 0xac00, kLead = 0x1100, kVowel = 0x1161, kTail = 0x11a7;
constexpr uint32_t kLeads = 19, kVowels = 21, kTails = 28;

uint32_t value_at(std::span<const uint32_t> runs, uint32_t bits, uint32_t code_point) {
  // above every entry that starts at or before code_point
  const uint32_t last = (code_point + 1) << bits;
  return *(std::lower_bound(runs.begin(), runs.end(), last) - 1) & ((1u << bits) - 1);
}

uint32_t combining_class(uint32_t c) {
  return c < 0x300 ? 0 : value_at(unicode_tables::combining_runs, 8, c);
}

uint32_t composed(uint32_t a, uint32_t b) {  // 0 if the two do not compose
  if (a - kLead < kLeads && b - kVowel < kVowels) {
    return kHangul + ((a - kLead) * kVowels + (b - kVowel)) * kTails;
  }
  if (a - kHangul < kLeads * kVowels * kTails && (a - kHangul) % kTails == 0 &&
      b - kTail - 1 < kTails - 1) {
    return a + (b - kTail);
  }
  const auto& table = unicode_tables::compositions;
  const auto less = [](const Triple& x, const std::pair<uint32_t, uint32_t>& y) {
    return std::tie(x.key, x.first) < std::tie(y.first, y.second);
  };
  const auto it = std::lower_bound(table.begin(), table.end(), std::pair(a, b), less);
  return it != table.end() && it->key == a && it->first == b ? it->second : 0;
}

void decompose(uint32_t c, std::vector<uint32_t>& out) {
  if (c - kHangul < kLeads * kVowels * kTails) {
    const uint32_t s = c - kHangul;
    out.push_back(kLead + s / (kVowels * kTails));
    out.push_back(kVowel + s / kTails % kVowels);
    if (s % kTails != 0) out.push_back(kTail + s % kTails);
    return;
  }
  const auto& table = unicode_tables::decompositions;
  const auto it = std::lower_bound(table.begin(), table.end(), c,
                                   [](const Triple& x, uint32_t key) { return x.key < key; });
  if (c < 0xc0 || it == table.end() || it->key != c) return out.push_back(c);
  decompose(it->first, out);  // our own table: at most four levels deep
  if (it->second != 0) decompose(it->second, out);
}

// One stretch of well-formed text, decomposed; appends its composition to `out`.
void compose(std::vector<uint32_t>& chars, std::string& out) {
  struct Mark {
    uint32_t code_point, combining;
  };
  std::vector<Mark> marks(chars.size());
  std::transform(chars.begin(), chars.end(), marks.begin(), [](uint32_t c) {
    return Mark{c, combining_class(c)};
  });
  for (auto it = marks.begin(); it != marks.end();) {
    const auto end = std::find_if(it, marks.end(), [](const Mark& m) { return m.combining == 0; });
    std::stable_sort(it, end,
                     [](const Mark& a, const Mark& b) { return a.combining < b.combining; });
    it = end == marks.end() ? end : end + 1;
  }
  chars.clear();
  size_t starter = SIZE_MAX;
  uint32_t last = 0;  // combining class of the last mark kept behind the starter
  for (const Mark& m : marks) {
    // A mark is blocked from the starter by one of the same or a higher class, a starter by
    // anything between.
    const bool adjacent = starter + 1 == chars.size();
    const bool reaches = starter != SIZE_MAX && (adjacent || (last != 0 && last < m.combining));
    if (const uint32_t whole = reaches ? composed(chars[starter], m.code_point) : 0; whole != 0) {
      chars[starter] = whole;
      continue;
    }
    if (m.combining == 0) starter = chars.size();
    last = m.combining;
    chars.push_back(m.code_point);
  }
  for (const uint32_t c : chars) append_utf8(c, out);
  chars.clear();
}

}  // namespace

CharClass char_class(uint32_t c) {
  static const std::array<CharClass, 0x80> ascii = [] {
    std::array<CharClass, 0x80> table{};
    for (uint32_t i = 0; i < 0x80; ++i)
      table[i] = CharClass(value_at(unicode_tables::class_runs, 3, i));
    return table;
  }();
  return c < 0x80 ? ascii[c] : CharClass(value_at(unicode_tables::class_runs, 3, c));
}

std::string to_nfc(std::string_view text) {
  // Below U+0300, which no lead byte under 0xcc reaches, every text is its own NFC.
  const auto simple = [](char byte) { return static_cast<unsigned char>(byte) < 0xcc; };
  if (std::all_of(text.begin(), text.end(), simple)) return std::string(text);
  std::string out;
  out.reserve(text.size());
  std::vector<uint32_t> chars;
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    if (c.valid) {
      decompose(c.code_point, chars);
    } else {
      compose(chars, out);
      out.append(text.substr(0, c.bytes));
    }
    text.remove_prefix(c.bytes);
  }
  compose(chars, out);
  return out;
}

}  // namespace fathom
