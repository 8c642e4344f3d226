// Drafters that know too much or too little.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "base/random.h"
#include "engine/draft.h"

namespace fathom {

// Mostly wrong.
inline TokenDrafter bad_drafter() {
  return [](std::span<const int32_t> tokens, int64_t most, std::vector<int32_t>& drafts) {
    for (int64_t i = 0; i < most; ++i)
      drafts.push_back(static_cast<int32_t>(random_bits({.seed = 12}, tokens.size()) % 200));
    return kMostMatch;
  };
}

// Knows how these texts go on; says something else once in `wrong` tokens (0 = never).
inline TokenDrafter knowing_drafter(std::vector<std::vector<int32_t>> texts, uint64_t wrong) {
  return [texts = std::move(texts), wrong](std::span<const int32_t> tokens, int64_t most,
                                           std::vector<int32_t>& drafts) {
    for (const std::vector<int32_t>& text : texts) {
      if (text.size() <= tokens.size() || !std::equal(tokens.begin(), tokens.end(), text.begin()))
        continue;
      for (size_t i = tokens.size(); i < text.size() && most > 0; ++i, --most) {
        const bool lies = wrong > 0 && random_bits({.seed = 13}, i) % wrong == 0;
        drafts.push_back(lies ? (text[i] + 1) % 200 : text[i]);
      }
      break;
    }
    return kMostMatch;
  };
}

}  // namespace fathom
