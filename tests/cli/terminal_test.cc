// The program on a terminal.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "formats/gguf.h"
#include "formats/gguf_writer.h"
#include "tests/base/test_files.h"
#include "tests/cli/subprocess.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

TEST(Terminal, AChatAnswersStopsAndLeaves) {
  const TempDir home;
  TerminalChild chat({"run", kTinyModel, "--temp", "1", "-c", "400"}, {{"HOME", home.string()}});
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/set max_tokens 5\r");
  ASSERT_TRUE(chat.wait_for(">>> "));
  chat.type("hello\r");
  ASSERT_TRUE(chat.wait_for("generated 5 tokens"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/ctx\r");
  ASSERT_TRUE(chat.wait_for(" of 400 tokens"));
  ASSERT_TRUE(chat.wait_for("2 messages"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/undo\r");
  ASSERT_TRUE(chat.wait_for("taken back"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/ctx\r");
  ASSERT_TRUE(chat.wait_for("0 of 400 tokens (0 %), 0 messages"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/nosuch\r");
  ASSERT_TRUE(chat.wait_for("Send it as a message? [y/N]"));
  chat.type("n\r");
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("\x03");
  ASSERT_TRUE(chat.wait_for("Ctrl-D or /exit leaves"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/set temp -1\r");
  ASSERT_TRUE(chat.wait_for("error: "));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("\x1b[200~pasted\rlines\x1b[201~\r");
  ASSERT_TRUE(chat.wait_for("generated 5 tokens"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/save test\r");
  ASSERT_TRUE(chat.wait_for("Saved as"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/clear\r/load test\r");
  ASSERT_TRUE(chat.wait_for("user: pasted\r\nlines"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/set system Be brief.\r");
  ASSERT_TRUE(chat.wait_for("error: system: this model has no chat format for it"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/set max_tokens 0\r/set\r");
  ASSERT_TRUE(chat.wait_for("what the context leaves"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type(
      "/load " +
      home.write("question.json", R"({"messages":[{"role":"user","content":"four"}]})").string() +
      "\r");
  ASSERT_TRUE(chat.wait_for("user: four"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/ctx\r");
  ASSERT_TRUE(chat.wait_for("4 of 400 tokens (1 %), 1 messages"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/undo\r");
  ASSERT_TRUE(chat.wait_for("taken back"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("\x04");
  EXPECT_EQ(chat.finish(), 0);
  for (const char* kept : {".local/state/fathom/history", ".local/state/fathom/chats/test.json"}) {
    EXPECT_EQ(fs::status(home / kept).permissions(), fs::perms::owner_read | fs::perms::owner_write)
        << kept;
  }
  EXPECT_TRUE(has(chat.screen(), "\x1b[?2004l"));  // bracketed paste is off again
  std::ifstream history(home / ".local/state/fathom/history");
  std::string first, second;
  std::getline(history, first);
  std::getline(history, second);
  EXPECT_EQ(first, "/set max_tokens 5");
  EXPECT_EQ(second, "hello");
}

// The next prompt of a conversation begins with the last one, whose rows are still there. (All but
// one, which the MTP layer needs again, up to the generation prompt: this format leaves out the
// thoughts of earlier turns.)
TEST(Terminal, AChatComputesOnlyWhatIsNewInIt) {
  TerminalChild chat({"run", kBundled, "--temp", "0", "--no-history", "--no-color"});
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("Use 27, 7 and 12 to make 22.\r");
  ASSERT_TRUE(chat.wait_for("generated "));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  EXPECT_TRUE(has(chat.screen(), "prompt 33 tokens, ")) << chat.screen();
  chat.type("Use 3, 7 and 25 to make 46.\r");
  ASSERT_TRUE(chat.wait_for(" (30 cached), "));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/stats\r");
  ASSERT_TRUE(chat.wait_for("30 more from the cache"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("\x04");
  EXPECT_EQ(chat.finish(), 0);
}

TEST(Terminal, ControlCStopsTheAnswerAndTheTalkGoesOn) {
  TerminalChild chat({"run", kSoftModel, "--temp", "0", "--logit-bias", "67=100",
                      "--no-history"});  // 2,500 times "A", if nobody stops it
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("go\r");
  ASSERT_TRUE(chat.wait_for("AAA"));
  chat.type("\x03");
  ASSERT_TRUE(chat.wait_for("; interrupted"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  // Wherever else it falls, it ends nothing: between the line and the answer, during a command,
  // after the last token.
  for (int i = 0; i < 40; ++i) {
    chat.type(i % 2 == 0 ? "/clear\r" : "go\r");
    ASSERT_TRUE(chat.wait_for(
        "[?2004l"));  // the editor has let go of the terminal: the key is a signal now
    chat.type("\x03");
    ASSERT_TRUE(chat.wait_for("[?2004h"));
    chat.type("x");
    ASSERT_TRUE(chat.wait_for(">>> x"));  // the editor has read everything before it
    chat.type("\x15");
  }
  chat.type("/exit\r");
  EXPECT_EQ(chat.finish(), 0);
}

TEST(Terminal, ColoursKeepAwayFromThoseWhoDoNotWantThem) {
  for (const auto& [flags, environment] :
       {std::pair<std::vector<std::string>, Environment>{{"--no-color"}, {}},
        {{}, {{"NO_COLOR", "1"}}}}) {
    std::vector<std::string> arguments = {"run", kTinyModel, "abc", "-n", "4"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    TerminalChild plain(arguments, environment);
    plain.type("\x04");
    EXPECT_EQ(plain.finish(), 0);
    EXPECT_EQ(plain.screen().find('\x1b'), std::string::npos) << plain.screen();
  }
  TerminalChild colored({"run", kTinyModel, "abc", "-n", "4"});
  colored.type("\x04");
  EXPECT_EQ(colored.finish(), 0);
  EXPECT_NE(colored.screen().find("\x1b[2m"), std::string::npos) << colored.screen();
}

TEST(Terminal, TheSystemMessageOutlivesTheConversation) {
  const TempDir home;
  TerminalChild chat({"run", kBundled, "-s", "One.", "-n", "3"}, {{"HOME", home.string()}});
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/clear\r/set\r");
  ASSERT_TRUE(chat.wait_for("system 'One.'"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/set system Two.\rhello\r");
  ASSERT_TRUE(chat.wait_for("generated 3 tokens"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/clear\r/set\r");
  ASSERT_TRUE(chat.wait_for("system 'Two.'"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("/ctx\r");
  ASSERT_TRUE(chat.wait_for("1 messages"));
  ASSERT_TRUE(chat.wait_for("Type a message"));
  chat.type("\x04");
  EXPECT_EQ(chat.finish(), 0);
}

// The tiny model with feed-forward matrices of zeros that take so many bytes together.
fs::path write_large_model(const TempDir& folder, int64_t bytes) {
  const Gguf tiny = Gguf::open(kTinyModel);
  GgufWriter writer;
  const int64_t hidden = tiny.integer("qwen2.embedding_length", 1, 1 << 20);
  const int64_t intermediate = bytes / 3 / row_bytes(DType::kQ8_0, hidden) / 256 * 256;
  for (const auto& [name, value] : tiny.metadata()) {
    if (name == "qwen2.feed_forward_length") {
      writer.key(name, static_cast<uint32_t>(intermediate));
    } else {
      writer.stored_key(name, value.stored);
    }
  }
  for (const TensorInfo& tensor : tiny.tensors()) {
    if (tensor.name.find(".ffn_") == tensor.name.npos || tensor.shape.size() < 2) {
      writer.tensor(tensor.name, tensor.shape, tensor.dtype, [&](const auto& put) {
        put({tensor.data, tensor.bytes});
      });
      continue;
    }
    const bool down = tensor.name.find("down") != tensor.name.npos;
    writer.tensor(
        tensor.name, down ? std::vector{hidden, intermediate} : std::vector{intermediate, hidden},
        DType::kQ8_0, [&](const auto& put) {
          const std::vector<std::byte> row(static_cast<size_t>(row_bytes(DType::kQ8_0, hidden)));
          for (int64_t r = 0; r < intermediate; ++r) put(row);
        });
  }
  const fs::path path = folder / "large.gguf";
  writer.write(path);
  return path;
}

// Stopped again and again, so that a fast machine shows the bar, too.
TEST(Terminal, ControlCWhileWeightsAreArrangedEndsWith130AndNoAnswer) {
  const TempDir folder;
  const fs::path model = write_large_model(folder, int64_t{192} << 20);
  TerminalChild child({"run", model, "abc", "-n", "1", "-c", "64", "-t", "1"});
  // In steps of a millisecond, so that it stands still when the bar is seen.
  bool arranging = false;
  for (int step = 0; step < 3000 && !arranging; ++step) {
    using std::chrono::milliseconds;
    kill(child.pid(), SIGCONT);
    std::this_thread::sleep_for(milliseconds(1));
    kill(child.pid(), SIGSTOP);
    arranging = child.shows("arranging");
    std::this_thread::sleep_for(milliseconds(10));  // a bar waits for its time to come
  }
  kill(child.pid(), SIGINT);
  kill(child.pid(), SIGCONT);
  ASSERT_TRUE(arranging) << child.screen();
  EXPECT_EQ(child.finish(), 130);
  // the bar is wiped, and nothing follows
  EXPECT_TRUE(child.screen().ends_with("\r\x1b[K")) << child.screen();
  EXPECT_FALSE(has(child.screen(), "error")) << child.screen();
}

TEST(Terminal, ATerminatedChatLeavesTheTerminalAsItWas) {
  for (const auto& [signal, code] :
       {std::pair{SIGTERM, 128 + SIGTERM}, {SIGBUS, 2}, {SIGABRT, 1000 + SIGABRT}}) {
    TerminalChild chat({"run", kTinyModel, "--no-history"});
    ASSERT_TRUE(chat.wait_for("Type a message"));
    kill(chat.pid(), signal);
    EXPECT_EQ(chat.finish(), code);
    EXPECT_TRUE(has(chat.screen(), "\x1b[?2004l")) << signal;
  }
}

}  // namespace
}  // namespace fathom
