// Threads kept on one processor each. Not the default: it gains nothing measurable on a machine of
// one's own and costs up to half beside others (docs/log.md).
#pragma once

#include "base/thread_pool.h"

namespace fathom {

// Keeps worker w of the pool, the calling thread included, on the w-th processor that this process
// may use (counted around where there are fewer). Threads made later by a pinned thread inherit its
// processor, and available_cores() there is 1: call this last. Throws (exit code 3) if the system
// refuses. Call from the pool's caller thread.
void pin_threads(ThreadPool& pool);

}  // namespace fathom
