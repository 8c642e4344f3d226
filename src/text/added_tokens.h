// Tokens that are cut out of the text as whole strings, before any merging: leftmost match first,
// the longest among those.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool normalized = false;  // looked for in the normalised text, else in the text as it came
  bool lstrip = false;      // swallows white space on its left,
  bool rstrip = false;      // on its right
};

class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  // REQUIRES: contents are not empty and differ.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  struct Match {
    size_t begin, end;        // with the white space it swallows
    const AddedToken* token;  // null: there is no match, and begin = end = text.size()
  };
  // The first match in `text` from `from` on. Time is O(text) for tokens that are no repetitions of
  // themselves, at worst O(text * longest token).
  Match find(std::string_view text, size_t from) const;

 private:
  const AddedToken* longest_at(std::string_view text) const;

  std::vector<AddedToken> tokens_;  // by content
  std::array<bool, 256> begins_{};  // whether some token begins with this byte
};

}  // namespace fathom
