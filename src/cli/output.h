// The two streams of the program. stdout carries the answer and nothing else; notes, bars and
// warnings go to stderr.
//
// Writing to a closed pipe throws ClosedPipe, which ends the program quietly. Notes never fail: a
// full or closed stderr must not lose an answer.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace fathom {

struct ClosedPipe {};   // whoever read our stdout has gone
struct Interrupted {};  // Ctrl-C: exit code 130

// Flags that every command has.
struct OutputOptions {
  bool quiet = false;  // stderr: errors only
  bool verbose = false;
  bool no_color = false;  // also the environment variable NO_COLOR
};

// Occupies those of the descriptors 0, 1 and 2 that the caller has closed: or the next file opened,
// a model or a run's lock, would be stdout. Reading and writing them fails as before. Call once,
// before any file is opened.
void keep_streams_closed();

// All of `bytes`, at once (no buffer: an answer is seen token by token).
void write_stdout(std::string_view bytes);
void write_stderr(std::string_view bytes);

template <class... Args>
void out(fmt::format_string<Args...> text, Args&&... args) {
  write_stdout(fmt::format(text, std::forward<Args>(args)...));
}
// One object on one line of stdout; bytes that are not UTF-8 become U+FFFD.
void print_json(const nlohmann::ordered_json& object);
// One line on stderr.
template <class... Args>
void note(fmt::format_string<Args...> text, Args&&... args) {
  write_stderr(fmt::format(text, std::forward<Args>(args)...) + "\n");
}

bool is_terminal(int fd);
// A terminal that may be coloured: not with --no-color, NO_COLOR or TERM=dumb.
bool use_color(int fd, const OutputOptions& options);
int terminal_columns(int fd);  // 80 if unknown

// Grey if `color`, and back.
struct Grey {
  explicit Grey(bool color) : begin(color ? "\x1b[2m" : ""), end(color ? "\x1b[0m" : "") {}
  std::string_view begin, end;
};

// Text of a model made safe for a terminal: control characters (escape sequences begin with one)
// are left out, but newline and tab.
std::string without_controls(std::string_view text);

// "1.5 GiB", "312 MiB", "17 bytes".
std::string bytes_text(uint64_t bytes);
// "671.0 B", "1.5 B", "135 M", "42 K": counts of parameters.
std::string count_text(double count);
// A single line of text for a person: "3 h 20 min", "2 min 5 s", "1.4 s".
std::string duration_text(double seconds);

}  // namespace fathom
