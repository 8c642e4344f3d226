// First byte even: the rest is a tokenizer.json, refused or usable. Odd: the rest is text for a
// fixed tokenizer; encoding loses nothing, forges nothing, and streams as it decodes.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/check.h"
#include "base/error.h"
#include "base/file.h"
#include "base/utf8.h"
#include "text/detokenizer.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

using namespace fathom;

namespace {

struct Fixed {
  Tokenizer tokenizer;
  bool lossless;  // no normaliser
};

const std::vector<Fixed>& fixed_tokenizers() {
  static const std::vector<Fixed> tokenizers = [] {
    const std::filesystem::path golden =
        std::filesystem::path(__FILE__).parent_path().parent_path() / "golden/text";
    std::vector<Fixed> list;
    for (const char* name :
         {"gpt2", "smollm", "llama3", "qwen2", "deepseek-coder", "deepseek-v3"}) {
      const auto file = golden / (std::string(name) + ".json");
      list.push_back({Tokenizer::from_json(read_file(file, 1 << 20), file.string()),
                      std::string_view(name) != "qwen2"});
    }
    return list;
  }();
  return tokenizers;
}

void check_text(const Tokenizer& tokenizer, bool lossless, std::string_view text) {
  const std::vector<int32_t> ids = tokenizer.encode(text, false);
  FATHOM_CHECK(tokenizer.decode(ids) == (lossless ? std::string(text) : to_nfc(text)));
  for (const int32_t id : ids) FATHOM_CHECK(!tokenizer.is_special(id), id);
  Detokenizer detokenizer(tokenizer);
  std::string streamed;
  for (const int32_t id : ids) streamed += detokenizer.push(id);
  streamed += detokenizer.finish();
  FATHOM_CHECK(streamed == replace_invalid_utf8(tokenizer.decode(ids)));
  tokenizer.decode(tokenizer.encode(text, true));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 2 != 0) {
    const auto& [tokenizer, lossless] = fixed_tokenizers()[data[0] / 2 % fixed_tokenizers().size()];
    check_text(tokenizer, lossless, rest);
    return 0;
  }
  try {
    const Tokenizer tokenizer = Tokenizer::from_json(rest, "input");
    for (const bool parse_special : {false, true}) {
      const std::vector<int32_t> ids =
          tokenizer.encode("Hello  wörld, 123\n<x> \xff", parse_special);
      for (const int32_t id : ids)
        FATHOM_CHECK(
            !tokenizer.token_bytes(id).empty() && (parse_special || !tokenizer.is_special(id)), id);
    }
  } catch (const Error&) {
  }
  return 0;
}
