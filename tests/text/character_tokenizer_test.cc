#include "text/character_tokenizer.h"

#include <gtest/gtest.h>

#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace fathom {
namespace {

Tokenizer characters() {
  return Tokenizer::from_json(character_tokenizer_json(), "tokenizer.json",
                              character_tokenizer_config_json());
}

TEST(CharacterTokenizer, EveryPrintableCharacterIsOneTokenAndComesBack) {
  const Tokenizer t = characters();
  EXPECT_EQ(t.vocab_size(), kCharacterTokens);
  std::string text = "\n";
  for (char c = ' '; c < 127; ++c) text += c;
  text += "  12 + 345 = 357\n\n";
  const std::vector<int32_t> ids = t.encode(text, false);
  EXPECT_EQ(ids.size(), text.size());
  EXPECT_EQ(t.decode(ids), text);
}

TEST(CharacterTokenizer, OtherTextBecomesTheReplacementCharacter) {
  const Tokenizer t = characters();
  EXPECT_EQ(t.decode(t.encode("a\x80z", false)), "a\xef\xbf\xbdz");
  const std::string text = t.decode(t.encode("2 × 3", false));
  EXPECT_EQ(text.front(), '2');
  EXPECT_EQ(text.back(), '3');
}

TEST(CharacterTokenizer, SpeaksR1sPromptFormat) {
  const Tokenizer t = characters();
  EXPECT_EQ(detect_chat_format(t), ChatFormat::kDeepseekR1);
  const ChatMessage question{
      .role = ChatMessage::Role::kUser, .content = "1+1", .reasoning = {}, .tool_calls = {}};
  const std::vector<int32_t> ids = encode_chat(t, ChatFormat::kDeepseekR1, {&question, 1}, {});
  EXPECT_EQ(t.decode(ids), "<｜begin▁of▁sentence｜><｜User｜>1+1<｜Assistant｜><think>\n");
  EXPECT_EQ(ids.size(), 8u);
  EXPECT_EQ(t.bos_id(), 0);
  EXPECT_EQ(t.eos_ids(), std::vector<int32_t>{1});
}

}  // namespace
}  // namespace fathom
