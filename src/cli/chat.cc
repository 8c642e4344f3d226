#include "cli/chat.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "cli/generation.h"
#include "cli/ids.h"
#include "cli/interrupt.h"
#include "cli/line_editor.h"
#include "formats/json.h"

namespace fathom {
namespace {

using Role = ChatMessage::Role;

constexpr std::string_view kHelp = R"(  /help, /?            this list
  /exit, /bye, /quit   leave (also Ctrl-D)
  /clear               forget the conversation
  /undo                take back the last question and its answer
  /set                 the settings; /set NAME VALUE changes one
  /show                the model
  /stats               speed and counts of this session
  /context, /ctx       how much of the context is used
  /think, /nothink     switch thoughts on or off, where the model has a switch
  /read FILE           put a file in front of the next message
  /save NAME           save the conversation; /load NAME brings it back
  """ ... """          a message of several lines (also Alt-Enter, or just paste)
  Ctrl-C               stops an answer, keeping what was said
)";

struct Spelling {
  std::string_view spelled, name;
};
constexpr Spelling kSpellings[] = {
    {"help", "help"},   {"?", "help"},          {"exit", "exit"},   {"bye", "exit"},
    {"quit", "exit"},   {"q", "exit"},          {"clear", "clear"}, {"new", "clear"},
    {"set", "set"},     {"show", "show"},       {"stats", "stats"}, {"save", "save"},
    {"load", "load"},   {"undo", "undo"},       {"context", "ctx"}, {"ctx", "ctx"},
    {"think", "think"}, {"nothink", "nothink"}, {"read", "read"},   {"upload", "read"},
};

// Why the last prompt was not reused further, for /stats.
std::string reuse_end_text(const PrefixReuse& reuse) {
  switch (reuse.end) {
    case ReuseEnd::kTokenDiffers:
      return fmt::format(" (the last one parts from it at token {})", reuse.cached_tokens);
    case ReuseEnd::kEvicted:
      return " (of the last one some had to make room)";
    case ReuseEnd::kNotStarted:
    case ReuseEnd::kDisabled:
    case ReuseEnd::kPromptEnd:
    case ReuseEnd::kNothingCached:
      return "";
  }
  return "";
}

double parse_number(const std::string& name, const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size())
    fail("{}: found {}, expected a number", name, quoted(text));
  return value;
}

int64_t parse_integer(const std::string& name, const std::string& text, int64_t min) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < min)
    fail("{}: found {}, expected an integer from {}", name, quoted(text), min);
  return value;
}

// NAME is a file of its own, or a name among the saved conversations of this user.
std::filesystem::path conversation_path(const std::string& name) {
  if (name.empty()) fail("expected a name, as in /save holiday");
  if (name.find('/') != name.npos || name.ends_with(".json")) return name;
  const std::filesystem::path history = default_history_file();
  if (history.empty()) fail("no home folder is known: give a path, as in /save ./{}.json", name);
  return history.parent_path() / "chats" / (name + ".json");
}

class Chat {
 public:
  explicit Chat(Session& session)
      : session_(session),
        color_(use_color(STDOUT_FILENO, session.options.output)),
        history_(session.options.no_history ? History() : History(default_history_file())),
        max_tokens_(session.options.max_tokens) {
    if (!session_.options.system.empty())
      messages_.push_back({Role::kSystem, session_.options.system, "", {}});
  }

  void run() {
    greet();
    while (!done_) {
      const LineEditor::Result line = read_line();
      if (line.outcome == LineEditor::Outcome::kEnd) return;
      if (line.outcome == LineEditor::Outcome::kInterrupt) {
        if (line.text.empty()) say("Ctrl-D or /exit leaves.");
        continue;
      }
      try {
        take(line.text);
      } catch (const Error& error) {  // in a conversation a refusal is an answer: the talk goes on
        if (error.code() == ExitCode::kDiverged) throw;
        note("error: {}", error.what());
      }
    }
  }

 private:
  void greet() const {
    const EngineOptions& engine = session_.engine.options();
    const ModelConfig& config = session_.opened.model.config();
    say("{} of weights; context {} of {} tokens, {}", bytes_text(session_.opened.sizes.bytes),
        engine.context_tokens, config.max_position_embeddings,
        bytes_text(static_cast<uint64_t>(
            engine.context_tokens * KvCache::bytes_per_token(config,
                                                             session_.opened.model.cache_layers(),
                                                             engine.cache_dtype))));
  }

  // Between two lines Ctrl-C belongs to `turn_`. It opens and closes while the editor holds the
  // terminal and reads Ctrl-C as a key, so that no press falls between the two and ends the chat:
  // one before the first token stops the answer, one after the last does nothing.
  LineEditor::Result read_line() {
    ConsoleTerminal terminal;
    turn_.reset();
    LineEditor editor(terminal, history_);
    LineEditor::Result line = editor.read({.sign = ">>> ",
                                           .continuation = "... ",
                                           .hint = "Type a message (/help for help)",
                                           .color = color_});
    turn_.emplace();
    return line;
  }

  // Everything the program itself says goes to stderr, grey.
  template <class... Args>
  void say(fmt::format_string<Args...> text, Args&&... args) const {
    if (session_.options.output.quiet) return;
    const Grey grey(use_color(STDERR_FILENO, session_.options.output));
    note("{}{}{}", grey.begin, fmt::format(text, std::forward<Args>(args)...), grey.end);
  }

  void take(const std::string& line) {
    const size_t begin = line.find_first_not_of(" \t\n");
    if (begin == line.npos) return;
    if (line[begin] != '/') return ask(line);
    const SlashCommand command = parse_slash(std::string_view(line).substr(begin));
    if (command.name.empty()) return ask_about_slash(line);
    obey(command);
  }

  // A slash that is no command may be a path, or a slip of the finger.
  void ask_about_slash(const std::string& line) {
    ConsoleTerminal terminal;
    History none;
    LineEditor editor(terminal, none);
    const auto answer =
        editor.read({.sign = "No such command (/help lists them). Send it as a message? [y/N] ",
                     .hint = "",
                     .color = color_});
    if (answer.outcome == LineEditor::Outcome::kLine &&
        (answer.text == "y" || answer.text == "Y" || answer.text == "yes"))
      ask(line);
  }

  void obey(const SlashCommand& command) {
    const std::string& argument = command.argument;
    if (command.name == "help") write_stderr(kHelp);
    if (command.name == "exit") done_ = true;
    if (command.name == "clear") reset(), say("The conversation is forgotten.");
    if (command.name == "undo") undo();
    if (command.name == "set") set(argument);
    if (command.name == "show") show();
    if (command.name == "stats") stats();
    if (command.name == "ctx") context();
    if (command.name == "think" || command.name == "nothink") think(command.name == "think");
    if (command.name == "read") read_file_in(argument);
    if (command.name == "save") save(argument);
    if (command.name == "load") load(argument);
  }

  // The system message is a setting: it stays.
  void reset() {
    const bool system = !messages_.empty() && messages_[0].role == Role::kSystem;
    messages_.resize(system ? 1 : 0);
    attachment_.clear();
  }

  void ask(const std::string& text) {
    const std::vector<ChatMessage> before = messages_;
    const std::string question = attachment_.empty() ? text : attachment_ + "\n\n" + text;
    if (!messages_.empty() && messages_.back().role == Role::kUser) {
      // a loaded conversation may end with a question: users and answers alternate
      messages_.back().content += "\n\n" + question;
    } else {
      messages_.push_back({Role::kUser, question, "", {}});
    }
    Generation generation;
    try {
      generation = answer();
    } catch (...) {
      messages_ = before;
      throw;
    }
    attachment_.clear();
    if (generation.answer.empty() && generation.finish == FinishReason::kCancelled) {
      messages_ = before;
      say("Stopped before the answer: your message is taken back.");
      return;
    }
    messages_.push_back({Role::kAssistant, generation.answer, generation.thought, {}});
  }

  Generation answer() {
    GenerationRequest request = request_for(session_, messages_);
    request.max_tokens = max_tokens_;
    // the same question again may get another answer, yet a session can be repeated
    request.sampling.choice = static_cast<uint64_t>(turns_);
    PartPrinter printer(session_.options.output, session_.options.hide_thinking);
    const ConsoleTerminal silent(ConsoleTerminal::Mode::kSilent);
    const Generation generation =
        generate(session_.engine, session_.opened, std::move(request), session_.options.output,
                 [&](const OutputPart& part) { printer.show(part); });
    printer.finish();
    say("{}", rate_line(generation));
    last_reuse_ = generation.reuse;
    keep_computed(session_);
    ++turns_;
    return generation;
  }

  void undo() {
    const auto last = std::find_if(messages_.rbegin(), messages_.rend(),
                                   [](const ChatMessage& m) { return m.role == Role::kUser; });
    if (last == messages_.rend()) {
      say("There is nothing to take back.");
      return;
    }
    messages_.erase(last.base() - 1, messages_.end());
    say("The last question and its answer are taken back.");
  }

  void set(const std::string& argument) {
    SamplingParams& p = session_.sampling;
    const size_t blank = argument.find(' ');
    const std::string name = argument.substr(0, blank);
    const std::string value =
        blank == argument.npos ? "" : argument.substr(argument.find_first_not_of(' ', blank));
    if (name.empty()) {
      note(
          "temp {}\ntop_p {}\ntop_k {}\nmin_p {}\nrepeat_penalty {}\npresence_penalty "
          "{}\nfrequency_penalty {}\nseed {}\nmax_tokens {}\nsystem {}",
          p.temperature, p.top_p, p.top_k, p.min_p, p.repetition_penalty, p.presence_penalty,
          p.frequency_penalty, p.seed,
          max_tokens_ > 0 ? std::to_string(max_tokens_) : "what the context leaves",
          !messages_.empty() && messages_[0].role == Role::kSystem ? quoted(messages_[0].content)
                                                                   : "none");
      return;
    }
    if (name == "system") {
      if (!session_.opened.format || session_.options.raw)
        fail("system: this model has no chat format for it (--raw or a base model)");
      if (!messages_.empty() && messages_[0].role == Role::kSystem)
        messages_.erase(messages_.begin());
      if (!value.empty()) messages_.insert(messages_.begin(), {Role::kSystem, value, "", {}});
      return;
    }
    SamplingParams changed = p;
    if (name == "temp" || name == "temperature")
      changed.temperature = parse_number(name, value);
    else if (name == "top_p")
      changed.top_p = parse_number(name, value);
    else if (name == "top_k")
      changed.top_k = static_cast<int>(std::min<int64_t>(parse_integer(name, value, 0), 1 << 30));
    else if (name == "min_p")
      changed.min_p = parse_number(name, value);
    else if (name == "repeat_penalty")
      changed.repetition_penalty = parse_number(name, value);
    else if (name == "presence_penalty")
      changed.presence_penalty = parse_number(name, value);
    else if (name == "frequency_penalty")
      changed.frequency_penalty = parse_number(name, value);
    else if (name == "seed")
      changed.seed = static_cast<uint64_t>(parse_integer(name, value, 0));
    else if (name == "max_tokens")
      max_tokens_ = parse_integer(name, value, 0);
    else
      fail(
          "/set: found {}, expected temp, top_p, top_k, min_p, repeat_penalty, presence_penalty, "
          "frequency_penalty, seed, max_tokens or system",
          quoted(name));
    validate_sampling(changed, session_.opened.model.config().vocab_size);
    p = changed;
  }

  void show() const {
    const OpenedModel& opened = session_.opened;
    note("{}\n{} of weights, {} layers, template {}", opened.name, bytes_text(opened.sizes.bytes),
         opened.model.config().num_hidden_layers,
         opened.format ? chat_format_name(*opened.format) : "none");
  }

  void stats() const {
    const EngineStats& s = session_.engine.stats();
    const auto rate = [](int64_t tokens, double seconds) {
      return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
    };
    note(
        "{} answers; prompts {} tokens at {:.1f} tok/s, {} more from the cache{}; generated {} "
        "tokens at {:.1f} tok/s",
        turns_, s.prefill_tokens, rate(s.prefill_tokens, s.prefill_seconds), s.cached_tokens,
        reuse_end_text(last_reuse_), s.decode_tokens, rate(s.decode_tokens, s.decode_seconds));
  }

  void context() const {
    const int64_t all = session_.engine.options().context_tokens;
    const bool talked = !messages_.empty() && messages_.back().role != Role::kSystem;
    const int64_t used = talked ? std::ssize(encode_messages(session_, messages_)) : 0;
    note("{} of {} tokens ({:.0f} %), {} messages", used, all,
         100.0 * static_cast<double>(used) / static_cast<double>(all), messages_.size());
  }

  void think(bool on) {
    const auto& format = session_.opened.format;
    if (!format || session_.options.raw ||
        thinking_marks(*format, {.thinking = on}).has_value() != on) {
      say("This model has no switch: it {}.",
          session_marks(session_) ? "always thinks" : "does not think");
      return;
    }
    session_.thinking = on;
    say("Thoughts are {}.", on ? "on" : "off");
  }

  void read_file_in(const std::string& name) {
    if (name.empty()) fail("expected a file, as in /read notes.txt");
    std::string text = read_file(name, Limits{}.text_bytes);
    say("{}: {}, put in front of your next message.", name, bytes_text(text.size()));
    attachment_ = attachment_.empty() ? std::move(text) : attachment_ + "\n\n" + text;
  }

  void save(const std::string& name) {
    const std::filesystem::path path = conversation_path(name);
    std::error_code error;
    if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), error);
    write_file_atomically(path, conversation_text(messages_), kPrivateFile);
    say("Saved as {}.", path.string());
  }

  void load(const std::string& name) {
    const std::filesystem::path path = conversation_path(name);
    messages_ = parse_conversation(read_file(path, Limits{}.text_bytes), path.string());
    for (const ChatMessage& message : messages_) {
      say("{}: {}", role_name(message.role), without_controls(message.content));
    }
  }

  Session& session_;
  bool color_;
  History history_;
  std::vector<ChatMessage> messages_;
  std::string attachment_;  // of /read, for the next message
  int64_t max_tokens_;      // 0 = what the context leaves
  int64_t turns_ = 0;
  PrefixReuse last_reuse_;
  std::optional<InterruptScope> turn_;  // open from one line's end to the next line's begin
  bool done_ = false;
};

}  // namespace

SlashCommand parse_slash(std::string_view line) {
  line.remove_prefix(std::min<size_t>(line.size(), 1));
  const size_t blank = std::min(line.find_first_of(" \t\n"), line.size());
  const size_t argument = std::min(line.find_first_not_of(" \t\n", blank), line.size());
  const size_t end = line.find_last_not_of(" \t\n");
  SlashCommand command{
      "", argument < line.size() ? std::string(line.substr(argument, end - argument + 1)) : ""};
  for (const Spelling& known : kSpellings) {
    if (line.substr(0, blank) == known.spelled) command.name = known.name;
  }
  return command;
}

std::string conversation_text(std::span<const ChatMessage> messages) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const ChatMessage& message : messages) {
    list.push_back({{"role", role_name(message.role)}, {"content", message.content}});
    if (!message.reasoning.empty()) list.back()["reasoning_content"] = message.reasoning;
  }
  return nlohmann::ordered_json{{"messages", list}}.dump(
             2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

std::vector<ChatMessage> parse_conversation(std::string_view text, const std::string& place) {
  const nlohmann::json document = parse_json(text, place);
  const nlohmann::json& list = JsonObject(document, place).value("messages");
  if (!list.is_array()) fail("{}: messages: found {}, expected a list", place, describe(list));
  std::vector<ChatMessage> messages;
  for (size_t i = 0; i < list.size(); ++i) {
    const JsonObject entry(list[i], fmt::format("{}: message {}", place, i));
    ChatMessage message = read_message(entry);
    const bool after_question = i > 0 && messages.back().role == Role::kUser;
    const bool in_turn = message.role == Role::kSystem
                             ? i == 0
                             : (message.role == Role::kAssistant) == after_question;
    if (!in_turn) {
      fail(
          "{}: role: found {}, expected {} (after one system message at most, questions and "
          "answers alternate)",
          entry.place(), role_name(message.role), after_question ? "assistant" : "user");
    }
    messages.push_back(std::move(message));
  }
  return messages;
}

int run_chat(Session& session) {
  Chat(session).run();
  return 0;
}

}  // namespace fathom
