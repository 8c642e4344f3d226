#include "text/stop_strings.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/limits.h"

namespace fathom {
namespace {

// The next state of a Knuth-Morris-Pratt automaton. REQUIRES: matched < stop.size().
size_t advance(std::string_view stop, const std::vector<size_t>& border, size_t matched, char c) {
  while (matched > 0 && stop[matched] != c) matched = border[matched - 1];
  return stop[matched] == c ? matched + 1 : 0;
}

}  // namespace

StopStrings::StopStrings(std::vector<std::string> stops) {
  const uint64_t most = Limits{}.stop_strings;
  if (stops.size() > most) fail("stop: {} strings, expected at most {}", stops.size(), most);
  for (size_t i = 0; i < stops.size(); ++i) {
    if (stops[i].empty()) fail("stop: string {}: empty, expected at least one byte", i);
    Automaton automaton{std::move(stops[i]), {0}, 0};
    for (size_t k = 1; k < automaton.stop.size(); ++k) {
      automaton.border.push_back(
          advance(automaton.stop, automaton.border, automaton.border.back(), automaton.stop[k]));
    }
    automata_.push_back(std::move(automaton));
  }
}

std::string StopStrings::push(std::string_view text) {
  if (stopped_) return {};
  for (const char c : text) {
    held_ += c;
    size_t completed = 0;
    for (Automaton& a : automata_) {
      a.matched = advance(a.stop, a.border, a.matched, c);
      if (a.matched == a.stop.size()) completed = std::max(completed, a.matched);
    }
    if (completed > 0) {
      stopped_ = true;
      return take(held_.size() - begin_ - completed);
    }
  }
  size_t possible = 0;
  for (const Automaton& a : automata_) possible = std::max(possible, a.matched);
  return take(held_.size() - begin_ - possible);
}

std::string StopStrings::finish() { return stopped_ ? std::string() : take(held_.size() - begin_); }

std::string StopStrings::take(size_t bytes) {
  std::string taken = held_.substr(begin_, bytes);
  begin_ += bytes;
  // not each time: a long held suffix must not move for every byte before it
  if (begin_ > held_.size() / 2) {
    held_.erase(0, begin_);
    begin_ = 0;
  }
  return taken;
}

}  // namespace fathom
