// Three parts: the tables and encode/decode; reading tokenizer.json; reading GGUF. Both readers
// only gather the same lists, one function checks them and builds the tables.
#include "text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/error.h"
#include "base/limits.h"
#include "base/utf8.h"
#include "formats/json.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/byte_alphabet.h"
#include "text/pretokenizer.h"
#include "text/token_index.h"
#include "text/unicode.h"

namespace fathom {
namespace {

using nlohmann::json;

constexpr size_t kMaxTextBytes = Limits{}.text_bytes;

// The bytes that a vocabulary entry spells. False if some character stands for no byte.
bool append_bytes_of(std::string_view text, std::string& bytes) {
  while (!text.empty()) {
    const Utf8Char c = decode_utf8(text);
    if (!c.valid || c.code_point >= kByteOfChar.size() || kByteOfChar[c.code_point] < 0)
      return false;
    bytes += static_cast<char>(kByteOfChar[c.code_point]);
    text.remove_prefix(c.bytes);
  }
  return true;
}

// Plain text that may be cut out of anyone's words (tokenizer.h, encode).
bool is_plain(const AddedToken& token) {
  if (token.special) return false;
  std::string_view rest = token.content;
  const uint32_t first = decode_utf8(rest).bytes;
  if (first == rest.size()) return true;
  while (!rest.empty()) {
    const Utf8Char c = decode_utf8(rest);
    if (char_class(c.code_point) != CharClass::kSpace) return false;
    rest.remove_prefix(c.bytes);
  }
  return true;
}

struct Entry {
  int32_t id;
  std::string_view text;  // as the file spells it
};

// What a file says, before it is checked.
struct Lists {
  std::string place;
  std::vector<Entry> entries;  // byte-level
  std::vector<std::pair<int32_t, uint8_t>> byte_tokens;
  std::vector<AddedToken> added;
  std::vector<std::pair<std::string_view, std::string_view>> merges;
};

}  // namespace

struct Tokenizer::Impl {
  std::vector<std::string> bytes;  // by id; empty if the id has no token
  std::vector<bool> special;       // by id
  TokenIndex vocabulary;           // by `bytes`: all that plain text can become
  TokenIndex added;                // by `bytes` too
  // [parse_special][0: looked for in raw text, 1: in normalised text]
  AddedTokenMatcher matchers[2][2];
  bool nfc = false;
  bool ignore_merges = false;  // a piece that is a token as a whole is taken as such
  std::vector<Splitter> splitters;
  Bpe bpe;

  std::optional<int32_t> bos;
  std::vector<int32_t> eos;
  bool add_bos = false;
  std::string chat_template;

  void build(const Lists& lists);
  std::optional<int32_t> find(std::string_view token) const;
  int32_t named(std::string_view token, std::string_view place, std::string_view key) const;
  void add_eos(int32_t id);
  void encode_plain(std::string_view text, Bpe::Scratch& scratch, std::vector<int32_t>& ids) const;
};

// Checks the lists against each other and fills the tables.
void Tokenizer::Impl::build(const Lists& lists) {
  const std::string& place = lists.place;
  const Limits limits;
  int32_t last = -1;
  const auto check = [&](int32_t id, std::string_view text) {
    if (id < 0 || uint64_t(id) >= limits.vocabulary) {
      fail("{}: token {}: id {}, expected one in [0, {})", place, quoted(text), id,
           limits.vocabulary);
    }
    if (text.empty()) fail("{}: token {}: empty", place, id);
    if (text.size() > limits.gguf_token_bytes) {
      fail("{}: token {}: {} bytes, expected at most {}", place, id, text.size(),
           limits.gguf_token_bytes);
    }
    last = std::max(last, id);
  };
  for (const Entry& entry : lists.entries) check(entry.id, entry.text);
  for (const AddedToken& token : lists.added) check(token.id, token.content);
  for (const auto& [id, byte] : lists.byte_tokens) last = std::max(last, id);
  bytes.resize(static_cast<size_t>(last + 1));
  special.resize(bytes.size());

  // everything, as the file spells it
  TokenIndex by_text(lists.entries.size() + lists.added.size());
  const auto claim = [&](int32_t id, std::string_view text) -> std::string& {
    if (!bytes[id].empty())
      fail("{}: token {}: id {} belongs to another token", place, quoted(text), id);
    if (!by_text.insert(text, id)) fail("{}: token {}: listed twice", place, quoted(text));
    return bytes[id];
  };
  // Spelled in bytes, and not an added token that plain text must not become.
  std::vector<bool> mergeable(bytes.size());
  for (const Entry& entry : lists.entries) {
    std::string& token = claim(entry.id, entry.text);
    const bool spelled = append_bytes_of(entry.text, token);
    if (!spelled) token = entry.text;
    mergeable[entry.id] = spelled;
  }
  added = TokenIndex(lists.added.size());
  for (const AddedToken& token : lists.added) {
    if (by_text.find(token.content) != token.id) {
      claim(token.id, token.content) = token.content;
    } else if (bytes[token.id] != token.content) {
      fail("{}: added token {}: also spells {} in the vocabulary", place, quoted(token.content),
           quoted(bytes[token.id]));
    }
    if (!added.insert(bytes[token.id], token.id)) {
      fail("{}: added token {}: listed twice", place, quoted(token.content));
    }
    special[token.id] = token.special;
    if (!is_plain(token)) mergeable[token.id] = false;
  }

  std::array<int32_t, 256> byte_ids;
  byte_ids.fill(Bpe::kNoToken);
  for (const auto& [id, byte] : lists.byte_tokens) {
    if (!bytes[id].empty())
      fail("{}: byte token {}: id {} belongs to another token", place, byte, id);
    bytes[id] = static_cast<char>(byte);
    byte_ids[byte] = id;
  }
  vocabulary = TokenIndex(lists.entries.size());
  for (const Entry& entry : lists.entries) {
    if (!mergeable[entry.id]) continue;
    const std::string& token = bytes[entry.id];
    vocabulary.insert(token, entry.id);
    if (token.size() == 1) byte_ids[static_cast<unsigned char>(token[0])] = entry.id;
  }
  for (const unsigned char byte : {0xef, 0xbf, 0xbd}) {
    if (byte_ids[byte] == Bpe::kNoToken) {
      fail("{}: vocabulary: no token for byte {} (expected byte-level BPE, where bytes are tokens)",
           place, byte);
    }
  }

  bpe = Bpe(byte_ids, lists.merges.size());
  std::string joined;
  for (size_t rank = 0; rank < lists.merges.size(); ++rank) {
    const std::string_view left = lists.merges[rank].first, right = lists.merges[rank].second;
    const auto id_of = [&](std::string_view text) {
      const auto id = by_text.find(text);
      if (!id || !mergeable[*id]) {
        fail("{}: merge {} of {} and {}: {} is no ordinary token", place, rank, quoted(left),
             quoted(right), quoted(text));
      }
      return *id;
    };
    joined.assign(left).append(right);
    const int32_t left_id = id_of(left), right_id = id_of(right);
    if (!bpe.add_merge(left_id, right_id, id_of(joined))) {
      fail("{}: merge {} of {} and {}: listed twice", place, rank, quoted(left), quoted(right));
    }
  }

  for (const bool parse_special : {false, true}) {
    std::vector<AddedToken> raw, normalized;
    for (const AddedToken& token : lists.added) {
      if (!parse_special && !is_plain(token)) continue;
      AddedToken& copy = (token.normalized ? normalized : raw).emplace_back(token);
      if (token.normalized && nfc) copy.content = to_nfc(copy.content);
    }
    matchers[parse_special][0] = AddedTokenMatcher(std::move(raw));
    matchers[parse_special][1] = AddedTokenMatcher(std::move(normalized));
  }
}

std::optional<int32_t> Tokenizer::Impl::find(std::string_view token) const {
  const auto id = added.find(token);
  return id ? id : vocabulary.find(token);
}

// The id of a token that a config names.
int32_t Tokenizer::Impl::named(std::string_view token, std::string_view place,
                               std::string_view key) const {
  if (const auto id = find(token)) return *id;
  fail("{}: {}: found {}, which is no token of this tokenizer", place, key, quoted(token));
}

void Tokenizer::Impl::add_eos(int32_t id) {
  if (std::find(eos.begin(), eos.end(), id) == eos.end()) eos.push_back(id);
}

void Tokenizer::Impl::encode_plain(std::string_view text, Bpe::Scratch& scratch,
                                   std::vector<int32_t>& ids) const {
  for (const std::string_view piece : split(text, splitters)) {
    if (const auto whole = ignore_merges ? vocabulary.find(piece) : std::nullopt) {
      ids.push_back(*whole);
    } else {
      bpe.encode(piece, scratch, ids);
    }
  }
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special) const {
  if (text.size() >= kMaxTextBytes)
    fail("text: {} bytes, expected fewer than {}", text.size(), kMaxTextBytes);
  std::vector<int32_t> ids;
  Bpe::Scratch scratch;
  // Calls `rest` with each stretch between added tokens.
  const auto cut = [&](const AddedTokenMatcher& matcher, std::string_view whole, const auto& rest) {
    for (size_t i = 0; i < whole.size();) {
      const AddedTokenMatcher::Match match = matcher.find(whole, i);
      if (match.begin > i) rest(whole.substr(i, match.begin - i));
      if (match.token != nullptr) ids.push_back(match.token->id);
      i = match.end;
    }
  };
  const auto& matchers = impl_->matchers[parse_special];
  const auto plain = [&](std::string_view part) { impl_->encode_plain(part, scratch, ids); };
  cut(matchers[0], text, [&](std::string_view part) {
    if (impl_->nfc) {
      cut(matchers[1], to_nfc(part), plain);
    } else {
      cut(matchers[1], part, plain);
    }
  });
  return ids;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  return id >= 0 && id < vocab_size() ? std::string_view(impl_->bytes[id]) : std::string_view();
}

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) text += token_bytes(id);
  return text;
}

std::optional<int32_t> Tokenizer::find(std::string_view token) const { return impl_->find(token); }

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->special[id];
}
int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->bytes.size()); }
std::optional<int32_t> Tokenizer::bos_id() const { return impl_->bos; }
std::vector<int32_t> Tokenizer::eos_ids() const { return impl_->eos; }
bool Tokenizer::add_bos() const { return impl_->add_bos; }
const std::string& Tokenizer::chat_template_source() const { return impl_->chat_template; }

std::string_view Tokenizer::gguf_pre_tokenizer() const {
  if (impl_->bpe.merge_count() == 0) return "default";
  for (const std::string_view name :
       {"deepseek-v3", "deepseek-llm", "deepseek-coder", "qwen2", "llama-bpe", "smollm", "gpt-2"}) {
    const bool nfc = name == "qwen2", ignore_merges = name == "llama-bpe";
    if (splitters_by_gguf_name(name) == impl_->splitters && nfc == impl_->nfc &&
        ignore_merges == impl_->ignore_merges)
      return name;
  }
  fail("tokenizer: GGUF has no name for this way of splitting text");
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

// --- tokenizer.json ---

namespace {

std::string type_of(const JsonObject& object) { return object.string("type"); }

// An option that we do not know may change every id.
void only_fields(const json& object, const std::string& place,
                 std::initializer_list<std::string_view> fields) {
  for (const auto& [key, value] : object.items()) {
    if (std::find(fields.begin(), fields.end(), key) == fields.end())
      fail("{}: {}: unknown field", place, quoted(key));
  }
}

[[noreturn]] void refuse_type(const std::string& place, std::string_view type,
                              std::string_view expected) {
  fail("{}: type: found {}, expected {}", place, quoted(type), expected);
}

const json& array_of(const JsonObject& object, std::string_view key) {
  const json& value = object.value(key);
  if (!value.is_array())
    fail("{}: {}: found {}, expected an array", object.place(), key, describe(value));
  return value;
}

// The members of a Sequence under `key`, or the node itself.
std::vector<const json*> members(const json& node, const std::string& place, std::string_view key) {
  const JsonObject object(node, place);
  if (type_of(object) != "Sequence") return {&node};
  only_fields(node, place, {"type", key});
  std::vector<const json*> list;
  for (const json& member : array_of(object, key)) list.push_back(&member);
  return list;
}

bool reads_nfc(const json& node, const std::string& place) {
  if (node.is_null()) return false;
  bool nfc = false;
  for (const json* member : members(node, place, "normalizers")) {
    const std::string type = type_of(JsonObject(*member, place));
    if (type != "NFC") refuse_type(place, type, "NFC or none");
    only_fields(*member, place, {"type"});
    nfc = true;
  }
  return nfc;
}

std::vector<Splitter> read_pre_tokenizer(const json& node, const std::string& place) {
  std::vector<Splitter> splitters;
  bool byte_level = false;
  for (const json* member : members(node, place, "pretokenizers")) {
    const JsonObject object(*member, place);
    const std::string type = type_of(object);
    if (byte_level) fail("{}: {} after ByteLevel, expected ByteLevel last", place, quoted(type));
    if (type == "Split") {
      only_fields(*member, place, {"type", "pattern", "behavior", "invert"});
      const JsonObject pattern(object.value("pattern"), place + ": pattern");
      only_fields(object.value("pattern"), pattern.place(), {"Regex"});
      const std::string regex = pattern.string("Regex");
      const std::string behavior = object.string("behavior");
      if (behavior != "Isolated")
        fail("{}: Split: behavior: found {}, expected 'Isolated'", place, quoted(behavior));
      if (object.boolean("invert")) fail("{}: Split: invert: found true, expected false", place);
      const auto splitter = splitter_by_regex(regex);
      if (!splitter) fail("{}: Split: unknown expression {}", place, quoted(regex));
      splitters.push_back(*splitter);
    } else if (type == "Digits") {
      only_fields(*member, place, {"type", "individual_digits"});
      if (!object.boolean("individual_digits"))
        fail("{}: Digits: individual_digits: found false, expected true", place);
      splitters.push_back(Splitter::kDigit);
    } else if (type == "ByteLevel") {
      only_fields(*member, place, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
      if (object.boolean("add_prefix_space"))
        fail("{}: ByteLevel: add_prefix_space: found true, expected false", place);
      if (object.optional_boolean("use_regex").value_or(true)) splitters.push_back(Splitter::kGpt2);
      byte_level = true;
    } else {
      refuse_type(place, type, "Split, Digits or ByteLevel");
    }
  }
  if (!byte_level) fail("{}: no ByteLevel, expected it last (only byte-level BPE is known)", place);
  return splitters;
}

// The token that the post-processor puts first, if any. Nothing else may be added to a text.
std::optional<std::string> read_post_processor(const json& node, const std::string& place) {
  std::optional<std::string> first;
  if (node.is_null()) return first;
  for (const json* member : members(node, place, "processors")) {
    const JsonObject object(*member, place);
    const std::string type = type_of(object);
    if (type == "ByteLevel") continue;  // offsets only
    if (type != "TemplateProcessing") refuse_type(place, type, "ByteLevel or TemplateProcessing");
    const json& single = array_of(object, "single");
    const bool prefixed =
        single.size() == 2 && single[0].is_object() && single[0].contains("SpecialToken");
    const size_t text_at = prefixed ? 1 : 0;
    if (single.size() != text_at + 1 || !single[text_at].is_object() ||
        !single[text_at].contains("Sequence")) {
      fail("{}: single: expected the text, at most with one special token before it", place);
    }
    if (prefixed) first = JsonObject(single[0]["SpecialToken"], place + ": single").string("id");
  }
  return first;
}

std::vector<AddedToken> read_added_tokens(const json& array, const std::string& place) {
  std::vector<AddedToken> tokens;
  for (const json& element : array) {
    const JsonObject object(element, place);
    only_fields(element, place,
                {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken& token = tokens.emplace_back();
    token.id = static_cast<int32_t>(object.integer("id", 0, INT32_MAX));
    token.content = object.string("content");
    token.special = object.optional_boolean("special").value_or(false);
    token.normalized = object.optional_boolean("normalized").value_or(!token.special);
    token.lstrip = object.optional_boolean("lstrip").value_or(false);
    token.rstrip = object.optional_boolean("rstrip").value_or(false);
    if (object.optional_boolean("single_word").value_or(false)) {
      fail("{}: {}: single_word: found true, expected false", place, quoted(token.content));
    }
  }
  return tokens;
}

// Entries and merges view `model`.
void read_model(const json& model, const std::string& place, Lists& lists) {
  const JsonObject object(model, place);
  if (const std::string type = type_of(object); type != "BPE") refuse_type(place, type, "'BPE'");
  only_fields(model, place,
              {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
               "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (object.optional_number("dropout").value_or(0) != 0)
    fail("{}: dropout: found a rate, expected none", place);
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const std::string affix = object.optional_string(key).value_or("");
    if (!affix.empty()) fail("{}: {}: found {}, expected none", place, key, quoted(affix));
  }
  if (object.optional_boolean("byte_fallback").value_or(false))
    fail("{}: byte_fallback: found true, expected false", place);

  const json& vocab = object.value("vocab");
  if (!vocab.is_object()) fail("{}: vocab: found {}, expected an object", place, describe(vocab));
  lists.entries.reserve(vocab.size());
  for (const auto& [text, id] : vocab.get_ref<const json::object_t&>()) {
    if (!id.is_number_integer() || id < 0 || id > INT32_MAX) {
      fail("{}: vocab: {}: found {}, expected a token id", place, quoted(text), describe(id));
    }
    lists.entries.push_back({id.get<int32_t>(), text});
  }
  const json& merges = array_of(object, "merges");
  lists.merges.reserve(merges.size());
  for (const json& merge : merges) {
    if (merge.is_string()) {
      const std::string_view text = merge.get_ref<const std::string&>();
      const size_t space = text.find(' ');
      if (space != text.npos && text.find(' ', space + 1) == text.npos) {
        lists.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
        continue;
      }
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() &&
               merge[1].is_string()) {
      lists.merges.emplace_back(merge[0].get_ref<const std::string&>(),
                                merge[1].get_ref<const std::string&>());
      continue;
    }
    fail("{}: merge {}: found {}, expected two tokens", place, lists.merges.size(),
         describe(merge));
  }
}

// A token as tokenizer_config.json names it: its text, or an object with the text as `content`.
std::optional<std::string> configured_token(const JsonObject& config, std::string_view key) {
  if (!config.has(key)) return std::nullopt;
  if (!config.value(key).is_object()) return config.string(key);
  return JsonObject(config.value(key), config.place() + ": " + std::string(key)).string("content");
}

// One template, or several of which the one named "default" counts.
std::string configured_template(const JsonObject& config) {
  if (!config.has("chat_template")) return "";
  if (!config.value("chat_template").is_array()) return config.string("chat_template");
  for (const json& choice : config.value("chat_template")) {
    const JsonObject named(choice, config.place() + ": chat_template");
    if (named.string("name") == "default") return named.string("template");
  }
  return "";
}

}  // namespace

Tokenizer Tokenizer::from_json(std::string_view tokenizer_json, std::string_view place,
                               std::optional<std::string_view> tokenizer_config_json) {
  const std::string file(place);
  const json root = parse_json(tokenizer_json, place);
  const JsonObject object(root, file);
  only_fields(root, file,
              {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
               "post_processor", "decoder", "model"});
  auto impl = std::make_unique<Impl>();
  const json none;
  const auto optional = [&](std::string_view key) -> const json& {
    return object.has(key) ? object.value(key) : none;
  };
  impl->nfc = reads_nfc(optional("normalizer"), file + ": normalizer");
  impl->splitters = read_pre_tokenizer(object.value("pre_tokenizer"), file + ": pre_tokenizer");
  const auto first = read_post_processor(optional("post_processor"), file + ": post_processor");
  const JsonObject decoder(object.value("decoder"), file + ": decoder");
  if (const std::string type = type_of(decoder); type != "ByteLevel")
    refuse_type(decoder.place(), type, "'ByteLevel'");
  Lists lists;
  lists.place = file;
  if (object.has("added_tokens")) {
    lists.added = read_added_tokens(array_of(object, "added_tokens"), file + ": added_tokens");
  }
  const json& model = object.value("model");
  read_model(model, file + ": model", lists);
  impl->ignore_merges = JsonObject(model, file).optional_boolean("ignore_merges").value_or(false);
  impl->build(lists);

  if (tokenizer_config_json) {
    const std::string config_place = file + " (tokenizer_config.json)";
    const json config_root = parse_json(*tokenizer_config_json, config_place);
    const JsonObject config(config_root, config_place);
    if (const auto bos = configured_token(config, "bos_token"))
      impl->bos = impl->named(*bos, config_place, "bos_token");
    if (const auto eos = configured_token(config, "eos_token")) {
      impl->add_eos(impl->named(*eos, config_place, "eos_token"));
    }
    const bool starts_with_bos =
        first && impl->bos && impl->named(*first, file, "post_processor") == impl->bos;
    impl->add_bos = config.optional_boolean("add_bos_token").value_or(starts_with_bos);
    if (impl->add_bos && !impl->bos)
      fail("{}: add_bos_token: found true without a bos_token", config_place);
    impl->chat_template = configured_template(config);
  }
  return Tokenizer(std::move(impl));
}

Tokenizer Tokenizer::from_checkpoint(const Checkpoint& checkpoint) {
  if (const Gguf* gguf = checkpoint.gguf()) return from_gguf(*gguf);
  const Limits limits;
  const bool is_file = checkpoint.kind() == Checkpoint::Kind::kSafetensors;
  const std::filesystem::path folder =
      is_file ? checkpoint.path().parent_path() : checkpoint.path();
  const auto text = checkpoint.side_file("tokenizer.json", limits.tokenizer_file_bytes);
  if (!text)
    fail("{}: no tokenizer.json{}", checkpoint.path().string(), is_file ? " beside it" : "");
  const auto config = checkpoint.side_file("tokenizer_config.json", limits.config_file_bytes);
  Tokenizer tokenizer = from_json(*text, (folder / "tokenizer.json").string(), config);
  if (tokenizer.impl_->chat_template.empty()) {
    tokenizer.impl_->chat_template =
        checkpoint.side_file("chat_template.jinja", limits.config_file_bytes).value_or("");
  }
  if (const auto generation =
          checkpoint.side_file("generation_config.json", limits.config_file_bytes)) {
    const std::string place = (folder / "generation_config.json").string();
    const json root = parse_json(*generation, place);
    const JsonObject object(root, place);
    if (object.has("eos_token_id")) {
      const int32_t size = tokenizer.vocab_size();
      const bool several = object.value("eos_token_id").is_array();
      const auto ids = several ? object.integers("eos_token_id", 0, size - 1)
                               : std::vector{object.integer("eos_token_id", 0, size - 1)};
      for (const int64_t id : ids) tokenizer.impl_->add_eos(static_cast<int32_t>(id));
    }
  }
  return tokenizer;
}

// --- GGUF ---

namespace {

enum GgufTokenType : int64_t { kNormal = 1, kUnknown, kControl, kUserDefined, kUnused, kByte };

// "<0x0A>" is the byte 10: exactly two hex digits.
std::optional<uint8_t> byte_of(std::string_view text) {
  const auto digit = [](char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
  };
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return std::nullopt;
  const int high = digit(text[3]), low = digit(text[4]);
  if (high < 0 || low < 0) return std::nullopt;
  return static_cast<uint8_t>(high * 16 + low);
}

}  // namespace

Tokenizer Tokenizer::from_gguf(const Gguf& gguf) {
  const std::string& place = gguf.path();
  if (const std::string& model = gguf.string("tokenizer.ggml.model"); model != "gpt2") {
    fail("{}: tokenizer.ggml.model: found {}, expected 'gpt2' (byte-level BPE)", place,
         quoted(model));
  }
  auto impl = std::make_unique<Impl>();
  const std::string& pre = gguf.string("tokenizer.ggml.pre");
  if (pre == "kimi-k2") {
    fail(
        "{}: tokenizer.ggml.pre: 'kimi-k2' is not supported (its splitter treats Han characters "
        "and word case "
        "by rules that are not published as one expression)",
        place);
  }
  const auto splitters = splitters_by_gguf_name(pre);
  if (!splitters) {
    fail(
        "{}: tokenizer.ggml.pre: found {}, expected deepseek-llm, deepseek-coder, deepseek-v3, "
        "joyai-llm, "
        "deepseek-r1-qwen, qwen2, llama-bpe, smollm, gpt-2 or default",
        place, quoted(pre));
  }
  impl->splitters = *splitters;
  impl->nfc = pre == "qwen2" || pre == "deepseek-r1-qwen";
  impl->ignore_merges = pre == "llama-bpe";

  const auto* tokens = gguf.optional_strings("tokenizer.ggml.tokens");
  const auto* merges = gguf.optional_strings("tokenizer.ggml.merges");
  if (tokens == nullptr || merges == nullptr) {
    fail("{}: tokenizer.ggml.{}: missing", place, tokens == nullptr ? "tokens" : "merges");
  }
  if (tokens->empty() || tokens->size() > Limits{}.vocabulary) {
    fail("{}: tokenizer.ggml.tokens: {} tokens, expected 1 to {}", place, tokens->size(),
         Limits{}.vocabulary);
  }
  const auto types = gguf.optional_integers("tokenizer.ggml.token_type", kNormal, kByte)
                         .value_or(std::vector<int64_t>(tokens->size(), kNormal));
  if (types.size() != tokens->size()) {
    fail("{}: tokenizer.ggml.token_type: {} types, expected {} (as many as tokens)", place,
         types.size(), tokens->size());
  }
  Lists lists;
  lists.place = place;
  for (size_t i = 0; i < tokens->size(); ++i) {
    const auto id = static_cast<int32_t>(i);
    const std::string& text = (*tokens)[i];
    if (types[i] == kNormal) {
      lists.entries.push_back({id, text});
    } else if (types[i] == kByte) {
      const auto byte = byte_of(text);
      if (!byte)
        fail("{}: byte token {}: found {}, expected <0x and two hex digits>", place, id,
             quoted(text));
      lists.byte_tokens.emplace_back(id, *byte);
    } else if (types[i] != kUnused) {
      AddedToken& token = lists.added.emplace_back();
      token.id = id;
      token.content = text;
      token.special = types[i] != kUserDefined;
    }
  }
  lists.merges.reserve(merges->size());
  for (const std::string& merge : *merges) {
    const size_t space = merge.find(' ');
    if (space == merge.npos || merge.find(' ', space + 1) != merge.npos) {
      fail("{}: merge {}: found {}, expected two tokens", place, lists.merges.size(),
           quoted(merge));
    }
    const std::string_view text = merge;
    lists.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
  }
  impl->build(lists);

  const auto id = [&](std::string_view name) -> std::optional<int32_t> {
    const auto found = gguf.optional_integer(fmt::format("tokenizer.ggml.{}_token_id", name), 0,
                                             static_cast<int64_t>(impl->bytes.size()) - 1);
    return found ? std::optional(static_cast<int32_t>(*found)) : std::nullopt;
  };
  impl->bos = id("bos");
  for (const std::string_view name : {"eos", "eot", "eom"}) {
    if (const auto end = id(name)) impl->add_eos(*end);
  }
  // Llama-3 files without the key mean yes, all others no.
  impl->add_bos = gguf.optional_boolean("tokenizer.ggml.add_bos_token")
                      .value_or(pre == "llama-bpe" && impl->bos);
  if (impl->add_bos && !impl->bos)
    fail("{}: tokenizer.ggml.add_bos_token: true without bos_token_id", place);
  if (const std::string* source = gguf.optional_string("tokenizer.chat_template"))
    impl->chat_template = *source;
  return Tokenizer(std::move(impl));
}

}  // namespace fathom
