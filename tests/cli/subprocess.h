// Runs the real program, with pipes or on a terminal of its own, for tests of the command line.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

namespace fathom {

inline const std::string kBundled = std::string(FATHOM_SOURCE_DIR) + "/bundled/countdown-12m.gguf";
inline const std::string kGoldenGguf = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/gguf/";
// byte tokenizer, no template, context 512
inline const std::string kTinyModel = kGoldenGguf + "qwen2-256-Q4_K_M.gguf";

struct Finished {
  int code = -1;  // exit code, or 1000 + signal
  std::string out, err;
};

inline int exit_code(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

using Environment = std::map<std::string, std::string>;

// In the child: never returns. HOME is an empty folder, so that no test reads or writes the user's
// own files.
[[noreturn]] inline void exec_fathom(const std::vector<std::string>& arguments,
                                     const Environment& environment, const std::string& folder) {
  unsetenv("FATHOM_MODEL");
  unsetenv("NO_COLOR");
  unsetenv("XDG_STATE_HOME");
  setenv("HOME", "/nonexistent", 1);
  for (const auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
  if (!folder.empty() && chdir(folder.c_str()) != 0) _exit(99);
  std::vector<char*> argv = {const_cast<char*>("fathom")};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  execv(FATHOM_BINARY, argv.data());
  _exit(99);
}

// A child whose stdin, stdout and stderr are pipes.
class Child {
 public:
  explicit Child(const std::vector<std::string>& arguments, const Environment& environment = {},
                 const std::string& folder = "") {
    int in[2], out[2], err[2];
    EXPECT_EQ(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC) | pipe2(err, O_CLOEXEC), 0);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(in[0], 0);
      dup2(out[1], 1);
      dup2(err[1], 2);
      exec_fathom(arguments, environment, folder);
    }
    close(in[0]);
    close(out[1]);
    close(err[1]);
    in_ = in[1];
    out_ = out[0];
    err_ = err[0];
  }
  ~Child() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    for (const int fd : {in_, out_, err_}) {
      if (fd >= 0) close(fd);
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  pid_t pid() const { return pid_; }
  int out() const { return out_; }
  void close_out() { close(std::exchange(out_, -1)); }
  void close_in() { close(std::exchange(in_, -1)); }

  // Gives it `input`, reads all it writes, and waits.
  Finished finish(const std::string& input = "") {
    Finished result;
    std::thread writer([&] {
      if (in_ < 0) return;
      size_t at = 0;
      while (at < input.size()) {
        const ssize_t n = ::write(in_, input.data() + at, input.size() - at);
        if (n <= 0) break;
        at += static_cast<size_t>(n);
      }
      close_in();
    });
    std::thread errors([&] { result.err = drain(err_); });
    if (out_ >= 0) result.out = drain(out_);
    errors.join();
    writer.join();
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    result.code = exit_code(status);
    return result;
  }

 private:
  static std::string drain(int fd) {
    std::string text;
    char buffer[4096];
    while (true) {
      const ssize_t n = ::read(fd, buffer, sizeof buffer);
      if (n <= 0) return text;
      text.append(buffer, static_cast<size_t>(n));
    }
  }
  pid_t pid_ = -1;
  int in_ = -1, out_ = -1, err_ = -1;
};

inline Finished run_fathom(const std::vector<std::string>& arguments, const std::string& input = "",
                           const Environment& environment = {}, const std::string& folder = "") {
  signal(SIGPIPE, SIG_IGN);
  return Child(arguments, environment, folder).finish(input);
}

// A child on a terminal of `columns` x 24.
class TerminalChild {
 public:
  explicit TerminalChild(const std::vector<std::string>& arguments,
                         const Environment& environment = {}, unsigned short columns = 100) {
    winsize size{24, columns, 0, 0};
    pid_ = forkpty(&fd_, nullptr, nullptr, &size);
    if (pid_ == 0) {
      setenv("TERM", "xterm", 1);
      exec_fathom(arguments, environment, "");
    }
  }
  ~TerminalChild() {
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(fd_);
  }
  TerminalChild(const TerminalChild&) = delete;
  TerminalChild& operator=(const TerminalChild&) = delete;

  void type(const std::string& bytes) {
    EXPECT_EQ(::write(fd_, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  }
  pid_t pid() const { return pid_; }

  // Whether `text` is on the screen by now.
  bool shows(const std::string& text) {
    pollfd ready{fd_, POLLIN, 0};
    char buffer[4096];
    while (poll(&ready, 1, 0) > 0) {
      const ssize_t n = ::read(fd_, buffer, sizeof buffer);
      if (n <= 0) break;
      screen_.append(buffer, static_cast<size_t>(n));
    }
    return screen_.find(text) != std::string::npos;
  }

  // Reads until `text` appeared after the last match; false if it does not within 30 s or the child
  // ends. A failure shows the screen.
  bool wait_for(const std::string& text) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (screen_.find(text, seen_) == std::string::npos) {
      pollfd ready{fd_, POLLIN, 0};
      char buffer[4096];
      const ssize_t n = poll(&ready, 1, 100) > 0 ? ::read(fd_, buffer, sizeof buffer) : 0;
      if (n < 0 || std::chrono::steady_clock::now() > deadline) {
        ADD_FAILURE() << "waited for '" << text << "', the screen is:\n" << screen_;
        return false;
      }
      screen_.append(buffer, static_cast<size_t>(n));
    }
    seen_ = screen_.find(text, seen_) + text.size();
    return true;
  }
  const std::string& screen() const { return screen_; }

  int finish() {
    char buffer[4096];
    while (true) {
      const ssize_t n = ::read(fd_, buffer, sizeof buffer);  // fails once the child has gone
      if (n <= 0) break;
      screen_.append(buffer, static_cast<size_t>(n));
    }
    int status = 0;
    waitpid(std::exchange(pid_, -1), &status, 0);
    return exit_code(status);
  }

 private:
  pid_t pid_ = -1;
  int fd_ = -1;
  std::string screen_;
  size_t seen_ = 0;
};

inline std::vector<nlohmann::json> json_lines(const std::string& text) {
  std::vector<nlohmann::json> objects;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    objects.push_back(nlohmann::json::parse(line, nullptr, false));
    EXPECT_TRUE(objects.back().is_object()) << line;
  }
  return objects;
}

inline bool has(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

inline void expect_error(const Finished& run, int code, const std::string& part) {
  EXPECT_EQ(run.code, code) << run.err;
  EXPECT_EQ(run.out, "");
  EXPECT_TRUE(run.err.starts_with("error: ")) << run.err;
  EXPECT_TRUE(has(run.err, part)) << run.err;
}

// many tokens are likely; id 67 is "A"
inline const std::string kSoftModel = kGoldenGguf + "v2-lite-256-Q4_K_M.gguf";

}  // namespace fathom
