// Ctrl-C. Outside an InterruptScope it ends the program at once with 130; inside, the first press
// only sets a flag that the work looks at between steps, and a second press ends the program.
#pragma once

namespace fathom {

// Call once at start. SIGTERM and SIGHUP end the program at once; SIGPIPE is ignored, so that a
// closed pipe is an error of write().
// SIGBUS (a mapped file shrank) prints "error: a model file changed while in use" and exits with 2;
// SIGABRT stays fatal.
void install_signal_handlers();

// Called before a signal ends the program: whoever changes the terminal sets it, and null again.
// Must be async-signal-safe.
void set_exit_hook(void (*restore)());

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
