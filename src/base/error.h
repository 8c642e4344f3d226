// Errors of the outside world: files, configs, requests, peers, the operating system.
//
// `fail(...)` throws a fathom::Error whose text reads "place: subject: found, expected (why)". Our
// own bugs are FATHOM_CHECK (check.h) and never reach here. Caught in three places only:
// cli/main.cc, the server's request boundary and the trainer.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>

namespace fathom {

// Process exit codes; 0 is success, 130 an interrupt.
enum class ExitCode { kInternal = 1, kBadInput = 2, kNoResources = 3, kDiverged = 4 };

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& text) : std::runtime_error(text), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

// Bad input (exit code 2). fmt syntax: fail("{}: tensor {}: shape {}, expected {}", file,
// quoted(name), ...).
template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(ExitCode::kBadInput, fmt::format(text, std::forward<Args>(args)...));
}

// Memory, disk or another resource is missing (exit code 3).
template <class... Args>
[[noreturn]] void fail_resource(fmt::format_string<Args...> text, Args&&... args) {
  throw Error(ExitCode::kNoResources, fmt::format(text, std::forward<Args>(args)...));
}

// A name from outside, made safe to print: control bytes and invalid UTF-8 escaped as \xNN, cut
// after 128 bytes, in single quotes: quoted(name). An object, because for a std::string a plain
// function would lose to std::quoted.
struct Quoted {
  std::string operator()(std::string_view name) const;
};
inline constexpr Quoted quoted;

}  // namespace fathom
