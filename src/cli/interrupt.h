// Ctrl-C. Outside an InterruptScope it ends the program at once with 130; inside, the first press only sets a flag that the work
// looks at between steps, and a second press ends the program.
#pragma once

namespace fathom {

// Call once at start; also ignores SIGPIPE, so that a closed pipe is an error of write().
void install_signal_handlers();

class InterruptScope {
 public:
  InterruptScope();  // clears the flag
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;
};

bool interrupted();
// Throws Interrupted if the flag is set.
void check_interrupt();

}  // namespace fathom
