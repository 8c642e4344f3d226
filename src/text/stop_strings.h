// Finds stop strings in generated text across the borders of tokens, while it streams.
//
// The match that ends first wins (of several ending together, the longest); the text before it is
// the result. The same for every way of cutting the stream. Linear in the text: one
// Knuth-Morris-Pratt automaton per stop string.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fathom {

class StopStrings {
 public:
  // Throws on more than Limits::stop_strings of them and on an empty one.
  explicit StopStrings(std::vector<std::string> stops);

  // Text that is safe to emit: everything but the longest suffix that a stop string may begin with.
  // Once a stop string was completed, stopped() holds and all that follows is swallowed.
  std::string push(std::string_view text);
  bool stopped() const { return stopped_; }
  // What was held back (nothing if stopped). Call once, at the end.
  std::string finish();

 private:
  struct Automaton {
    std::string stop;
    // per non-empty prefix: its longest proper suffix that is also a prefix
    std::vector<size_t> border;
    size_t matched = 0;
  };

  std::string take(size_t bytes);

  std::vector<Automaton> automata_;
  std::string held_;  // from begin_ on: text not yet emitted
  size_t begin_ = 0;
  bool stopped_ = false;
};

}  // namespace fathom
