#include "text/added_tokens.h"

#include <algorithm>
#include <utility>

#include "base/utf8.h"
#include "text/unicode.h"

namespace fathom {
namespace {

bool is_space(const Utf8Char& c) { return char_class(c.code_point) == CharClass::kSpace; }

size_t leading_space(std::string_view text) {
  size_t end = 0;
  while (end < text.size()) {
    const Utf8Char c = decode_utf8(text.substr(end));
    if (!is_space(c)) break;
    end += c.bytes;
  }
  return end;
}

size_t without_trailing_space(std::string_view text) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = end - 1;
    while (begin > 0 && end - begin < 3 && (text[begin] & 0xc0) == 0x80) --begin;
    const Utf8Char c = decode_utf8(text.substr(begin, end - begin));
    if (c.bytes != end - begin || !is_space(c)) break;
    end = begin;
  }
  return end;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  for (const AddedToken& token : tokens_)
    begins_[static_cast<unsigned char>(token.content[0])] = true;
}

const AddedToken* AddedTokenMatcher::longest_at(std::string_view text) const {
  // [low, high) are the tokens that agree with the first `depth` bytes; the one that is no longer
  // than that comes first.
  const AddedToken* longest = nullptr;
  auto low = tokens_.begin(), high = tokens_.end();
  for (size_t depth = 0; true; ++depth) {
    if (low != high && low->content.size() == depth) longest = &*low++;
    if (low == high || depth == text.size()) return longest;
    const auto byte = [depth](const AddedToken& t) {
      return static_cast<unsigned char>(t.content[depth]);
    };
    const auto wanted = static_cast<unsigned char>(text[depth]);
    low = std::partition_point(low, high, [&](const AddedToken& t) { return byte(t) < wanted; });
    high = std::partition_point(low, high, [&](const AddedToken& t) { return byte(t) == wanted; });
  }
}

AddedTokenMatcher::Match AddedTokenMatcher::find(std::string_view text, size_t from) const {
  for (size_t i = from; i < text.size(); ++i) {
    if (!begins_[static_cast<unsigned char>(text[i])]) continue;
    const AddedToken* token = longest_at(text.substr(i));
    if (token == nullptr) continue;
    size_t end = i + token->content.size();
    if (token->rstrip) end += leading_space(text.substr(end));
    const size_t begin =
        token->lstrip ? from + without_trailing_space(text.substr(from, i - from)) : i;
    return {begin, end, token};
  }
  return {text.size(), text.size(), nullptr};
}

}  // namespace fathom
