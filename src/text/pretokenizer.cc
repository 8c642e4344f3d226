// The expressions, and their matchers below in the same order. An alternative of an expression is
// one paragraph of its matcher, with the regex in front; greedy and backtracking semantics are
// spelled out where they matter.
#include "text/pretokenizer.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/utf8.h"
#include "text/unicode.h"

namespace fathom {
namespace {

// Character classes. What NFC would turn into another character (U+1F7D, U+1FBE, U+1FD3, U+1FDB,
// U+2126, U+212A) is escaped.
constexpr std::u32string_view kCasedClass =
    U"A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-"
    U"Ჿᴀ-"
    U"ᴫᵫ-"
    U"ᵷᵹ-"
    U"ᶚḀ-ἕἘ-Ἕἠ-"
    U"ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌ"
    U"ῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-"
    U"ꚛꜢ-"
    U"ꝯꝱ-"
    U"ꞇꞋ-"
    U"ꞎꭰ-ꮿﬀ-ﬆﬓ-"
    U"ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃";
constexpr std::u32string_view kPunctuationClass = U"!-/:-~！-／：-～‘-‟\u3000-。";
constexpr std::u32string_view kCjkHangulClass = U"一-龥ࠀ-一가-\ud7ff";
constexpr std::u32string_view kCjkKanaClass = U"一-龥\u3040-ゟ゠-ヿ";

struct Char {
  uint32_t code_point;
  uint8_t bytes;
  CharClass cls;
};
using Text = std::span<const Char>;
struct Match {
  size_t begin, end;  // an empty one at the end of the text: none
};

bool in_class(const Char& c, std::u32string_view cls) {
  for (size_t i = 0; i < cls.size(); ++i) {
    const char32_t low = cls[i];
    const bool range = i + 1 < cls.size() && cls[i + 1] == U'-';
    if (range) i += 2;
    if (low <= c.code_point && c.code_point <= cls[i]) return true;
  }
  return false;
}

bool is_space(const Char& c) { return c.cls == CharClass::kSpace; }
bool is_letter(const Char& c) { return c.cls == CharClass::kLetter; }
bool is_number(const Char& c) { return c.cls == CharClass::kNumber; }
bool is_letter_or_mark(const Char& c) { return is_letter(c) || c.cls == CharClass::kMark; }
bool is_punctuation(const Char& c) { return c.cls == CharClass::kPunctuation; }
bool is_punctuation_or_symbol(const Char& c) {
  return is_punctuation(c) || c.cls == CharClass::kSymbol;
}
bool is_line_break(const Char& c) { return c.code_point == '\r' || c.code_point == '\n'; }
bool is_ascii_letter(const Char& c) { return c.code_point < 0x80 && is_letter(c); }

// End of the run of characters from `i` on for which `in` holds.
template <class In>
size_t run(Text t, size_t i, In in) {
  while (i < t.size() && in(t[i])) ++i;
  return i;
}

// Every match_*(t, i) gives the end of the match that begins at `i`, or `i` if there is none.
// REQUIRES: i < t.size().

// 's|'t|'re|'ve|'m|'ll|'d
size_t match_contraction(Text t, size_t i, bool ignore_case) {
  if (t[i].code_point != '\'') return i;
  const auto letter = [&](size_t k) -> uint32_t {
    if (k >= t.size()) return 0;
    const uint32_t c = t[k].code_point;
    if (!ignore_case) return c;
    // U+017F, the long s, folds to s
    return c == 0x17f ? 's' : c >= 'A' && c <= 'Z' ? c + 0x20 : c;
  };
  const uint32_t a = letter(i + 1), b = letter(i + 2);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return i + 2;
  if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return i + 3;
  return i;
}

// \s+(?!\S)|\s+ : a run before other text leaves its last character to that text.
size_t match_spaces(Text t, size_t i) {
  const size_t end = run(t, i, is_space);
  return end < t.size() && end > i + 1 ? end - 1 : end;
}

// \s*[\r\n]+|\s+(?!\S)|\s+
size_t match_lines(Text t, size_t i) {
  for (size_t end = run(t, i, is_space); end > i; --end) {
    if (is_line_break(t[end - 1])) return end;
  }
  return match_spaces(t, i);
}

size_t match_gpt2(Text t, size_t i) {
  if (const size_t end = match_contraction(t, i, false); end > i) return end;
  //  ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+
  const size_t first = t[i].code_point == ' ' && i + 1 < t.size() ? i + 1 : i;
  const auto kind = [](const Char& c) {
    return is_space(c) ? 0 : is_letter(c) ? 1 : is_number(c) ? 2 : 3;
  };
  if (const int wanted = kind(t[first]); wanted != 0) {
    return run(t, first, [&](const Char& c) { return kind(c) == wanted; });
  }
  return match_spaces(t, i);
}

// Llama-3 and Qwen2 differ in how many digits stay together.
template <size_t kDigits>
size_t match_llama3(Text t, size_t i) {
  if (const size_t end = match_contraction(t, i, true); end > i) return end;
  // [^\r\n\p{L}\p{N}]?\p{L}+
  const bool lead = !is_letter(t[i]) && !is_number(t[i]) && !is_line_break(t[i]);
  if (const size_t end = run(t, i + lead, is_letter); end > i + lead) return end;
  // \p{N}{1,3}
  if (is_number(t[i])) return run(t.first(std::min(t.size(), i + kDigits)), i, is_number);
  //  ?[^\s\p{L}\p{N}]+[\r\n]*
  const size_t first = i + (t[i].code_point == ' ');
  const auto is_other = [](const Char& c) {
    return !is_space(c) && !is_letter(c) && !is_number(c);
  };
  if (const size_t end = run(t, first, is_other); end > first) return run(t, end, is_line_break);
  return match_lines(t, i);
}

size_t match_deepseek_v3(Text t, size_t i) {
  // [!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+
  if (t[i].code_point < 0x80 && is_punctuation_or_symbol(t[i])) {
    if (const size_t end = run(t, i + 1, is_ascii_letter); end > i + 1) return end;
  }
  // [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+ (a mark in the first place belongs to the run as well)
  const bool lead =
      !is_letter_or_mark(t[i]) && !is_punctuation_or_symbol(t[i]) && !is_line_break(t[i]);
  if (const size_t end = run(t, i + lead, is_letter_or_mark); end > i + lead) return end;
  //  ?[\p{P}\p{S}]+[\r\n]*
  const size_t first = i + (t[i].code_point == ' ');
  if (const size_t end = run(t, first, is_punctuation_or_symbol); end > first)
    return run(t, end, is_line_break);
  return match_lines(t, i);
}

// \s?[..]+ where the class may hold white space itself
template <class In>
size_t match_word(Text t, size_t i, In in) {
  const bool lead = is_space(t[i]) && i + 1 < t.size() && in(t[i + 1]);
  return run(t, i + lead, in);
}

template <class MatchAt>
Match first_match(Text t, size_t from, MatchAt match_at) {
  for (size_t i = from; i < t.size(); ++i) {
    if (const size_t end = match_at(t, i); end > i) return {i, end};
  }
  return {t.size(), t.size()};
}

// \s+$ where $ is the end, or before any \n. Run by run: starting anew at each space would be
// quadratic.
Match first_trailing_space(Text t, size_t from) {
  for (size_t end = from; true; from = end) {
    const size_t begin = run(t, from, [](const Char& c) { return !is_space(c); });
    end = run(t, begin, is_space);
    if (end == t.size()) return {begin, end};
    for (size_t k = end; k-- > begin + 1;) {
      if (t[k].code_point == '\n') return {begin, k};
    }
  }
}

Match first_match(Splitter splitter, Text t, size_t from) {
  const auto of_class = [&](std::u32string_view cls) {
    return first_match(t, from, [&](Text text, size_t i) {
      return run(text, i, [&](const Char& c) { return in_class(c, cls); });
    });
  };
  const auto word = [&](auto in) {
    return first_match(t, from, [&](Text text, size_t i) { return match_word(text, i, in); });
  };
  const auto word_of_class = [&](std::u32string_view cls) {
    return word([cls](const Char& c) { return in_class(c, cls); });
  };
  const auto upto = [&](size_t count, bool (*in)(const Char&)) {
    return first_match(t, from, [&](Text text, size_t i) {
      return run(text.first(std::min(text.size(), i + count)), i, in);
    });
  };
  switch (splitter) {
    case Splitter::kGpt2:
      return first_match(t, from, match_gpt2);
    case Splitter::kLlama3:
      return first_match(t, from, match_llama3<3>);
    case Splitter::kQwen2:
      return first_match(t, from, match_llama3<1>);
    case Splitter::kDigit:
      return upto(1, is_number);
    case Splitter::kDigits3:
      return upto(3, is_number);
    case Splitter::kLineBreak:
      return upto(1, is_line_break);
    case Splitter::kLetters:
      return word(is_letter);
    case Splitter::kPunctuation:
      return word(is_punctuation);
    case Splitter::kCasedLetters:
      return word_of_class(kCasedClass);
    case Splitter::kAsciiPunctuation:
      return word_of_class(kPunctuationClass);
    case Splitter::kTrailingSpace:
      return first_trailing_space(t, from);
    case Splitter::kCjkHangul:
      return of_class(kCjkHangulClass);
    case Splitter::kCjkKana:
      return of_class(kCjkKanaClass);
    case Splitter::kDeepseekV3:
      return first_match(t, from, match_deepseek_v3);
  }
  return {t.size(), t.size()};
}

// As tokenizer.json spells them, CR and LF escaped.
std::vector<std::pair<std::u32string, Splitter>> expressions() {
  const auto repeated = [](std::u32string_view before, std::u32string_view cls) {
    return std::u32string(before).append(U"[").append(cls).append(U"]+");
  };
  const std::u32string llama3_head = U"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
  const std::u32string llama3_tail =
      U"| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
  return {
      {U"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
       Splitter::kGpt2},
      {llama3_head + U"\\p{N}{1,3}" + llama3_tail, Splitter::kLlama3},
      {llama3_head + U"\\p{N}" + llama3_tail, Splitter::kQwen2},
      {U"\\p{N}", Splitter::kDigit},
      {U"\\p{N}{1,3}", Splitter::kDigits3},
      {U"[\\r\\n]", Splitter::kLineBreak},
      {U"\\s?\\p{L}+", Splitter::kLetters},
      {U"\\s?\\p{P}+", Splitter::kPunctuation},
      {repeated(U"\\s?", kCasedClass), Splitter::kCasedLetters},
      {repeated(U"\\s?", kPunctuationClass), Splitter::kAsciiPunctuation},
      {U"\\s+$", Splitter::kTrailingSpace},
      {repeated(U"", kCjkHangulClass), Splitter::kCjkHangul},
      {repeated(U"", kCjkKanaClass), Splitter::kCjkKana},
      {U"[!\"#$%&'()*+,\\-./"
       U":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
       U" ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+",
       Splitter::kDeepseekV3},
  };
}

}  // namespace

std::optional<Splitter> splitter_by_regex(std::string_view regex) {
  std::u32string text;
  while (!regex.empty()) {
    const Utf8Char c = decode_utf8(regex);
    if (c.code_point == '\r') {
      text += U"\\r";
    } else if (c.code_point == '\n') {
      text += U"\\n";
    } else {
      text += static_cast<char32_t>(c.code_point);
    }
    regex.remove_prefix(c.bytes);
  }
  for (const auto& [expression, splitter] : expressions()) {
    if (expression == text) return splitter;
  }
  return std::nullopt;
}

std::string regex_of(Splitter splitter) {
  std::string regex;
  for (const auto& [expression, of] : expressions()) {
    if (of != splitter) continue;
    for (const char32_t c : expression) append_utf8(c, regex);
  }
  return regex;
}

std::optional<std::vector<Splitter>> splitters_by_gguf_name(std::string_view name) {
  using enum Splitter;
  if (name == "gpt-2" || name == "default") return std::vector{kGpt2};
  if (name == "smollm") return std::vector{kDigit, kGpt2};
  if (name == "llama-bpe") return std::vector{kLlama3};
  if (name == "qwen2" || name == "deepseek-r1-qwen") return std::vector{kQwen2};
  if (name == "deepseek-v3" || name == "joyai-llm")
    return std::vector{kDigits3, kCjkKana, kDeepseekV3};
  if (name == "deepseek-coder")
    return std::vector{kLineBreak, kLetters, kPunctuation, kCjkHangul, kDigit};
  if (name == "deepseek-llm") {
    return std::vector{kLineBreak,     kCasedLetters, kAsciiPunctuation,
                       kTrailingSpace, kCjkHangul,    kDigit};
  }
  return std::nullopt;
}

std::vector<std::string_view> split(std::string_view text, std::span<const Splitter> splitters) {
  std::vector<Char> chars;
  chars.reserve(text.size());
  for (std::string_view rest = text; !rest.empty();) {
    const Utf8Char c = decode_utf8(rest);
    chars.push_back({c.code_point, static_cast<uint8_t>(c.bytes), char_class(c.code_point)});
    rest.remove_prefix(c.bytes);
  }
  std::vector<size_t> ends, refined;  // of the pieces, in characters
  if (!chars.empty()) ends.push_back(chars.size());
  for (const Splitter splitter : splitters) {
    refined.clear();
    size_t begin = 0;
    for (const size_t end : ends) {
      const Text piece = Text(chars).subspan(begin, end - begin);
      for (size_t i = 0; i < piece.size();) {
        const Match match = first_match(splitter, piece, i);
        if (match.begin > i) refined.push_back(begin + match.begin);
        if (match.end > match.begin) refined.push_back(begin + match.end);
        i = match.end;
      }
      begin = end;
    }
    ends.swap(refined);
  }
  std::vector<std::string_view> pieces;
  pieces.reserve(ends.size());
  size_t byte = 0, i = 0;
  for (const size_t end : ends) {
    const size_t start = byte;
    for (; i < end; ++i) byte += chars[i].bytes;
    pieces.push_back(text.substr(start, byte - start));
  }
  return pieces;
}

}  // namespace fathom
