// The tokens of all pieces lie in one array, linked within each piece. Every pair knows its count
// and the places of its left token; a heap says which pair is the most frequent. A merge visits the
// places of its pair and nothing else. Counts in the heap may be too high, as a pair that lost
// places is only found out when it comes to the top; never too low, as all places of a pair come
// from the merge that made its younger token.
#include "text/bpe_trainer.h"

#include <algorithm>

#include "base/error.h"
#include "base/random.h"
#include "base/utf8.h"
#include "text/unicode.h"

namespace fathom {
namespace {

constexpr size_t kChunkBytes = 1 << 20, kMaxChunkBytes = 16 << 20;

const std::vector<Splitter>& deepseek_v3_splitters() {
  static const std::vector<Splitter> splitters = splitters_by_gguf_name("deepseek-v3").value();
  return splitters;
}

// Splitting takes a multiple of the text in memory, so it is done in chunks. No match of V3's
// expressions goes over a line break into anything but white space, so a cut there moves no border;
// text without such a place is cut anywhere.
size_t chunk_end(std::string_view text) {
  if (text.size() <= kChunkBytes) return text.size();
  const std::string_view reach = text.substr(0, kMaxChunkBytes);
  for (size_t i = reach.find('\n', kChunkBytes); i != reach.npos; i = reach.find('\n', i + 1)) {
    const std::string_view rest = text.substr(i + 1);
    if (rest.empty() || char_class(decode_utf8(rest).code_point) != CharClass::kSpace) return i + 1;
  }
  size_t end = reach.size();
  const auto inside_character = [&] {
    return (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80;
  };
  for (int k = 0; k < 3 && end < text.size() && inside_character(); ++k) --end;
  return end;
}

struct Pair {
  int32_t left, right;
  bool operator==(const Pair&) const = default;
  auto operator<=>(const Pair&) const = default;
};

struct PairHash {
  size_t operator()(const Pair& p) const {
    return mix_bits(uint64_t(uint32_t(p.left)) << 32 | uint32_t(p.right));
  }
};

struct Candidate {
  uint64_t count;
  Pair pair;
  bool operator<(const Candidate& other) const {  // the heap's top is the largest
    return count != other.count ? count < other.count : other.pair < pair;
  }
};

class Merger {
 public:
  explicit Merger(uint64_t bytes) : token_bytes_(kFirstMerge, 1) { symbols_.reserve(bytes); }

  void add_piece(std::string_view piece, uint64_t count) {
    const auto first = static_cast<uint32_t>(symbols_.size());
    for (const char c : piece) {
      const auto i = static_cast<uint32_t>(symbols_.size());
      const int32_t id = kSpecialTokens + static_cast<unsigned char>(c);
      symbols_.push_back(
          {id, i == first ? kNone : i - 1, i + 1, static_cast<uint32_t>(weights_.size())});
    }
    symbols_.back().next = kNone;
    weights_.push_back(count);
  }

  void start() {
    for (uint32_t i = 0; i < symbols_.size(); ++i) gain(i);
    offer_new();
  }

  // The most frequent pair; false if none occurs twice.
  bool pop(Pair& pair) {
    while (!heap_.empty()) {
      std::pop_heap(heap_.begin(), heap_.end());
      Candidate& top = heap_.back();
      const uint64_t count = occurrences_.find(top.pair)->second.count;
      if (count == top.count) {
        pair = top.pair;
        heap_.pop_back();
        return true;
      }
      if (count >= 2) {
        top.count = count;
        std::push_heap(heap_.begin(), heap_.end());
      } else {
        occurrences_.erase(top.pair);
        heap_.pop_back();
      }
    }
    return false;
  }

  // The pair becomes the next id everywhere. Its places are in ascending order, as those of the
  // merge (or of the text) that made them were: in a run of equal tokens the left ones pair up
  // first, as in the encoder.
  void merge(const Pair& pair) {
    const auto id = static_cast<int32_t>(token_bytes_.size());
    token_bytes_.push_back(token_bytes_[pair.left] + token_bytes_[pair.right]);
    const std::vector<uint32_t> places = std::move(occurrences_.extract(pair).mapped().places);
    for (const uint32_t i : places) {
      Symbol& left = symbols_[i];
      if (left.id != pair.left || left.next == kNone || symbols_[left.next].id != pair.right)
        continue;
      Symbol& right = symbols_[left.next];
      if (left.previous != kNone) lose(left.previous);
      lose(left.next);
      left.id = id;
      left.next = right.next;
      right.id = kGone;
      if (left.next != kNone) symbols_[left.next].previous = i;
      if (left.previous != kNone) gain(left.previous);
      gain(i);
    }
    offer_new();
  }

  uint64_t tokens() const {
    uint64_t sum = 0;
    for (const Symbol& s : symbols_) sum += s.id == kGone ? 0 : weights_[s.piece];
    return sum;
  }

 private:
  static constexpr uint32_t kNone = UINT32_MAX;
  static constexpr int32_t kGone = -1;  // merged into a token further left
  struct Symbol {
    int32_t id;
    uint32_t previous, next;  // kNone at the ends of the piece
    uint32_t piece;
  };
  struct Occurrences {
    uint64_t count = 0;
    std::vector<uint32_t> places;  // of left tokens; those that have merged meanwhile are skipped
  };

  // The pair that begins at i has come or gone; nothing if i ends its piece.
  void gain(uint32_t i) {
    if (symbols_[i].next == kNone) return;
    const Pair pair{symbols_[i].id, symbols_[symbols_[i].next].id};
    Occurrences& of = occurrences_[pair];
    if (of.places.empty()) new_pairs_.push_back(pair);
    of.count += weights_[symbols_[i].piece];
    of.places.push_back(i);
  }
  void lose(uint32_t i) {
    if (symbols_[i].next == kNone) return;
    const auto of = occurrences_.find({symbols_[i].id, symbols_[symbols_[i].next].id});
    if (of != occurrences_.end()) of->second.count -= weights_[symbols_[i].piece];
  }

  // From here on a new pair can only lose places: what is too rare now is forgotten.
  void offer_new() {
    for (const Pair& pair : new_pairs_) {
      const auto of = occurrences_.find(pair);
      if (of->second.count < 2 ||
          token_bytes_[pair.left] + token_bytes_[pair.right] > kMaxTrainedTokenBytes) {
        occurrences_.erase(of);
        continue;
      }
      heap_.push_back({of->second.count, pair});
      std::push_heap(heap_.begin(), heap_.end());
    }
    new_pairs_.clear();
  }

  std::vector<Symbol> symbols_;
  std::vector<uint64_t> weights_;      // by piece: how often it occurs
  std::vector<uint32_t> token_bytes_;  // by id
  std::unordered_map<Pair, Occurrences, PairHash> occurrences_;
  std::vector<Pair> new_pairs_;
  std::vector<Candidate> heap_;
};

}  // namespace

BpeTrainer::BpeTrainer(int64_t vocab_size, const Limits& limits)
    : vocab_size_(vocab_size), limits_(limits) {
  if (vocab_size < kFirstMerge || vocab_size > kMaxTrainedVocabulary) {
    fail("vocabulary: found {} tokens, expected {} ({} special ones and the bytes) to {}",
         vocab_size, kFirstMerge, kSpecialTokens, kMaxTrainedVocabulary);
  }
}

void BpeTrainer::add(std::string_view text, std::string_view place, const Progress& progress) {
  for (size_t done = 0; done < text.size();) {
    const std::string_view chunk = text.substr(done, chunk_end(text.substr(done)));
    for (const std::string_view piece : split(chunk, deepseek_v3_splitters())) {
      if (const auto known = counts_.find(piece); known != counts_.end()) {
        ++known->second;
        continue;
      }
      piece_bytes_ += piece.size();
      if (counts_.size() == limits_.trained_pieces || piece_bytes_ > limits_.trained_piece_bytes) {
        fail(
            "{}: {} different pieces of {} bytes up to here, expected at most {} of {} (train on a "
            "part of the text)",
            place, counts_.size() + 1, piece_bytes_, limits_.trained_pieces,
            limits_.trained_piece_bytes);
      }
      counts_.emplace(piece, 1);
    }
    done += chunk.size();
    text_bytes_ += chunk.size();
    if (progress) progress(done);
  }
}

TrainedBpe BpeTrainer::train(const Progress& progress) const {
  Merger merger(piece_bytes_);
  for (const auto& [piece, count] : counts_) merger.add_piece(piece, count);
  merger.start();
  TrainedBpe trained;
  for (Pair pair{}; trained.vocab_size() < vocab_size_ && merger.pop(pair);) {
    merger.merge(pair);
    trained.merges.emplace_back(pair.left, pair.right);
    if (progress) progress(static_cast<uint64_t>(trained.vocab_size()));
  }
  trained.text_bytes = text_bytes_;
  trained.text_tokens = merger.tokens();
  return trained;
}

std::string tokenizer_json(const TrainedBpe& trained, uint64_t max_bytes) {
  std::vector<std::string> tokens;
  tokens.reserve(256 + trained.merges.size());
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  const auto bytes = [&](int32_t id) -> const std::string& {
    return tokens[static_cast<size_t>(id - kSpecialTokens)];
  };
  // Two merges never give the same bytes: bytes that end up as one token between two borders do so
  // wherever these are borders. None spells a special token: the pre-tokeniser cuts each of those.
  for (const auto& [left, right] : trained.merges) tokens.push_back(bytes(left) + bytes(right));
  std::string file = tokenizer_json(deepseek_v3_splitters(), tokens, trained.merges);
  if (file.size() > max_bytes)
    fail("tokenizer.json: {} bytes, expected at most {} (a smaller vocabulary)", file.size(),
         max_bytes);
  return file;
}

}  // namespace fathom
