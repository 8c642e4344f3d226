// A bar on stderr, on terminals only: stage, share, amount, rate and time left, rewritten in place
// at most ten times a second.
#pragma once

#include <cstdint>
#include <string>

#include "cli/output.h"

namespace fathom {

class Progress {
 public:
  enum class Unit { kBytes, kTokens };
  // Silent unless stderr is a terminal and neither quiet nor without colour (a bar is made of the
  // same escapes).
  Progress(const OutputOptions& options, std::string stage, Unit unit, uint64_t total);
  ~Progress();  // wipes the bar
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void at(uint64_t done);

 private:
  bool visible_;
  std::string stage_;
  Unit unit_;
  uint64_t total_;
  double begin_;
  double drawn_ = 0;  // when last
};

// What at() draws, without escapes; its own function for the sake of tests.
std::string progress_line(const std::string& stage, Progress::Unit unit, uint64_t done,
                          uint64_t total, double seconds, int columns);

}  // namespace fathom
