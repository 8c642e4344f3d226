#include "text/character_tokenizer.h"

#include <nlohmann/json.hpp>

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kBos = "<｜begin▁of▁sentence｜>";
constexpr const char* kEos = "<｜end▁of▁sentence｜>";

struct Special {
  const char* text;
  bool special;  // as R1's published file flags it
};
constexpr Special kSpecials[] = {{kBos, true},          {kEos, true},         {"<｜▁pad▁｜>", true},
                                 {"<｜User｜>", false}, {"<｜Assistant｜>", false}, {"<think>", false},
                                 {"</think>", false}};

// GPT-2's printable stand-in of a byte: itself if printable, else U+0100 + its number among those that are not.
std::string stand_in(unsigned char byte) {
  if (byte > ' ' && byte <= '~') return std::string(1, static_cast<char>(byte));
  switch (byte) {
    case ' ': return "Ġ";
    case '\n': return "Ċ";
    case 0xef: return "ï";
    case 0xbf: return "¿";
    default: return "½";  // 0xbd
  }
}

// R1's format in our words, for programs that render the template themselves (fathom has it in code): one system message
// first, then turns; of an assistant's turn only what follows its thought is kept.
constexpr const char* kTemplate =
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}";

}  // namespace

std::string character_tokenizer_json() {
  Json added = Json::array(), vocab = Json::object();
  int64_t id = 0;
  for (const Special& s : kSpecials) {
    vocab[s.text] = id;
    added.push_back({{"id", id++}, {"content", s.text}, {"single_word", false}, {"lstrip", false}, {"rstrip", false},
                     {"normalized", false}, {"special", s.special}});
  }
  vocab[stand_in('\n')] = id++;
  for (unsigned char c = ' '; c <= '~'; ++c) vocab[stand_in(c)] = id++;
  for (const unsigned char byte : {0xef, 0xbf, 0xbd}) vocab[stand_in(byte)] = id++;

  Json file;
  file["version"] = "1.0";
  file["truncation"] = nullptr;
  file["padding"] = nullptr;
  file["added_tokens"] = added;
  file["normalizer"] = nullptr;
  file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  file["post_processor"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", false}, {"use_regex", false}};
  file["decoder"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  file["model"] = {{"type", "BPE"},          {"dropout", nullptr},
                   {"unk_token", nullptr},   {"continuing_subword_prefix", nullptr},
                   {"end_of_word_suffix", nullptr}, {"fuse_unk", false},
                   {"byte_fallback", false}, {"vocab", vocab},
                   {"merges", Json::array()}};
  return file.dump(1) + "\n";
}

std::string character_tokenizer_config_json() {
  Json file;
  file["add_bos_token"] = true;
  file["add_eos_token"] = false;
  file["bos_token"] = kBos;
  file["eos_token"] = kEos;
  file["pad_token"] = "<｜▁pad▁｜>";
  file["unk_token"] = nullptr;
  file["clean_up_tokenization_spaces"] = false;
  file["tokenizer_class"] = "PreTrainedTokenizerFast";
  file["chat_template"] = kTemplate;
  return file.dump(1) + "\n";
}

}  // namespace fathom
