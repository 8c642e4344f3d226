// Learns byte-level BPE merges from text: the most frequent pair of neighbouring tokens becomes a
// token, again and again (Sennrich et al. 2016, over bytes as GPT-2 does it, in the pieces of
// DeepSeek-V3's pre-tokeniser).
//
// Equal pieces are counted, not kept. A pair occurs at every place where its two tokens are
// neighbours, so "aaa" has the pair (a, a) twice, times the count of the piece; among equally
// frequent pairs the smaller left id wins, then the smaller right one. Nothing depends on the order
// of the text: equal texts give equal files.
//
//   ids   0 .. 6 special (tokenizer_writer.h)   7 .. 262 the bytes   263 .. the merges by rank
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "text/tokenizer_writer.h"

namespace fathom {

inline constexpr int32_t kFirstMerge = kSpecialTokens + 256;
inline constexpr int64_t kMaxTrainedVocabulary = 1'000'000;
// Longer tokens are not made: they would be somebody's rulers and blank space, and a long run would
// double its way up.
inline constexpr uint32_t kMaxTrainedTokenBytes = 128;

struct TrainedBpe {
  std::vector<std::pair<int32_t, int32_t>> merges;  // ids by rank; rank r gives id kFirstMerge + r
  uint64_t text_bytes = 0, text_tokens = 0;  // the training text, and what it is in these tokens

  int64_t vocab_size() const { return kFirstMerge + std::ssize(merges); }
};

// tokenizer.json. Throws if a Tokenizer would refuse the file for its size.
std::string tokenizer_json(const TrainedBpe& trained,
                           uint64_t max_bytes = Limits{}.tokenizer_file_bytes);

class BpeTrainer {
 public:
  using Progress = std::function<void(uint64_t done)>;  // may throw to stop

  // Throws unless vocab_size is kFirstMerge to kMaxTrainedVocabulary.
  explicit BpeTrainer(int64_t vocab_size, const Limits& limits = {});

  // Counts the pieces of a text, any bytes; `place` is for messages, `progress` hears of bytes.
  // Throws if there are more different pieces than the limits allow.
  void add(std::string_view text, std::string_view place, const Progress& progress = {});
  // At most vocab_size tokens: fewer if no pair is left that occurs twice. `progress` hears of
  // tokens.
  TrainedBpe train(const Progress& progress = {}) const;

 private:
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };

  int64_t vocab_size_;
  Limits limits_;
  std::unordered_map<std::string, uint64_t, Hash, std::equal_to<>> counts_;
  uint64_t piece_bytes_ = 0;  // of the different pieces together
  uint64_t text_bytes_ = 0;
};

}  // namespace fathom
