// Reading a line from a person: editing, history, pasted text, several lines.
//
// Three parts, each testable alone: KeyDecoder (bytes to keys), LineBuffer (keys to text and
// cursor), layout (text to rows of a screen). LineEditor puts them on a terminal. A pasted text
// (bracketed paste) is inserted, never sent; a text that begins with """ is sent when it also ends
// with """; Alt-Enter inserts a line break.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

enum class KeyCode {
  kText,  // characters to insert
  kEnter,
  kNewline,
  kBackspace,
  kDelete,
  kLeft,
  kRight,
  kUp,
  kDown,
  kHome,
  kEnd,
  kWordLeft,
  kWordRight,
  kKillToEnd,
  kKillToStart,
  kKillWord,
  kClearScreen,
  kInterrupt,
  kEndOfInput,
  kSuspend,
};
struct Key {
  KeyCode code = KeyCode::kText;
  std::string text;
};

// Bytes as a terminal sends them. Unknown escape sequences are swallowed; bytes that are not UTF-8
// become U+FFFD.
class KeyDecoder {
 public:
  std::optional<Key> push(char byte);

 private:
  std::optional<Key> end_escape();
  std::string escape_;  // an escape sequence so far
  std::string utf8_;    // a character so far
  std::string paste_;
  bool pasting_ = false;
};

// Entries oldest first; kept in a file, one a line, if one is given. Losing history is no error:
// file problems are ignored.
class History {
 public:
  static constexpr size_t kMaxEntries = 1000;
  History() = default;
  explicit History(std::filesystem::path file);
  void add(const std::string& entry);  // not empty ones, not the last one again
  const std::vector<std::string>& entries() const { return entries_; }

 private:
  std::filesystem::path file_;
  std::vector<std::string> entries_;
};
// $XDG_STATE_HOME/fathom/history, else ~/.local/state/fathom/history; empty if neither is known.
std::filesystem::path default_history_file();

// The text being edited. The cursor is a byte offset at the begin of a character.
class LineBuffer {
 public:
  explicit LineBuffer(const History& history) : history_(history), at_(history.entries().size()) {}
  enum class State { kEditing, kDone, kInterrupted, kEnded };
  State apply(const Key& key);
  const std::string& text() const { return text_; }
  size_t cursor() const { return cursor_; }

 private:
  size_t before(size_t at) const;
  size_t after(size_t at) const;
  size_t line_start(size_t at) const;
  size_t line_end(size_t at) const;
  size_t word_left() const;
  size_t word_right() const;
  void erase(size_t begin, size_t end);
  void recall(size_t entry);
  void move_line(int direction);
  bool needs_closing_quotes() const;

  const History& history_;
  size_t at_;          // entry shown; entries().size() = the new text
  std::string draft_;  // the new text while an old one is shown
  std::string text_;
  size_t cursor_ = 0;
};

// Rows of a screen `columns` wide: prompt, text, continuation before every further line. No row is
// wider than columns - 1, so the terminal's own wrapping never comes in.
struct Layout {
  std::vector<std::string> rows;
  size_t cursor_row = 0;
  int cursor_column = 0;
};
Layout lay_out(std::string_view prompt, std::string_view continuation, const std::string& text,
               size_t cursor, int columns);

// What the editor needs of a terminal; tests have one in memory.
class EditorTerminal {
 public:
  virtual ~EditorTerminal() = default;
  virtual std::optional<char> read() = 0;  // absent: end of input
  virtual void write(std::string_view bytes) = 0;
  virtual int columns() const = 0;
  virtual int rows() const = 0;
  virtual void suspend() = 0;  // Ctrl-Z
};

struct EditorPrompt {
  std::string sign = "> ";
  std::string continuation = ". ";
  std::string hint;  // grey, while nothing is typed
  bool color = true;
};

class LineEditor {
 public:
  enum class Outcome { kLine, kInterrupt, kEnd };
  struct Result {
    Outcome outcome;
    std::string text;  // triple quotes taken off
  };
  LineEditor(EditorTerminal& terminal, History& history) : terminal_(terminal), history_(history) {}
  // kInterrupt: Ctrl-C (text tells whether something was typed). kEnd: Ctrl-D on an empty line, or
  // the end of input.
  Result read(const EditorPrompt& prompt);

 private:
  void draw(const EditorPrompt& prompt, const LineBuffer& buffer);
  EditorTerminal& terminal_;
  History& history_;
  KeyDecoder decoder_;
  size_t drawn_row_ = 0;  // of the cursor, below the first row drawn
};

// The real one, on stdin and stdout. While it lives the terminal is in raw mode with bracketed
// paste (kEdit), or only does not echo, so that keys struck during an answer do not mix with it;
// they are kept for the next line (kSilent).
class ConsoleTerminal : public EditorTerminal {
 public:
  enum class Mode { kEdit, kSilent };
  explicit ConsoleTerminal(Mode mode = Mode::kEdit);
  ~ConsoleTerminal() override;
  ConsoleTerminal(const ConsoleTerminal&) = delete;
  ConsoleTerminal& operator=(const ConsoleTerminal&) = delete;
  std::optional<char> read() override;
  void write(std::string_view bytes) override;
  int columns() const override;
  int rows() const override;
  void suspend() override;

 private:
  void enter();
  Mode mode_;
};

}  // namespace fathom
