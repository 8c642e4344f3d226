#include "cli/tokenize.h"

#include <nlohmann/json.hpp>

#include "base/error.h"
#include "cli/ids.h"
#include "cli/models.h"
#include "formats/json.h"

namespace fathom {
namespace {

// Shows what is invisible: control characters and bytes that are no character, as quoted() does but
// without a cut.
std::string visible(std::string_view bytes) {
  std::string out;
  // quoted() cuts at 128; pieces of 64 bytes stay whole
  for (size_t at = 0; at < bytes.size(); at += 64) {
    const std::string part = quoted(bytes.substr(at, 64));
    out += part.substr(1, part.size() - 2);
  }
  return "'" + out + "'";
}

std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::string& text,
                            const TokenizeOptions& options) {
  if (!options.chat) return tokenizer.encode(text, options.special);
  const ChatFormat format = options.template_name.empty()
                                ? detect_chat_format(tokenizer)
                                : chat_format_by_name(options.template_name);
  const ChatMessage message{ChatMessage::Role::kUser, text, "", {}};
  return encode_chat(tokenizer, format, {&message, 1}, {});
}

void show_ids(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
              const TokenizeOptions& options) {
  if (options.json) {
    nlohmann::ordered_json pieces = nlohmann::ordered_json::array();
    for (const int32_t id : ids) pieces.push_back(std::string(tokenizer.token_bytes(id)));
    print_json({{"ids", ids}, {"pieces", std::move(pieces)}});
    return;
  }
  std::string text;
  for (const int32_t id : ids) {
    text += fmt::format("{:>7}  {}{}\n", id, visible(tokenizer.token_bytes(id)),
                        tokenizer.is_special(id) ? "  (special)" : "");
  }
  write_stdout(text);
  if (!options.output.quiet) note("{} tokens", ids.size());
}

void show_text(const Tokenizer& tokenizer, const std::vector<int32_t>& ids,
               const TokenizeOptions& options) {
  for (const int32_t id : ids) {
    if (id >= tokenizer.vocab_size())
      fail("--decode: token id {}: expected less than {}", id, tokenizer.vocab_size());
  }
  const std::string text = tokenizer.decode(ids);
  if (options.json)
    print_json({{"ids", ids}, {"text", text}});
  else
    write_stdout(text);  // the very bytes
}

}  // namespace

int run_tokenize(const TokenizeOptions& options) {
  const Tokenizer tokenizer =
      Tokenizer::from_checkpoint(Checkpoint::open(resolve_model(options.model)));
  if (options.decode) {
    show_text(tokenizer,
              parse_ids(*options.decode == "-" ? read_stdin() : *options.decode, "--decode"),
              options);
    return 0;
  }
  if (options.lines) {
    const std::string all = read_stdin();
    size_t number = 0;
    for (std::string_view rest = all; !rest.empty();) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      rest.remove_prefix(std::min(rest.size(), line.size() + 1));
      const std::string place = fmt::format("stdin: line {}", ++number);
      const nlohmann::json value = parse_json(line, place);
      if (!value.is_string()) fail("{}: found {}, expected a JSON string", place, describe(value));
      show_ids(tokenizer, encode(tokenizer, value.get<std::string>(), options), options);
    }
    return 0;
  }
  const std::string text = options.text           ? *options.text
                           : options.file.empty() ? read_stdin()
                                                  : read_text_file(options.file);
  show_ids(tokenizer, encode(tokenizer, text, options), options);
  return 0;
}

}  // namespace fathom
