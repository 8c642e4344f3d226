// The two files of a tokenizer that fathom makes itself, as Hugging Face libraries and
// text/tokenizer.h read them: DeepSeek's special tokens come first, then the tokens of bytes. The
// prompts are R1's (chat_template.h, deepseek-r1).
//
//   ids   0 <｜begin▁of▁sentence｜>  1 <｜end▁of▁sentence｜>  2 <｜▁pad▁｜>  3 <｜User｜>
//         4 <｜Assistant｜>  5 <think>  6 </think>  7 .. the others
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "text/pretokenizer.h"

namespace fathom {

inline constexpr int32_t kSpecialTokens = 7;

// tokenizer.json. `tokens`: the bytes of ids kSpecialTokens and on; `merges`: pairs of ids by rank,
// each of which gives a token of the list. REQUIRES: no token occurs twice or spells a special one.
std::string tokenizer_json(std::span<const Splitter> splitters, std::span<const std::string> tokens,
                           std::span<const std::pair<int32_t, int32_t>> merges);
std::string tokenizer_config_json();  // tokenizer_config.json

}  // namespace fathom
