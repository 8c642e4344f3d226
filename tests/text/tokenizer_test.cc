// Published vectors, the two file formats against each other, properties, and every refusal.
#include "text/tokenizer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <ctime>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/file.h"
#include "base/limits.h"
#include "base/random.h"
#include "base/utf8.h"
#include "tests/base/test_files.h"
#include "tests/formats/gguf_builder.h"
#include "tests/text/published_tokenizer.h"
#include "text/unicode.h"

namespace fathom {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

std::string golden(const std::string& name) {
  return read_file(FATHOM_SOURCE_DIR "/tests/golden/text/" + name, 1 << 24);
}
json golden_json(const std::string& name) { return json::parse(golden(name + ".json")); }
Tokenizer golden_tokenizer(const std::string& name) {
  return Tokenizer::from_json(golden(name + ".json"), name);
}
const char* const kSmall[] = {"gpt2",         "smollm",         "llama3",     "qwen2",
                              "deepseek-llm", "deepseek-coder", "deepseek-v3"};

// --- the published V3 tokenizer ---

const Tokenizer& v3() {
  static const Tokenizer tokenizer = Tokenizer::from_json(published_v3(), "tokenizer.json", R"({
      "add_bos_token": true, "chat_template": "{{ bos_token }}",
      "bos_token": {"__type": "AddedToken", "content": "<｜begin▁of▁sentence｜>"}, "eos_token": "<｜end▁of▁sentence｜>"})");
  return tokenizer;
}

TEST(PublishedV3, PublishedVectors) {
  const std::pair<std::string, Ids> vectors[] = {
      {"Hello! 毕老师！1 + 1 = 2 ĠÑĤÐ²ÑĬÑĢ",
       {19923, 3,   223,   5464, 5008, 1175,  19,   940,   223, 19,  438,   223, 20,
        6113,  257, 76589, 131,  100,  76032, 1628, 76589, 131, 108, 76589, 131, 98}},
      {"Hello, world!", {19923, 14, 2058, 3}},
      {"The year 2024 has 1234567 days.",
       {671, 1141, 223, 939, 22, 769, 223, 6895, 18009, 25, 3137, 16}},
      {"  leading spaces\n\n\ttabs\r\n x", {223, 6646, 13564, 271, 17299, 10284, 204, 201, 1527}},
      {"def f(x):\n    return x**2 + 1\n",
       {3465, 285, 4042, 3395, 361, 1354, 1527, 666, 20, 940, 223, 19, 201}},
      {"你好，世界！こんにちは", {30594, 303, 3427, 1175, 4549, 7245, 2298, 12457, 2841}},
      {"don't I'll WE'VE", {20385, 1664, 342, 5922, 33418, 9, 23584}},
      {"😀 emoji 👍🏽", {28927, 225, 980, 82644, 102527, 40965, 124}},
      {"foo   bar  \n  ", {40897, 262, 4758, 2143, 262}},
      {"<｜User｜>hi<｜Assistant｜><think>\n", {128803, 6366, 128804, 30, 37947, 1018}},
      {"e\u0301 café naïve", {71, 17793, 57664, 112752}},
      {"a\u00a0b\u3000c", {67, 2162, 68, 18524, 69}},
      {"$x^2$ .Method _name /path", {120754, 64, 20, 6, 1204, 15855, 944, 2852, 1492, 9860}},
      {"١٢٣٤ ²³", {63468, 76647, 127056, 152, 100, 223, 1628, 5826}},
  };
  for (const auto& [text, ids] : vectors) {
    EXPECT_EQ(v3().encode(text, true), ids) << text;
    EXPECT_EQ(v3().decode(ids), text);
  }
}

TEST(PublishedV3, IdsOfTheTable) {
  EXPECT_EQ(v3().vocab_size(), 128815);
  EXPECT_EQ(v3().bos_id(), 0);
  EXPECT_EQ(v3().eos_ids(), Ids{1});
  EXPECT_TRUE(v3().add_bos());
  EXPECT_EQ(v3().chat_template_source(), "{{ bos_token }}");
  EXPECT_EQ(v3().find("<｜▁pad▁｜>"), 2);
  EXPECT_EQ(v3().find("<｜place▁holder▁no▁799｜>"), 128799);
  EXPECT_EQ(v3().find("<｜fim▁hole｜>"), 128800);
  EXPECT_EQ(v3().find("<｜tool▁sep｜>"), 128814);
  EXPECT_EQ(v3().find("\n\n"), v3().encode("\n\n", false)[0]);
  EXPECT_EQ(v3().find("<think>"), std::nullopt);
  EXPECT_TRUE(v3().is_special(0));
  EXPECT_TRUE(v3().is_special(128805));
  EXPECT_FALSE(v3().is_special(128803));
  EXPECT_FALSE(v3().is_special(500));
  EXPECT_FALSE(v3().is_special(-1));
  EXPECT_FALSE(v3().is_special(129279));
  EXPECT_EQ(v3().token_bytes(128804), "<｜Assistant｜>");
  EXPECT_EQ(v3().token_bytes(129279), "");
  EXPECT_EQ(v3().token_bytes(-1), "");
}

TEST(PublishedV3, PlainTextForgesNoAddedToken) {
  const json added = json::parse(published_v3())["added_tokens"];
  ASSERT_EQ(added.size(), 818u);
  std::set<int32_t> controls;
  for (const json& token : added) controls.insert(token["id"].get<int32_t>());
  for (const json& token : added) {
    const std::string text = "a " + token["content"].get<std::string>() + "b";
    for (const int32_t id : v3().encode(text, false)) EXPECT_FALSE(controls.contains(id)) << text;
    EXPECT_EQ(v3().decode(v3().encode(text, false)), text);
    const Ids ids = v3().encode(text, true);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), token["id"].get<int32_t>()), 1) << text;
  }
}

TEST(Tokenizer, TheLongestAddedTokenWins) {
  // runs of 3, 4 and 8 spaces are added tokens
  const Tokenizer tokenizer = golden_tokenizer("gpt2");
  const auto spaces = [&](size_t n) { return *tokenizer.find(std::string(n, ' ')); };
  EXPECT_EQ(tokenizer.encode(std::string(15, ' '), false), (Ids{spaces(8), spaces(4), spaces(3)}));
  EXPECT_EQ(tokenizer.encode(std::string(4, ' ') + "\n", true).front(), spaces(4));
}

TEST(PublishedV3, PrefixesOfAddedTokensStayText) {
  EXPECT_EQ(v3().encode("<｜place▁holder▁no▁77｜>", true), Ids{128077});
  EXPECT_EQ(v3().encode("<｜User｜><｜User｜", true).front(), 128803);
  EXPECT_EQ(v3().decode(v3().encode("<｜User｜><｜User｜", true)), "<｜User｜><｜User｜");
}

// --- properties ---

// Random bytes, biased towards what splitters and decoders care about.
std::string random_text(uint64_t round) {
  const std::string_view bits[] = {
      " ",          "  ",      "\n",  "\r\n", "a",    "The",         "'s", "12", "é",
      "e\u0301",    "你好",    "。",  "한",   "\xff", "\xe4\xbd",    "😀",  "!",  "<|endoftext|>",
      "<｜User｜>", "<think>", "   ", "ü",    "\xc3", "\xed\xa0\x80"};
  const RandomKey key{3, RandomPurpose::kTest, round};
  std::string text;
  for (uint64_t i = 0; i < round % 60; ++i) {
    const uint64_t bit = random_bits(key, i);
    if (bit % 4 == 0) {
      text += static_cast<char>(bit >> 8);
    } else {
      text += bits[(bit >> 8) % std::size(bits)];
    }
  }
  return text;
}

TEST(Tokenizer, EncodeThenDecodeGivesTheSameBytesForAnyInput) {
  for (const std::string name : kSmall) {
    const Tokenizer tokenizer = golden_tokenizer(name);
    for (uint64_t round = 0; round < 1000; ++round) {
      std::string text = random_text(round);
      if (name == "deepseek-llm")
        text = replace_invalid_utf8(text);  // its vocabulary lacks the bytes that UTF-8 lacks
      const std::string expected = name == "qwen2" ? to_nfc(text) : text;
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(text, round % 2 == 0)), expected) << name;
    }
  }
  for (uint64_t round = 0; round < 1000; ++round) {
    EXPECT_EQ(v3().decode(v3().encode(random_text(round), round % 2 == 0)), random_text(round));
  }
}

TEST(Tokenizer, ByteTheVocabularyLacksBecomesTheReplacementCharacter) {
  const Tokenizer tokenizer = golden_tokenizer("deepseek-llm");
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("a\xff", false)), "a\ufffd");
  // an added token, though plain text
  EXPECT_EQ(tokenizer.encode("ü", false), Ids{*tokenizer.find("ü")});
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("ü", false)), "ü");
}

TEST(Tokenizer, TimeIsNearLinearInAMegabyteOfOneThing) {
  // of the processor: other work on the machine does not count
  const std::clock_t begin = std::clock();
  for (const std::string_view unit :
       {"a", " ", "\n", "<", "\xff", "你", "\u0301", "<｜place▁holder▁no▁"}) {
    std::string text;
    while (text.size() < 1'000'000) text += unit;
    EXPECT_EQ(v3().decode(v3().encode(text, true)), text);
  }
  // seconds; quadratic would be many minutes
  EXPECT_LT((std::clock() - begin) / CLOCKS_PER_SEC, 100);
}

TEST(Tokenizer, StrippingTokensSwallowWhiteSpaceOnTheirSide) {
  const Tokenizer tokenizer = golden_tokenizer("gpt2");
  const int32_t mask = *tokenizer.find("<mask>"), sep = *tokenizer.find("<sep>");
  const int32_t a = *tokenizer.find("a");
  EXPECT_EQ(tokenizer.encode("a \n<mask>", true), (Ids{a, mask}));
  EXPECT_EQ(tokenizer.encode("a<sep> \u3000a", true), (Ids{a, sep, a}));
  EXPECT_EQ(tokenizer.encode("<sep>  <mask>", true), (Ids{sep, mask}));
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("a \n<mask>", false)), "a \n<mask>");
}

TEST(Tokenizer, NormalisedTokensAreFoundInNormalisedText) {
  const Tokenizer tokenizer = golden_tokenizer("qwen2");
  EXPECT_EQ(tokenizer.encode("<nfc-e\u0301>", true), Ids{*tokenizer.find("<nfc-é>")});
}

TEST(Tokenizer, IgnoreMergesTakesWholePieces) {
  const Tokenizer tokenizer = golden_tokenizer("llama3");
  EXPECT_EQ(tokenizer.encode(" swapcase", true), Ids{*tokenizer.find(" swapcase")});
  json file = golden_json("llama3");
  file["model"]["ignore_merges"] = false;
  EXPECT_GT(Tokenizer::from_json(file.dump(), "f").encode(" swapcase", true).size(), 1u);
}

// --- tokenizer.json, refused and accepted ---

std::string refusal(const std::function<void(json&)>& change,
                    std::optional<std::string_view> config = std::nullopt) {
  json file = golden_json("gpt2");
  change(file);
  return error_of([&] { Tokenizer::from_json(file.dump(), "t.json", config); });
}

TEST(TokenizerJson, RefusesWhatItDoesNotKnowByName) {
  const std::tuple<const char*, std::function<void(json&)>> cases[] = {
      {"t.json: 'extra': unknown field", [](json& f) { f["extra"] = 1; }},
      {"t.json: model: 'extra': unknown field", [](json& f) { f["model"]["extra"] = 1; }},
      {"t.json: model: missing", [](json& f) { f.erase("model"); }},
      {"t.json: model: type: found 'Unigram', expected 'BPE'",
       [](json& f) { f["model"]["type"] = "Unigram"; }},
      {"t.json: model: dropout: found a rate, expected none",
       [](json& f) { f["model"]["dropout"] = 0.1; }},
      {"t.json: model: end_of_word_suffix: found '</w>', expected none",
       [](json& f) { f["model"]["end_of_word_suffix"] = "</w>"; }},
      {"t.json: model: continuing_subword_prefix: found '##'",
       [](json& f) { f["model"]["continuing_subword_prefix"] = "##"; }},
      {"t.json: model: byte_fallback: found true, expected false",
       [](json& f) { f["model"]["byte_fallback"] = true; }},
      {"t.json: normalizer: type: found 'NFKC', expected NFC or none",
       [](json& f) {
         f["normalizer"] = {{"type", "NFKC"}};
       }},
      {"t.json: normalizer: type: found 'Lowercase'",
       [](json& f) {
         f["normalizer"] = {{"type", "Sequence"}, {"normalizers", {{{"type", "Lowercase"}}}}};
       }},
      {"t.json: pre_tokenizer: missing", [](json& f) { f.erase("pre_tokenizer"); }},
      {"t.json: pre_tokenizer: type: found 'Metaspace', expected Split, Digits or ByteLevel",
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Metaspace"}};
       }},
      {"t.json: pre_tokenizer: ByteLevel: add_prefix_space: found true",
       [](json& f) { f["pre_tokenizer"]["add_prefix_space"] = true; }},
      {"t.json: pre_tokenizer: no ByteLevel, expected it last",
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Digits"}, {"individual_digits", true}};
       }},
      {"t.json: pre_tokenizer: Digits: individual_digits: found false",
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Digits"}, {"individual_digits", false}};
       }},
      {"t.json: pre_tokenizer: 'ByteLevel' after ByteLevel",
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Sequence"},
                               {"pretokenizers", {f["pre_tokenizer"], f["pre_tokenizer"]}}};
       }},
      {"t.json: pre_tokenizer: type: found 'Sequence'",
       [](json& f) {
         f["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {{{"type", "Sequence"}}}}};
       }},
      {"t.json: decoder: type: found 'WordPiece', expected 'ByteLevel'",
       [](json& f) { f["decoder"]["type"] = "WordPiece"; }},
      {"t.json: post_processor: type: found 'BertProcessing', expected ByteLevel or "
       "TemplateProcessing",
       [](json& f) {
         f["post_processor"] = {{"type", "BertProcessing"}};
       }},
      {"t.json: post_processor: single: expected the text, at most with one special token before "
       "it",
       [](json& f) {
         f["post_processor"] = {
             {"type", "TemplateProcessing"},
             {"single", {{{"Sequence", json::object()}}, {{"SpecialToken", {{"id", "x"}}}}}}};
       }},
  };
  for (const auto& [expected, change] : cases) {
    const std::string error = refusal(change);
    EXPECT_EQ(error.substr(0, std::string_view(expected).size()), expected) << error;
  }
}

TEST(TokenizerJson, RefusesSplitsOtherThanTheKnownOnes) {
  const auto with = [](const json& split) {
    return refusal([&](json& f) {
      f["pre_tokenizer"] = {{"type", "Sequence"}, {"pretokenizers", {split, f["pre_tokenizer"]}}};
    });
  };
  const json good = {{"type", "Split"},
                     {"pattern", {{"Regex", "\\p{N}"}}},
                     {"behavior", "Isolated"},
                     {"invert", false}};
  json bad = good;
  bad["behavior"] = "Removed";
  EXPECT_EQ(with(bad),
            "t.json: pre_tokenizer: Split: behavior: found 'Removed', expected 'Isolated'");
  bad = good;
  bad["invert"] = true;
  EXPECT_EQ(with(bad), "t.json: pre_tokenizer: Split: invert: found true, expected false");
  bad = good;
  bad["pattern"] = {{"Regex", "\\w+"}};
  EXPECT_EQ(with(bad), "t.json: pre_tokenizer: Split: unknown expression '\\w+'");
  bad["pattern"] = {{"String", " "}};
  EXPECT_EQ(with(bad), "t.json: pre_tokenizer: pattern: 'String': unknown field");
}

TEST(TokenizerJson, RefusesTokensAndMergesThatDoNotAgree) {
  const auto added = [](int64_t id, const std::string& content) {
    return json{{"id", id},        {"content", content},  {"single_word", false}, {"lstrip", false},
                {"rstrip", false}, {"normalized", false}, {"special", true}};
  };
  const std::tuple<const char*, std::function<void(json&)>> cases[] = {
      {"t.json: model: vocab: 'zz': found -1, expected a token id",
       [](json& f) { f["model"]["vocab"]["zz"] = -1; }},
      {"t.json: model: vocab: 'zz': found 1.5, expected a token id",
       [](json& f) { f["model"]["vocab"]["zz"] = 1.5; }},
      {"t.json: model: vocab: 'zz': found 9999999999, expected a token id",
       [](json& f) { f["model"]["vocab"]["zz"] = 9999999999; }},
      {"t.json: token 'zz': id 2097152, expected one in [0, 2097152)",
       [](json& f) { f["model"]["vocab"]["zz"] = 2097152; }},
      {"t.json: token 5000: empty", [](json& f) { f["model"]["vocab"][""] = 5000; }},
      {"t.json: token 'zz': id 7 belongs to another token",
       [](json& f) { f["model"]["vocab"]["zz"] = 7; }},
      {"t.json: vocabulary: no token for byte 239 (expected byte-level BPE, where bytes are "
       "tokens)",
       [](json& f) { f["model"]["vocab"].erase("ï"), f["model"]["merges"] = json::array(); }},
      {"t.json: merge 0 of 'zq' and 'a': 'zq' is no ordinary token",
       [](json& f) { f["model"]["merges"] = {"zq a"}; }},
      {"t.json: merge 0 of 'a' and 'zq': 'zq' is no ordinary token",
       [](json& f) { f["model"]["merges"] = {"a zq"}; }},
      {"t.json: merge 0 of 'z' and 'q': 'zq' is no ordinary token",
       [](json& f) { f["model"]["merges"] = {"z q"}; }},
      {"t.json: merge 1 of 't' and 'h': listed twice",
       [](json& f) {
         f["model"]["merges"] = {"t h", "t h"};
       }},
      {"t.json: model: merge 0: found string 'a', expected two tokens",
       [](json& f) { f["model"]["merges"] = {"a"}; }},
      {"t.json: model: merge 0: found string 'a b c', expected two tokens",
       [](json& f) { f["model"]["merges"] = {"a b c"}; }},
      {"t.json: model: merge 0: found an array, expected two tokens",
       [](json& f) {
         f["model"]["merges"] = {{"a", "b", "c"}};
       }},
      {"t.json: added_tokens: id: found -1",
       [&](json& f) { f["added_tokens"].push_back(added(-1, "<x>")); }},
      {"t.json: token '<x>': id 3000000, expected one in [0, 2097152)",
       [&](json& f) { f["added_tokens"].push_back(added(3000000, "<x>")); }},
      {"t.json: token '<x>': id 7 belongs to another token",
       [&](json& f) { f["added_tokens"].push_back(added(7, "<x>")); }},
      {"t.json: token '<mask>': listed twice",
       [&](json& f) { f["added_tokens"].push_back(added(5000, "<mask>")); }},
      {"t.json: added token '<x>': listed twice",
       [&](json& f) {
         f["added_tokens"].push_back(added(5000, "<x>")),
             f["added_tokens"].push_back(added(5000, "<x>"));
       }},
      {"t.json: token 'the': listed twice",
       [&](json& f) {
         f["model"]["vocab"]["the"] = 5000, f["added_tokens"].push_back(added(5001, "the"));
       }},
      {"t.json: added token 'Ġ': also spells ' ' in the vocabulary",
       [&](json& f) { f["added_tokens"].push_back(added(f["model"]["vocab"]["Ġ"], "Ġ")); }},
      {"t.json: added_tokens: '<x>': single_word: found true, expected false",
       [&](json& f) {
         f["added_tokens"].push_back(added(5000, "<x>")),
             f["added_tokens"].back()["single_word"] = true;
       }},
      // A merge must not lead to a token that only templates may write.
      {"t.json: merge 0 of 't' and 'h': 'th' is no ordinary token",
       [&](json& f) {
         f["added_tokens"].push_back(added(f["model"]["vocab"]["th"], "th")),
             f["model"]["merges"] = {"t h"};
       }},
  };
  for (const auto& [expected, change] : cases) {
    const std::string error = refusal(change);
    EXPECT_EQ(error.substr(0, std::string_view(expected).size()), expected) << error;
  }
  EXPECT_EQ(refusal([](json& f) { f["model"]["vocab"][std::string(65537, 'x')] = 5000; }),
            "t.json: token 5000: 65537 bytes, expected at most 65536");
  json at_limit = golden_json("gpt2");
  at_limit["model"]["vocab"][std::string(65536, 'x')] = 2097151;
  EXPECT_EQ(Tokenizer::from_json(at_limit.dump(), "t").vocab_size(), 2097152);
}

TEST(TokenizerJson, RefusesBrokenAndDeepJson) {
  EXPECT_NE(error_of([] { Tokenizer::from_json("{", "t.json"); }).find("t.json"),
            std::string::npos);
  EXPECT_NE(
      error_of([] { Tokenizer::from_json(std::string(100, '['), "t.json"); }).find("nested deeper"),
      std::string::npos);
  EXPECT_NE(error_of([] { Tokenizer::from_json("[]", "t.json"); }).find("expected an object"),
            std::string::npos);
  EXPECT_NE(error_of([] {
              Tokenizer::from_json(R"({"model":1,"model":2})", "t.json");
            }).find("duplicate key"),
            std::string::npos);
}

TEST(TokenizerJson, BothSpellingsOfMergesAreOne) {
  json file = golden_json("gpt2");  // pairs
  const Tokenizer pairs = Tokenizer::from_json(file.dump(), "t");
  for (json& merge : file["model"]["merges"])
    merge = fmt::format("{} {}", merge[0].get<std::string>(), merge[1].get<std::string>());
  const Tokenizer strings = Tokenizer::from_json(file.dump(), "t");
  for (uint64_t round = 0; round < 100; ++round)
    EXPECT_EQ(pairs.encode(random_text(round), true), strings.encode(random_text(round), true));
}

TEST(TokenizerJson, BosComesFromTheConfigOrTheTemplate) {
  json file = golden_json("gpt2");
  file["post_processor"] = {{"type", "Sequence"},
                            {"processors",
                             {{{"type", "ByteLevel"}, {"trim_offsets", false}},
                              {{"type", "TemplateProcessing"},
                               {"single",
                                {{{"SpecialToken", {{"id", "<|im_start|>"}, {"type_id", 0}}}},
                                 {{"Sequence", {{"id", "A"}}}}}}}}}};
  const std::string text = file.dump();
  const auto read = [&](const char* config) { return Tokenizer::from_json(text, "t", config); };
  EXPECT_FALSE(Tokenizer::from_json(text, "t").bos_id());
  EXPECT_FALSE(Tokenizer::from_json(text, "t").add_bos());
  EXPECT_TRUE(read(R"({"bos_token": "<|im_start|>"})").add_bos());
  EXPECT_FALSE(read(R"({"bos_token": "<|im_start|>", "add_bos_token": false})").add_bos());
  EXPECT_FALSE(read(R"({"bos_token": "<|endoftext|>"})").add_bos());
  EXPECT_FALSE(read(R"({"bos_token": null, "eos_token": null})").bos_id());
  EXPECT_EQ(
      read(
          R"({"chat_template": [{"name": "tool", "template": "x"}, {"name": "default", "template": "y"}]})")
          .chat_template_source(),
      "y");
  const auto config_refusal = [&](const char* config) { return error_of([&] { read(config); }); };
  EXPECT_EQ(
      config_refusal(R"({"bos_token": "<none>"})"),
      "t (tokenizer_config.json): bos_token: found '<none>', which is no token of this tokenizer");
  EXPECT_EQ(
      config_refusal(R"({"eos_token": {"content": "<none>"}})"),
      "t (tokenizer_config.json): eos_token: found '<none>', which is no token of this tokenizer");
  EXPECT_EQ(config_refusal(R"({"add_bos_token": true})"),
            "t (tokenizer_config.json): add_bos_token: found true without a bos_token");
}

TEST(TokenizerCheckpoint, ReadsTheFilesBesideTheWeights) {
  const TempDir folder;
  const std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  folder.write("model.safetensors",
               le_bytes<uint64_t>(header.size()) + header + std::string(4, '\0'));
  folder.write("config.json", "{}");
  const auto open = [&] { return Tokenizer::from_checkpoint(Checkpoint::open(folder.path())); };
  EXPECT_NE(error_of(open).find("no tokenizer.json"), std::string::npos);
  folder.write("tokenizer.json", golden("gpt2.json"));
  EXPECT_TRUE(open().eos_ids().empty());
  folder.write("tokenizer_config.json", R"({"eos_token": "<|endoftext|>"})");
  folder.write("chat_template.jinja", "from a file");
  folder.write("generation_config.json", R"({"eos_token_id": [5, 6]})");
  const Tokenizer tokenizer = open();
  EXPECT_EQ(tokenizer.eos_ids(), (Ids{*tokenizer.find("<|endoftext|>"), 5, 6}));
  EXPECT_EQ(tokenizer.chat_template_source(), "from a file");
  folder.write("generation_config.json", R"({"eos_token_id": 99999})");
  EXPECT_NE(error_of(open).find("eos_token_id: found 99999"), std::string::npos);
}

// --- GGUF ---

// What llama.cpp's converter writes for a tokenizer.json, as far as we read it.
struct GgufTokenizer {
  std::string model = "gpt2", pre = "gpt-2";
  std::vector<std::string> tokens, merges;
  std::vector<int32_t> types;
  GgufBuilder extra;

  explicit GgufTokenizer(const json& file) {
    const auto put = [&](const std::string& text, size_t id, int32_t type) {
      tokens.resize(std::max(tokens.size(), id + 1), "[PAD]");
      types.resize(tokens.size(), 5);
      tokens[id] = text, types[id] = type;
    };
    for (const auto& [text, id] : file["model"]["vocab"].items()) put(text, id, 1);
    for (const json& token : file["added_tokens"])
      put(token["content"], token["id"], token["special"].get<bool>() ? 3 : 4);
    for (const json& merge : file["model"]["merges"]) {
      merges.push_back(merge.is_string() ? merge.get<std::string>()
                                         : fmt::format("{} {}", merge[0].get<std::string>(),
                                                       merge[1].get<std::string>()));
    }
  }
  std::string bytes() const {
    const auto strings = [](const std::vector<std::string>& list) {
      std::string value = le_bytes<uint32_t>(8) + le_bytes<uint64_t>(list.size());
      for (const std::string& text : list) value += gguf_string(text);
      return value;
    };
    std::string type_array = le_bytes<uint32_t>(5) + le_bytes<uint64_t>(types.size());
    for (const int32_t type : types) type_array += le_bytes(type);
    GgufBuilder builder = extra;
    builder.str("tokenizer.ggml.model", model).str("tokenizer.ggml.pre", pre);
    builder.key("tokenizer.ggml.tokens", 9, strings(tokens))
        .key("tokenizer.ggml.merges", 9, strings(merges));
    builder.key("tokenizer.ggml.token_type", 9, type_array);
    return builder.bytes();
  }
  Tokenizer read() const {
    const std::string file = bytes();
    return Tokenizer::from_gguf(Gguf::parse(std::as_bytes(std::span(file)), "m.gguf"));
  }
  std::string refusal() const {
    return error_of([&] { read(); });
  }
};

TEST(TokenizerGguf, GivesTheSameIdsAsTokenizerJson) {
  const std::map<std::string, std::string> pre = {{"gpt2", "gpt-2"},
                                                  {"smollm", "smollm"},
                                                  {"llama3", "llama-bpe"},
                                                  {"qwen2", "qwen2"},
                                                  {"deepseek-llm", "deepseek-llm"},
                                                  {"deepseek-coder", "deepseek-coder"},
                                                  {"deepseek-v3", "deepseek-v3"}};
  const json strings = json::parse(golden("strings.json"));
  for (const std::string name : kSmall) {
    GgufTokenizer gguf(golden_json(name));
    gguf.pre = pre.at(name);
    const Tokenizer from_gguf = gguf.read(), from_json = golden_tokenizer(name);
    EXPECT_EQ(from_gguf.vocab_size(), from_json.vocab_size());
    size_t compared = 0;
    for (const std::string text : strings) {
      EXPECT_EQ(from_gguf.encode(text, false), from_json.encode(text, false))
          << name << ": " << text;
      // GGUF does not say which tokens strip or are normalised.
      if (text.find("<mask>") != text.npos || text.find("<sep>") != text.npos ||
          text.find("<nfc-") != text.npos)
        continue;
      EXPECT_EQ(from_gguf.encode(text, true), from_json.encode(text, true)) << name << ": " << text;
      ++compared;
    }
    EXPECT_GT(compared, 1000u);
  }
}

TEST(TokenizerGguf, TypesAndIds) {
  GgufTokenizer file(golden_json("gpt2"));
  const auto size = static_cast<int32_t>(file.tokens.size());
  file.tokens.insert(file.tokens.end(), {"<0x0A>", "[PAD]", "[PAD]", "<unk>"});
  file.types.insert(file.types.end(), {6, 5, 5, 2});
  file.extra.u32("tokenizer.ggml.bos_token_id", 3)
      .u32("tokenizer.ggml.eos_token_id", 4)
      .u32("tokenizer.ggml.eot_token_id", 4);
  file.extra.u32("tokenizer.ggml.eom_token_id", 5)
      .key("tokenizer.ggml.add_bos_token", 7, std::string("\1", 1));
  file.extra.str("tokenizer.chat_template", "T");
  const Tokenizer tokenizer = file.read();
  EXPECT_EQ(tokenizer.token_bytes(size), "\n");
  EXPECT_EQ(tokenizer.token_bytes(size + 1), "");
  EXPECT_EQ(tokenizer.token_bytes(size + 3), "<unk>");
  EXPECT_EQ(tokenizer.vocab_size(), size + 4);
  EXPECT_TRUE(tokenizer.is_special(size + 3));
  EXPECT_TRUE(tokenizer.is_special(*tokenizer.find("<|endoftext|>")));
  EXPECT_FALSE(tokenizer.is_special(*tokenizer.find("<｜User｜>")));
  EXPECT_EQ(tokenizer.bos_id(), 3);
  EXPECT_EQ(tokenizer.eos_ids(), (Ids{4, 5}));
  EXPECT_TRUE(tokenizer.add_bos());
  EXPECT_EQ(tokenizer.chat_template_source(), "T");
}

TEST(TokenizerGguf, Llama3AddsBosUnlessItsFileSaysNo) {
  GgufTokenizer file(golden_json("llama3"));
  file.pre = "llama-bpe";
  EXPECT_FALSE(file.read().add_bos());  // there is none to add
  file.extra.u32("tokenizer.ggml.bos_token_id", 3);
  EXPECT_TRUE(file.read().add_bos());
  file.extra.key("tokenizer.ggml.add_bos_token", 7, std::string("\0", 1));
  EXPECT_FALSE(file.read().add_bos());
}

TEST(TokenizerGguf, Refusals) {
  const GgufTokenizer good(golden_json("gpt2"));
  const std::tuple<const char*, std::function<void(GgufTokenizer&)>> cases[] = {
      {"m.gguf: tokenizer.ggml.model: found 'llama', expected 'gpt2' (byte-level BPE)",
       [](auto& f) { f.model = std::string("llama"); }},
      {"m.gguf: tokenizer.ggml.pre: 'kimi-k2' is not supported (its splitter",
       [](auto& f) { f.pre = std::string("kimi-k2"); }},
      {"m.gguf: tokenizer.ggml.pre: found 'tekken', expected deepseek-llm",
       [](auto& f) { f.pre = std::string("tekken"); }},
      {"m.gguf: tokenizer.ggml.tokens: 0 tokens, expected 1 to 2097152",
       [](auto& f) { f.tokens.clear(); }},
      {"m.gguf: tokenizer.ggml.token_type: 1000 types, expected 1014 (as many as tokens)",
       [](auto& f) { f.types.resize(1000); }},
      {"m.gguf: key 'tokenizer.ggml.token_type': element 0: found 7",
       [](auto& f) { f.types[0] = 7; }},
      {"m.gguf: token 9: empty", [](auto& f) { f.tokens[9].clear(); }},
      {"m.gguf: key 'tokenizer.ggml.tokens': string of 65537",
       [](auto& f) { f.tokens[9] = std::string(65537, 'x'); }},
      {"m.gguf: token '!': listed twice", [](auto& f) { f.tokens[9] = std::string("!"); }},
      {"m.gguf: byte token 9: found '<0x1G>', expected <0x and two hex digits>",
       [](auto& f) { f.tokens[9] = std::string("<0x1G>"), f.types[9] = 6; }},
      {"m.gguf: byte token 9: found '<0x123>'",
       [](auto& f) { f.tokens[9] = std::string("<0x123>"), f.types[9] = 6; }},
      {"m.gguf: merge 0: found 'ab', expected two tokens",
       [](auto& f) { f.merges[0] = std::string("ab"); }},
      {"m.gguf: merge 0 of 'a' and 'Q!': 'Q!' is no ordinary token",
       [](auto& f) { f.merges[0] = std::string("a Q!"); }},
      {"m.gguf: key 'tokenizer.ggml.bos_token_id'",
       [](auto& f) { f.extra.u32("tokenizer.ggml.bos_token_id", 1'000'000); }},
      {"m.gguf: key 'tokenizer.ggml.eos_token_id'",
       [](auto& f) { f.extra.key("tokenizer.ggml.eos_token_id", 5, le_bytes<int32_t>(-1)); }},
      {"m.gguf: tokenizer.ggml.add_bos_token: true without bos_token_id",
       [](auto& f) { f.extra.key("tokenizer.ggml.add_bos_token", 7, std::string("\1", 1)); }},
  };
  for (const auto& [expected, change] : cases) {
    GgufTokenizer file = good;
    change(file);
    const std::string error = file.refusal();
    EXPECT_EQ(error.substr(0, std::string_view(expected).size()), expected) << error;
  }
  const std::string bare =
      GgufBuilder().str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "gpt-2").bytes();
  EXPECT_EQ(error_of([&] {
              Tokenizer::from_gguf(Gguf::parse(std::as_bytes(std::span(bare)), "m.gguf"));
            }),
            "m.gguf: tokenizer.ggml.tokens: missing");
}

}  // namespace
}  // namespace fathom
