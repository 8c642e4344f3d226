#include "cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

#include "base/check.h"
#include "base/error.h"
#include "cli/output.h"

namespace fathom {
namespace {

// A signal handler can reach nothing but globals; lock-free atomics are the kind it may touch.
std::atomic<bool> in_scope{false};
std::atomic<bool> pressed{false};
std::atomic<void (*)()> exit_hook{nullptr};
static_assert(std::atomic<bool>::is_always_lock_free &&
              std::atomic<void (*)()>::is_always_lock_free);

void run_exit_hook() {
  if (void (*restore)() = exit_hook.load()) restore();
}

extern "C" void on_signal(int signal) {
  if (signal == SIGINT && in_scope.load() && !pressed.exchange(true)) return;
  run_exit_hook();
  _exit(128 + signal);
}

extern "C" void on_shrunk_file(int) {
  run_exit_hook();
  write_stderr("error: a model file changed while in use (it became shorter)\n");
  _exit(static_cast<int>(ExitCode::kBadInput));
}

extern "C" void on_abort(int signal) {
  run_exit_hook();
  raise(signal);  // blocked until this returns, and by then fatal again (SA_RESETHAND)
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  sigemptyset(&action.sa_mask);
  action.sa_handler = SIG_IGN;
  FATHOM_CHECK(sigaction(SIGPIPE, &action, nullptr) == 0);
  action.sa_handler = on_shrunk_file;
  FATHOM_CHECK(sigaction(SIGBUS, &action, nullptr) == 0);
  action.sa_handler = on_abort;
  action.sa_flags = SA_RESETHAND;
  FATHOM_CHECK(sigaction(SIGABRT, &action, nullptr) == 0);
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction inherited {};
    FATHOM_CHECK(sigaction(signal, nullptr, &inherited) == 0);
    // nohup, background jobs
    if (inherited.sa_handler != SIG_IGN) FATHOM_CHECK(sigaction(signal, &action, nullptr) == 0);
  }
}

void set_exit_hook(void (*restore)()) { exit_hook.store(restore); }

InterruptScope::InterruptScope() {
  pressed.store(false);
  in_scope.store(true);
}
InterruptScope::~InterruptScope() { in_scope.store(false); }

bool interrupted() { return pressed.load(); }

void check_interrupt() {
  if (interrupted()) throw Interrupted{};
}

}  // namespace fathom
