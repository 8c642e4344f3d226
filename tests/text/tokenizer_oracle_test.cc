// Our ids against those of PyPI `tokenizers` (tools/tokenizer_oracle.py) on generated strings of
// all kinds, as hashes. Where FATHOM_TOKENIZER_ORACLE names a folder, that one is read instead of
// ours (tools/check_tokenizer.sh, many more strings).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "tests/base/test_name.h"
#include "tests/text/published_tokenizer.h"
#include "text/tokenizer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

fs::path folder() {
  const char* other = std::getenv("FATHOM_TOKENIZER_ORACLE");
  return other != nullptr ? other : FATHOM_SOURCE_DIR "/tests/golden/text";
}

uint32_t crc32(std::string_view text) {  // zlib's
  uint32_t crc = UINT32_MAX;
  for (const char c : text) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc;
}

class TokenizerOracle : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerOracle, GivesTheSameIds) {
  const std::string name = GetParam();
  const fs::path file = folder() / (name + ".json");
  const Tokenizer tokenizer = Tokenizer::from_json(
      name == "published-v3" ? published_v3() : read_file(file, 1 << 28), name);
  const auto strings = nlohmann::json::parse(read_file(folder() / "strings.json", 1 << 28));
  std::ifstream hashes(folder() / (name + ".hashes"));
  size_t mismatches = 0;
  for (const std::string text : strings) {
    std::string line;
    ASSERT_TRUE(std::getline(hashes, line)) << name << ".hashes is shorter than strings.json";
    const auto special = fmt::format("{}", fmt::join(tokenizer.encode(text, true), ","));
    const auto plain = fmt::format("{}", fmt::join(tokenizer.encode(text, false), ","));
    if (line == fmt::format("{} {}", crc32(special), crc32(plain))) continue;
    if (++mismatches <= 10)
      ADD_FAILURE() << nlohmann::json(text).dump(-1, ' ', true) << "\n" << special << "\n" << plain;
  }
  EXPECT_EQ(mismatches, 0u) << "of " << strings.size();
  EXPECT_GE(strings.size(), 2000u);
}

INSTANTIATE_TEST_SUITE_P(EveryPreTokenizer, TokenizerOracle,
                         testing::Values("published-v3", "gpt2", "smollm", "llama3", "qwen2",
                                         "deepseek-llm", "deepseek-coder", "deepseek-v3"),
                         kNamedByParameter);

}  // namespace
}  // namespace fathom
