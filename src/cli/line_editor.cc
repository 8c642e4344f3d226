#include "cli/line_editor.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <system_error>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/utf8.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/text_width.h"

namespace fathom {
namespace {

constexpr char kEscape = '\x1b';
constexpr std::string_view kPasteBegin = "\x1b[200~", kPasteEnd = "\x1b[201~";

// The plain text of pasted or typed bytes: UTF-8, line ends as \n, no control characters but \n and
// \t.
std::string clean(std::string_view bytes) {
  std::string text;
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] == '\r') {
      text += '\n';
      if (i + 1 < bytes.size() && bytes[i + 1] == '\n') ++i;
    } else {
      text += bytes[i];
    }
  }
  return without_controls(replace_invalid_utf8(text));
}

struct Sequence {
  std::string_view bytes;
  KeyCode code;
};
constexpr Sequence kSequences[] = {
    {"\x1b[A", KeyCode::kUp},
    {"\x1bOA", KeyCode::kUp},
    {"\x1b[B", KeyCode::kDown},
    {"\x1bOB", KeyCode::kDown},
    {"\x1b[C", KeyCode::kRight},
    {"\x1bOC", KeyCode::kRight},
    {"\x1b[D", KeyCode::kLeft},
    {"\x1bOD", KeyCode::kLeft},
    {"\x1b[H", KeyCode::kHome},
    {"\x1bOH", KeyCode::kHome},
    {"\x1b[1~", KeyCode::kHome},
    {"\x1b[7~", KeyCode::kHome},
    {"\x1b[F", KeyCode::kEnd},
    {"\x1bOF", KeyCode::kEnd},
    {"\x1b[4~", KeyCode::kEnd},
    {"\x1b[8~", KeyCode::kEnd},
    {"\x1b[3~", KeyCode::kDelete},
    {"\x1b[1;5C", KeyCode::kWordRight},
    {"\x1b[1;5D", KeyCode::kWordLeft},
    {"\x1b[1;3C", KeyCode::kWordRight},
    {"\x1b[1;3D", KeyCode::kWordLeft},
    {"\x1b"
     "f",
     KeyCode::kWordRight},
    {"\x1b"
     "b",
     KeyCode::kWordLeft},
    {"\x1b\r", KeyCode::kNewline},
    {"\x1b\n", KeyCode::kNewline},
};

std::optional<KeyCode> control_key(char byte) {
  switch (byte) {
    case '\r':
    case '\n':
      return KeyCode::kEnter;
    case 0x7f:
    case 0x08:
      return KeyCode::kBackspace;
    case 0x01:
      return KeyCode::kHome;
    case 0x02:
      return KeyCode::kLeft;
    case 0x03:
      return KeyCode::kInterrupt;
    case 0x04:
      return KeyCode::kEndOfInput;
    case 0x05:
      return KeyCode::kEnd;
    case 0x06:
      return KeyCode::kRight;
    case 0x0b:
      return KeyCode::kKillToEnd;
    case 0x0c:
      return KeyCode::kClearScreen;
    case 0x0e:
      return KeyCode::kDown;
    case 0x10:
      return KeyCode::kUp;
    case 0x15:
      return KeyCode::kKillToStart;
    case 0x17:
      return KeyCode::kKillWord;
    case 0x1a:
      return KeyCode::kSuspend;
    default:
      return std::nullopt;
  }
}

bool is_word(std::string_view text, size_t at) {
  const auto c = static_cast<unsigned char>(text[at]);
  return c >= 0x80 || std::isalnum(c) != 0 || c == '_';
}

bool is_inner_byte(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

std::string escaped(const std::string& entry) {
  std::string line;
  for (const char c : entry) {
    if (c == '\n')
      line += "\\n";
    else if (c == '\\')
      line += "\\\\";
    else
      line += c;
  }
  return line;
}

std::string unescaped(const std::string& line) {
  std::string entry;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '\\' && i + 1 < line.size())
      entry += line[++i] == 'n' ? '\n' : line[i];
    else
      entry += line[i];
  }
  return entry;
}

}  // namespace

// --- KeyDecoder ---

std::optional<Key> KeyDecoder::push(char byte) {
  if (pasting_) {
    paste_ += byte;
    if (!std::string_view(paste_).ends_with(kPasteEnd)) return std::nullopt;
    pasting_ = false;
    paste_.resize(paste_.size() - kPasteEnd.size());
    return Key{KeyCode::kText, clean(std::exchange(paste_, {}))};
  }
  if (!escape_.empty()) {
    escape_ += byte;
    return end_escape();
  }
  const bool control = utf8_.empty() && (static_cast<unsigned char>(byte) < 0x20 || byte == 0x7f);
  if (byte == kEscape) {
    utf8_.clear();
    escape_ = byte;
    return std::nullopt;
  }
  if (control) {
    if (byte == '\t') return Key{KeyCode::kText, "\t"};
    const auto code = control_key(byte);
    return code ? std::optional(Key{*code, ""}) : std::nullopt;
  }
  utf8_ += byte;
  if (decode_utf8(utf8_).incomplete) return std::nullopt;
  return Key{KeyCode::kText, clean(std::exchange(utf8_, {}))};
}

// A sequence ends with a byte from '@' to '~' after ESC [ or ESC O, or is ESC and one byte.
std::optional<Key> KeyDecoder::end_escape() {
  constexpr size_t kMaxBytes = 32;
  const bool introduced = escape_[1] == '[' || escape_[1] == 'O';
  const bool ended =
      !introduced || (escape_.size() > 2 && escape_.back() >= '@' && escape_.back() <= '~');
  if (!ended && escape_.size() < kMaxBytes) return std::nullopt;
  const std::string sequence = std::exchange(escape_, {});
  if (sequence == kPasteBegin) {
    pasting_ = true;
    return std::nullopt;
  }
  for (const Sequence& known : kSequences) {
    if (sequence == known.bytes) return Key{known.code, ""};
  }
  return std::nullopt;
}

// --- History ---

History::History(std::filesystem::path file) : file_(std::move(file)) {
  std::ifstream in(file_);
  for (std::string line; std::getline(in, line);) {
    if (!line.empty()) entries_.push_back(unescaped(line));
  }
  if (entries_.size() <= kMaxEntries) return;
  entries_.erase(entries_.begin(), entries_.end() - kMaxEntries);
  std::string text;
  for (const std::string& entry : entries_) text += escaped(entry) + '\n';
  try {
    write_file_atomically(file_, text, kPrivateFile);
  } catch (const Error&) {  // a history that cannot be kept is no reason to fail
  }
}

void History::add(const std::string& entry) {
  if (entry.empty() || (!entries_.empty() && entries_.back() == entry)) return;
  entries_.push_back(entry);
  if (file_.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(file_.parent_path(), error);
  const int fd = ::open(file_.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, kPrivateFile);
  if (fd < 0) return;
  ::fchmod(fd, kPrivateFile);  // one that was there before
  const std::string line = escaped(entry) + '\n';
  [[maybe_unused]] const ssize_t n = ::write(fd, line.data(), line.size());
  ::close(fd);
}

std::filesystem::path default_history_file() {
  if (const char* state = std::getenv("XDG_STATE_HOME"); state != nullptr && *state == '/') {
    return std::filesystem::path(state) / "fathom/history";
  }
  const char* home = std::getenv("HOME");
  return home != nullptr && *home == '/'
             ? std::filesystem::path(home) / ".local/state/fathom/history"
             : std::filesystem::path();
}

// --- LineBuffer ---

// The begin of the character before `at`; marks go with the character they sit on.
size_t LineBuffer::before(size_t at) const {
  while (at > 0) {
    do --at;
    while (at > 0 && is_inner_byte(text_[at]));
    const uint32_t c = decode_utf8(std::string_view(text_).substr(at)).code_point;
    if (char_columns(c) > 0 || c == '\n' || c == '\t') break;
  }
  return at;
}

size_t LineBuffer::after(size_t at) const {
  if (at >= text_.size()) return at;
  at += decode_utf8(std::string_view(text_).substr(at)).bytes;
  while (at < text_.size()) {
    const Utf8Char c = decode_utf8(std::string_view(text_).substr(at));
    if (char_columns(c.code_point) > 0 || c.code_point == '\n' || c.code_point == '\t') break;
    at += c.bytes;
  }
  return at;
}

size_t LineBuffer::line_start(size_t at) const {
  const size_t newline = at == 0 ? std::string::npos : text_.rfind('\n', at - 1);
  return newline == std::string::npos ? 0 : newline + 1;
}

size_t LineBuffer::line_end(size_t at) const {
  return std::min(text_.find('\n', at), text_.size());
}

size_t LineBuffer::word_left() const {
  size_t at = cursor_;
  while (at > 0 && !is_word(text_, at - 1)) --at;
  while (at > 0 && is_word(text_, at - 1)) --at;
  return at;
}

size_t LineBuffer::word_right() const {
  size_t at = cursor_;
  while (at < text_.size() && !is_word(text_, at)) ++at;
  while (at < text_.size() && is_word(text_, at)) ++at;
  return at;
}

void LineBuffer::erase(size_t begin, size_t end) {
  text_.erase(begin, end - begin);
  cursor_ = begin;
}

void LineBuffer::recall(size_t entry) {
  const auto& entries = history_.entries();
  if (at_ == entries.size()) draft_ = text_;
  at_ = entry;
  text_ = at_ == entries.size() ? draft_ : entries[at_];
  cursor_ = text_.size();
}

// Up and down: between the lines of the text, past its ends through the history.
void LineBuffer::move_line(int direction) {
  const size_t start = line_start(cursor_), end = line_end(cursor_);
  const auto columns =
      static_cast<size_t>(text_columns(std::string_view(text_).substr(start, cursor_ - start)));
  if (direction < 0 && start == 0) {
    if (at_ > 0) recall(at_ - 1);
    return;
  }
  if (direction > 0 && end == text_.size()) {
    if (at_ < history_.entries().size()) recall(at_ + 1);
    return;
  }
  cursor_ = direction < 0 ? line_start(start - 1) : end + 1;
  const size_t last = line_end(cursor_);
  for (size_t passed = 0; passed < columns && cursor_ < last;) {
    const size_t next = after(cursor_);
    passed +=
        static_cast<size_t>(text_columns(std::string_view(text_).substr(cursor_, next - cursor_)));
    cursor_ = next;
  }
}

bool LineBuffer::needs_closing_quotes() const {
  return text_.starts_with("\"\"\"") && (text_.size() < 6 || !text_.ends_with("\"\"\""));
}

LineBuffer::State LineBuffer::apply(const Key& key) {
  switch (key.code) {
    case KeyCode::kText:
      text_.insert(cursor_, key.text);
      cursor_ += key.text.size();
      break;
    case KeyCode::kEnter:
      if (!needs_closing_quotes()) return State::kDone;
      cursor_ = text_.size();
      [[fallthrough]];
    case KeyCode::kNewline:
      text_.insert(cursor_++, 1, '\n');
      break;
    case KeyCode::kBackspace:
      erase(before(cursor_), cursor_);
      break;
    case KeyCode::kDelete:
      erase(cursor_, after(cursor_));
      break;
    case KeyCode::kLeft:
      cursor_ = before(cursor_);
      break;
    case KeyCode::kRight:
      cursor_ = after(cursor_);
      break;
    case KeyCode::kUp:
      move_line(-1);
      break;
    case KeyCode::kDown:
      move_line(1);
      break;
    case KeyCode::kHome:
      cursor_ = line_start(cursor_);
      break;
    case KeyCode::kEnd:
      cursor_ = line_end(cursor_);
      break;
    case KeyCode::kWordLeft:
      cursor_ = word_left();
      break;
    case KeyCode::kWordRight:
      cursor_ = word_right();
      break;
    case KeyCode::kKillToEnd:
      erase(cursor_, line_end(cursor_));
      break;
    case KeyCode::kKillToStart:
      erase(line_start(cursor_), cursor_);
      break;
    case KeyCode::kKillWord:
      erase(word_left(), cursor_);
      break;
    case KeyCode::kInterrupt:
      return State::kInterrupted;
    case KeyCode::kEndOfInput:
      if (text_.empty()) return State::kEnded;
      erase(cursor_, after(cursor_));
      break;
    case KeyCode::kClearScreen:
    case KeyCode::kSuspend:
      break;  // the editor's business
  }
  return State::kEditing;
}

// --- layout and editor ---

Layout lay_out(std::string_view prompt, std::string_view continuation, const std::string& text,
               size_t cursor, int columns) {
  constexpr int kTab = 4;
  const int width = std::max(columns - 1, 8);
  Layout layout;
  layout.rows.emplace_back(prompt);
  int column = text_columns(prompt);
  for (size_t at = 0;;) {
    if (at == cursor) {
      layout.cursor_row = layout.rows.size() - 1;
      layout.cursor_column = column;
    }
    if (at >= text.size()) return layout;
    const Utf8Char c = decode_utf8(std::string_view(text).substr(at));
    if (c.code_point == '\n') {
      layout.rows.emplace_back(continuation);
      column = text_columns(continuation);
    } else {
      const bool tab = c.code_point == '\t';
      const int wide = tab ? kTab : char_columns(c.code_point);
      if (column + wide > width) {
        layout.rows.emplace_back();
        column = 0;
        if (at == cursor) {
          layout.cursor_row = layout.rows.size() - 1;
          layout.cursor_column = 0;
        }
      }
      layout.rows.back() += tab ? std::string(kTab, ' ') : text.substr(at, c.bytes);
      column += wide;
    }
    at += c.bytes;
  }
}

void LineEditor::draw(const EditorPrompt& prompt, const LineBuffer& buffer) {
  const Layout layout = lay_out(prompt.sign, prompt.continuation, buffer.text(), buffer.cursor(),
                                terminal_.columns());
  // Of a text taller than the screen, the part around the cursor.
  const size_t height = static_cast<size_t>(std::max(terminal_.rows() - 1, 1));
  const size_t first = layout.cursor_row < height ? 0 : layout.cursor_row - height + 1;
  const size_t end = std::min(layout.rows.size(), first + height);
  std::string bytes = "\r";
  if (drawn_row_ > 0) bytes += fmt::format("\x1b[{}A", drawn_row_);
  bytes += "\x1b[J";
  for (size_t row = first; row < end; ++row)
    bytes += (row > first ? "\r\n" : "") + layout.rows[row];
  if (buffer.text().empty() && !prompt.hint.empty()) {
    const Grey grey(prompt.color);
    bytes += fmt::format("{}{}{}", grey.begin, prompt.hint, grey.end);
  }
  const size_t below = end - 1 - layout.cursor_row;
  if (below > 0) bytes += fmt::format("\x1b[{}A", below);
  bytes += "\r";
  if (layout.cursor_column > 0) bytes += fmt::format("\x1b[{}C", layout.cursor_column);
  drawn_row_ = layout.cursor_row - first;
  terminal_.write(bytes);
}

LineEditor::Result LineEditor::read(const EditorPrompt& prompt) {
  LineBuffer buffer(history_);
  drawn_row_ = 0;
  draw(prompt, buffer);
  // Leaves the text as it is on the screen and the cursor below it.
  const auto leave = [&] {
    EditorPrompt last = prompt;
    last.hint.clear();
    LineBuffer shown = buffer;
    while (shown.cursor() < shown.text().size()) shown.apply({KeyCode::kRight, ""});
    draw(last, shown);
    terminal_.write("\r\n");
  };
  while (const auto byte = terminal_.read()) {
    const auto key = decoder_.push(*byte);
    if (!key) continue;
    if (key->code == KeyCode::kClearScreen) {
      terminal_.write("\x1b[H\x1b[2J");
      drawn_row_ = 0;
    } else if (key->code == KeyCode::kSuspend) {
      terminal_.write("\r\n");
      terminal_.suspend();
      drawn_row_ = 0;
    }
    switch (buffer.apply(*key)) {
      case LineBuffer::State::kEditing:
        draw(prompt, buffer);
        break;
      case LineBuffer::State::kInterrupted:
        leave();
        return {Outcome::kInterrupt, buffer.text()};
      case LineBuffer::State::kEnded:
        leave();
        return {Outcome::kEnd, ""};
      case LineBuffer::State::kDone: {
        leave();
        std::string text = buffer.text();
        history_.add(text);
        if (text.starts_with("\"\"\"")) {
          text = text.substr(3, text.size() - 6);
          if (text.starts_with('\n')) text.erase(0, 1);
          if (text.ends_with('\n')) text.pop_back();
        }
        return {Outcome::kLine, text};
      }
    }
  }
  terminal_.write("\r\n");
  return {Outcome::kEnd, ""};
}

// --- ConsoleTerminal ---

namespace {

// What leave_terminal() restores: a signal handler calls it too and can reach nothing but globals.
termios saved_mode;
std::atomic<bool> changed{false};

void leave_terminal() {
  constexpr std::string_view kPasteOff = "\x1b[?2004l";
  if (!changed.exchange(false)) return;
  tcsetattr(STDIN_FILENO, TCSADRAIN, &saved_mode);
  [[maybe_unused]] const ssize_t n = ::write(STDOUT_FILENO, kPasteOff.data(), kPasteOff.size());
}

}  // namespace

ConsoleTerminal::ConsoleTerminal(Mode mode) : mode_(mode) { enter(); }

ConsoleTerminal::~ConsoleTerminal() {
  leave_terminal();
  set_exit_hook(nullptr);
}

void ConsoleTerminal::enter() {
  constexpr std::string_view kPasteOn = "\x1b[?2004h";
  if (tcgetattr(STDIN_FILENO, &saved_mode) != 0) return;
  set_exit_hook(leave_terminal);
  changed.store(true);
  termios mode = saved_mode;
  mode.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  if (mode_ == Mode::kEdit) {
    mode.c_iflag &= ~static_cast<tcflag_t>(BRKINT | ICRNL | INPCK | ISTRIP | IXON);
    mode.c_lflag &= ~static_cast<tcflag_t>(ICANON | IEXTEN | ISIG);
    mode.c_cc[VMIN] = 1;
    mode.c_cc[VTIME] = 0;
  }
  tcsetattr(STDIN_FILENO, TCSADRAIN, &mode);
  if (mode_ == Mode::kEdit) write_stdout(kPasteOn);
}

std::optional<char> ConsoleTerminal::read() {
  char byte = 0;
  while (true) {
    const ssize_t n = ::read(STDIN_FILENO, &byte, 1);
    if (n == 1) return byte;
    if (n == 0 || errno != EINTR) return std::nullopt;
  }
}

void ConsoleTerminal::write(std::string_view bytes) { write_stdout(bytes); }
int ConsoleTerminal::columns() const { return terminal_columns(STDOUT_FILENO); }

int ConsoleTerminal::rows() const {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_row > 0 ? size.ws_row : 24;
}

void ConsoleTerminal::suspend() {
  leave_terminal();
  raise(SIGTSTP);
  enter();
}

}  // namespace fathom
