#include "cli/line_editor.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "cli/text_width.h"

namespace fathom {
namespace {

// A terminal in memory: keys from a string, and a little screen that understands what the editor
// writes.
class MemoryTerminal : public EditorTerminal {
 public:
  explicit MemoryTerminal(std::string keys, int columns = 40, int rows = 10)
      : keys_(std::move(keys)), columns_(columns), rows_(rows) {
    lines_.resize(1);
  }
  std::optional<char> read() override {
    return at_ < keys_.size() ? std::optional(keys_[at_++]) : std::nullopt;
  }
  void suspend() override { ++suspended; }
  int columns() const override { return columns_; }
  int rows() const override { return rows_; }

  void write(std::string_view bytes) override {
    for (size_t i = 0; i < bytes.size(); ++i) {
      const char c = bytes[i];
      if (c == '\r') {
        column_ = 0;
      } else if (c == '\n') {
        if (++row_ == lines_.size()) lines_.emplace_back();
      } else if (c == '\x1b') {
        size_t end = i + 2;
        while (bytes[end] < '@') ++end;
        escape(bytes[end], std::atoi(std::string(bytes.substr(i + 2, end - i - 2)).c_str()));
        i = end;
      } else {
        ASSERT_LT(column_, static_cast<size_t>(columns_)) << "the terminal would wrap";
        if (lines_[row_].size() <= column_) lines_[row_].resize(column_ + 1, ' ');
        lines_[row_][column_++] = c;
      }
    }
  }
  std::string row(size_t i) const { return i < lines_.size() ? lines_[i] : "(none)"; }
  size_t cursor_row() const { return row_; }
  size_t cursor_column() const { return column_; }
  size_t highest = 0;
  int suspended = 0;

 private:
  void escape(char kind, int count) {
    if (kind == 'A') {
      ASSERT_GE(row_, static_cast<size_t>(count)) << "above the first row";
      row_ -= static_cast<size_t>(count);
    }
    if (kind == 'C') column_ += static_cast<size_t>(count);
    if (kind == 'J') {
      lines_.resize(row_ + 1);
      if (lines_[row_].size() > column_) lines_[row_].resize(column_);
    }
  }
  std::string keys_;
  size_t at_ = 0;
  int columns_, rows_;
  std::vector<std::string> lines_;
  size_t row_ = 0, column_ = 0;
};

LineEditor::Result edit(const std::string& keys, History& history) {
  MemoryTerminal terminal(keys);
  LineEditor editor(terminal, history);
  return editor.read({});
}

std::string typed(const std::string& keys) {
  History history;
  const auto result = edit(keys, history);
  EXPECT_EQ(result.outcome, LineEditor::Outcome::kLine) << keys;
  return result.text;
}

TEST(LineEditor, KeysEditTheLine) {
  EXPECT_EQ(typed("hello\r"), "hello");
  EXPECT_EQ(typed("helo\x1b[Dl\r"), "hello");          // left
  EXPECT_EQ(typed("ello\x01h\x05!\r"), "hello!");      // Ctrl-A, Ctrl-E
  EXPECT_EQ(typed("ello\x1b[Hh\x1b[F!\r"), "hello!");  // Home, End
  EXPECT_EQ(typed("ello\x1bOHh\x1bOF!\r"), "hello!");
  EXPECT_EQ(typed("ello\x1b[1~h\x1b[4~!\r"), "hello!");
  EXPECT_EQ(typed("hellx\x7fo\r"), "hello");         // backspace
  EXPECT_EQ(typed("xhello\x01\x1b[3~\r"), "hello");  // delete
  // Ctrl-D deletes on a line with text
  EXPECT_EQ(typed("xhello\x01\x04\r"), "hello");
  EXPECT_EQ(typed("hello world\x01\x1b[C\x1b[C\x0b\r"), "he");      // Ctrl-K
  EXPECT_EQ(typed("hello world\x1b[D\x15\r"), "d");                 // Ctrl-U
  EXPECT_EQ(typed("hello brave world\x17\x17new\r"), "hello new");  // Ctrl-W
  EXPECT_EQ(typed("one two\x1b"
                  "b\x1b"
                  "b"
                  "X\x1b"
                  "fY\r"),
            "XoneY two");  // words
}

TEST(LineEditor, CharactersMoveAndVanishWhole) {
  EXPECT_EQ(typed("日本語\x7f\r"), "日本");
  EXPECT_EQ(typed("日本\x1b[D\x1b[Dx\r"), "x日本");
  EXPECT_EQ(typed("e\u0301x\x1b[D\x1b[D|\r"), "|e\u0301x");  // a mark goes with its letter
  EXPECT_EQ(typed("e\u0301\x7f\r"), "");
  EXPECT_EQ(typed("a\xff"
                  "b\r"),
            "a\uFFFDb");  // not UTF-8
}

TEST(LineEditor, UnknownSequencesAndControlsAreSwallowed) {
  EXPECT_EQ(typed("a\x1b[15~b\x1b[1;2Pc\x1b[?1;2cd\x1bzd\r"), "abcdd");
  EXPECT_EQ(typed(std::string("a\0b", 3) + "\x1c"
                                           "c\r"),
            "abc");
}

TEST(LineEditor, APastedTextIsInsertedAndNotSent) {
  EXPECT_EQ(typed("say: \x1b[200~one\rtwo\r\nthree\x1b[201~ end\r"), "say: one\ntwo\nthree end");
  // no control character gets in
  EXPECT_EQ(typed("\x1b[200~a\x1b[31mred\x07\x1b[201~\r"), "a[31mred");
}

TEST(LineEditor, TripleQuotesHoldSeveralLines) {
  EXPECT_EQ(typed("\"\"\"\rone\rtwo\"\"\"\r"), "one\ntwo");
  EXPECT_EQ(typed("\"\"\"one\"\"\"\r"), "one");
  EXPECT_EQ(typed("a\x1b\rb\r"), "a\nb");          // Alt-Enter
  EXPECT_EQ(typed("say \"\"\"\r"), "say \"\"\"");  // only at the beginning
}

TEST(LineEditor, ControlCAndControlDReport) {
  History history;
  EXPECT_EQ(edit("\x03", history).outcome, LineEditor::Outcome::kInterrupt);
  EXPECT_EQ(edit("abc\x03", history).text, "abc");
  EXPECT_EQ(edit("\x04", history).outcome, LineEditor::Outcome::kEnd);
  EXPECT_EQ(edit("abc", history).outcome, LineEditor::Outcome::kEnd);  // input ended
}

TEST(LineEditor, ArrowsWalkTheHistoryAndKeepTheDraft) {
  History history;
  edit("first\r", history);
  edit("second\r", history);
  edit("second\r", history);  // not twice
  ASSERT_EQ(history.entries().size(), 2u);
  EXPECT_EQ(edit("\x1b[A\x1b[A\r", history).text, "first");
  EXPECT_EQ(edit("dra\x1b[A\x1b[A\x1b[B\x1b[B\x1b[B"
                 "ft\r",
                 history)
                .text,
            "draft");
  EXPECT_EQ(edit("\x1b[A\x1b[A\x1b[A\x1b[A!\r", history).text, "first!");  // the oldest is the end
}

TEST(LineEditor, ArrowsMoveBetweenLinesFirst) {
  EXPECT_EQ(typed("\x1b[200~abc\ndef\nghi\x1b[201~\x1b[AX\x1b[AY\x1b[B\x1b[BZ\r"),
            "abcY\ndefX\nghiZ");
  EXPECT_EQ(typed("\x1b[200~abc\nde\x1b[201~\x01X\x0b\x1b[A|\r"), "a|bc\nX");
}

TEST(History, IsKeptInAFileWithLineBreaks) {
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("fathom_history_" + std::to_string(getpid()));
  const std::filesystem::path file = folder / "deep" / "history";
  {
    History history(file);
    history.add("one\ntwo \\n three\\");
    history.add("next");
  }
  EXPECT_EQ(History(file).entries(), (std::vector<std::string>{"one\ntwo \\n three\\", "next"}));
  EXPECT_EQ(std::filesystem::status(file).permissions() & std::filesystem::perms::all,
            std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  {
    std::ofstream out(file);
    for (size_t i = 0; i < History::kMaxEntries + 5; ++i) out << "entry " << i << '\n';
  }
  std::filesystem::permissions(file, std::filesystem::perms(0644));
  EXPECT_EQ(History(file).entries().size(), History::kMaxEntries);
  // shortened by a file of its own
  EXPECT_EQ(std::filesystem::status(file).permissions(), std::filesystem::perms(0600));
  EXPECT_EQ(History(file).entries().front(), "entry 5");
  std::filesystem::remove_all(folder);
  History("/proc/nowhere/history").add("lost without a word");
}

TEST(LineEditor, TheScreenShowsTextAndCursor) {
  History history;
  MemoryTerminal terminal("abc\x1b[D", 20);
  LineEditor(terminal, history).read({});  // input ends; the editor then goes to a new line
  EXPECT_EQ(terminal.row(0), "> abc");
  MemoryTerminal wide(std::string(50, 'x') + "\x01", 20);
  LineEditor(wide, history).read({});
  EXPECT_EQ(wide.row(0), "> " + std::string(17, 'x'));
  EXPECT_EQ(wide.row(1), std::string(19, 'x'));
  EXPECT_EQ(wide.row(2), std::string(14, 'x'));
  EXPECT_EQ(wide.cursor_row(), 1u);  // the cursor was on row 0 when input ended
}

TEST(LineEditor, ATextTallerThanTheScreenShowsThePartAroundTheCursor) {
  std::string paste = "\x1b[200~";
  for (int i = 0; i < 30; ++i) paste += "line " + std::to_string(i) + "\n";
  History history;
  MemoryTerminal terminal(paste + "\x1b[201~", 40, 10);
  LineEditor(terminal, history).read({});
  EXPECT_EQ(terminal.row(0), ". line 22");
  EXPECT_EQ(terminal.row(8), ". ");
}

TEST(Layout, WideCharactersBreakBeforeTheEdge) {
  // nine columns: prompt and three of two columns
  const Layout layout = lay_out("> ", ". ", "日本語日本語", 6, 10);
  ASSERT_EQ(layout.rows.size(), 2u);
  EXPECT_EQ(layout.rows[0], "> 日本語");
  EXPECT_EQ(layout.rows[1], "日本語");
  EXPECT_EQ(layout.cursor_row, 0u);
  EXPECT_EQ(layout.cursor_column, 6);
  const Layout end = lay_out("> ", ". ", "日本語日本語", 9, 10);
  EXPECT_EQ(end.cursor_row, 1u);
  EXPECT_EQ(end.cursor_column, 0);
  EXPECT_EQ(lay_out("> ", ". ", "a\nb\n", 4, 80).rows,
            (std::vector<std::string>{"> a", ". b", ". "}));
}

TEST(TextWidth, KnowsNarrowWideAndZero) {
  EXPECT_EQ(text_columns("abc"), 3);
  EXPECT_EQ(text_columns("日本"), 4);
  EXPECT_EQ(text_columns("e\u0301"), 1);
  EXPECT_EQ(text_columns("한글"), 4);
  EXPECT_EQ(text_columns("😀"), 2);
  EXPECT_EQ(text_columns("ｆｕ"), 4);
  EXPECT_EQ(text_columns("ñ—é"), 3);
  EXPECT_EQ(text_columns("\x1b\t"), 0);
}

}  // namespace
}  // namespace fathom
