#include "text/character_tokenizer.h"

#include <vector>

#include "text/tokenizer_writer.h"

namespace fathom {

std::string character_tokenizer_json() {
  std::vector<std::string> characters = {"\n"};
  for (char c = ' '; c <= '~'; ++c) characters.emplace_back(1, c);
  for (const char byte : {'\xef', '\xbf', '\xbd'}) characters.emplace_back(1, byte);
  return tokenizer_json({}, characters, {});
}

std::string character_tokenizer_config_json() { return tokenizer_config_json(); }

}  // namespace fathom
