// The table of subcommands, and the flags of each bound to its options. CLI11 is included in
// commands.cc and nowhere else.
#pragma once

namespace fathom {

// What the command line asks for; its exit code. Throws Error (2) for a line that is none, and what
// the command throws.
int run_command(int argc, char** argv);

}  // namespace fathom
