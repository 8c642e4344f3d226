// `fathom tokenize MODEL`: text to token ids and back.
#pragma once

#include <optional>
#include <string>

#include "cli/output.h"

namespace fathom {

struct TokenizeOptions {
  OutputOptions output;
  std::string model;
  std::optional<std::string> text;
  std::string file;
  std::optional<std::string> decode;  // ids to turn into text instead
  bool special = false;               // special tokens written in the text become their ids
  bool chat = false;                  // the text is a user's message: show the whole prompt
  std::string template_name;
  bool lines = false;  // stdin holds one JSON string a line; one object each
  bool json = false;
};

int run_tokenize(const TokenizeOptions& options);

}  // namespace fathom
