#include "text/tokenizer_writer.h"

#include <nlohmann/json.hpp>

#include "text/byte_alphabet.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kBos = "<｜begin▁of▁sentence｜>";
constexpr const char* kEos = "<｜end▁of▁sentence｜>";
constexpr const char* kPad = "<｜▁pad▁｜>";

struct Special {
  const char* text;
  bool special;  // as R1's published file flags it
};
constexpr Special kSpecials[] = {{kBos, true},
                                 {kEos, true},
                                 {kPad, true},
                                 {"<｜User｜>", false},
                                 {"<｜Assistant｜>", false},
                                 {"<think>", false},
                                 {"</think>", false}};
static_assert(std::size(kSpecials) == kSpecialTokens);

// R1's format in our words, for programs that render the template themselves (fathom has it in
// code): one system message first, then turns; of an assistant's turn only what follows its thought
// is kept.
constexpr const char* kTemplate =
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}";

Json byte_level(bool trim_offsets) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", trim_offsets},
          {"use_regex", false}};
}

Json pre_tokenizer(std::span<const Splitter> splitters) {
  if (splitters.empty()) return byte_level(true);
  Json members = Json::array();
  for (const Splitter splitter : splitters) {
    members.push_back({{"type", "Split"},
                       {"pattern", {{"Regex", regex_of(splitter)}}},
                       {"behavior", "Isolated"},
                       {"invert", false}});
  }
  members.push_back(byte_level(true));
  return {{"type", "Sequence"}, {"pretokenizers", std::move(members)}};
}

}  // namespace

std::string tokenizer_json(std::span<const Splitter> splitters, std::span<const std::string> tokens,
                           std::span<const std::pair<int32_t, int32_t>> merges) {
  Json added = Json::array();
  // Filled as the vector of pairs that it is: by key, each insertion would look through all before
  // it.
  Json::object_t vocab;
  vocab.reserve(std::size(kSpecials) + tokens.size());
  int32_t id = 0;
  for (const Special& s : kSpecials) {
    vocab.emplace_back(s.text, id);
    added.push_back({{"id", id++},
                     {"content", s.text},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", s.special}});
  }
  for (const std::string& token : tokens) vocab.emplace_back(spell_bytes(token), id++);
  Json pairs = Json::array();
  const auto spelled = [&](int32_t of) -> const std::string& { return vocab.data()[of].first; };
  for (const auto& [left, right] : merges) pairs.push_back(spelled(left) + " " + spelled(right));

  Json file;
  file["version"] = "1.0";
  file["truncation"] = nullptr;
  file["padding"] = nullptr;
  file["added_tokens"] = std::move(added);
  file["normalizer"] = nullptr;
  file["pre_tokenizer"] = pre_tokenizer(splitters);
  file["post_processor"] = byte_level(false);
  file["decoder"] = byte_level(true);
  Json& model = file["model"];
  model["type"] = "BPE";
  for (const char* key :
       {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"}) {
    model[key] = nullptr;
  }
  model["fuse_unk"] = false;
  model["byte_fallback"] = false;
  model["vocab"] = std::move(vocab);
  model["merges"] = std::move(pairs);
  return file.dump(1) + "\n";
}

std::string tokenizer_config_json() {
  Json file;
  file["add_bos_token"] = true;
  file["add_eos_token"] = false;
  file["bos_token"] = kBos;
  file["eos_token"] = kEos;
  file["pad_token"] = kPad;
  file["unk_token"] = nullptr;
  file["clean_up_tokenization_spaces"] = false;
  file["tokenizer_class"] = "PreTrainedTokenizerFast";
  file["chat_template"] = kTemplate;
  return file.dump(1) + "\n";
}

}  // namespace fathom
