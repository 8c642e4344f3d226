// A tokenizer of single characters, for small models trained from nothing: DeepSeek's special
// tokens, printable ASCII and the newline, one token each, as the two files that Hugging Face
// libraries and text/tokenizer.h read.
//
//   ids   0 .. 6 special (tokenizer_writer.h)   7 newline   8 .. 102 the characters ' ' .. '~'   103 .. 105 the bytes of U+FFFD
//
// What has no token becomes U+FFFD when encoded: any input is accepted. The prompts are R1's
// (chat_template.h, deepseek-r1).
#pragma once

#include <cstdint>
#include <string>

namespace fathom {

inline constexpr int64_t kCharacterTokens = 106;

std::string character_tokenizer_json();         // tokenizer.json
std::string character_tokenizer_config_json();  // tokenizer_config.json

}  // namespace fathom
