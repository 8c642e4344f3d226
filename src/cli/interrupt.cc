#include "cli/interrupt.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>

#include "base/check.h"
#include "cli/output.h"

namespace fathom {
namespace {

constexpr int kInterruptedCode = 130;
// A signal handler can reach nothing but globals; lock-free atomics are the kind it may touch.
std::atomic<bool> in_scope{false};
std::atomic<bool> pressed{false};
static_assert(std::atomic<bool>::is_always_lock_free);

extern "C" void on_interrupt(int) {
  if (!in_scope.load() || pressed.exchange(true)) _exit(kInterruptedCode);
}

}  // namespace

void install_signal_handlers() {
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  FATHOM_CHECK(sigaction(SIGINT, &action, nullptr) == 0);
  action.sa_handler = SIG_IGN;
  FATHOM_CHECK(sigaction(SIGPIPE, &action, nullptr) == 0);
}

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
