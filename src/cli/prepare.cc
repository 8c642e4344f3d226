#include "cli/prepare.h"

#include <filesystem>

#include "base/limits.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "cli/text_documents.h"
#include "train/data.h"
#include "train/shards.h"
#include "train/tokenizer_files.h"

namespace fathom {

int run_prepare(const PrepareCommand& options) {
  const TokenizerFiles tokenizer_files = read_tokenizer_files(options.tokenizer);
  const Tokenizer tokenizer = tokenizer_files.load(options.tokenizer);
  const std::vector<std::filesystem::path> files = text_files(options.inputs);
  const uint64_t total = total_bytes(files);
  uint64_t done = 0, text_bytes = 0;
  InterruptScope interrupts;
  ShardWriter writer(options.out, tokenizer_files.fingerprint());
  Progress progress(options.output, "tokenizing", Progress::Unit::kBytes, total);
  for (const std::filesystem::path& file : files) {
    for_each_document(file, Limits{}.text_bytes - 1,
                      [&](std::string_view text, const std::string&, uint64_t end) {
                        if (interrupted()) throw Interrupted{};
                        if (!text.empty()) writer.add(text_document(tokenizer, text).tokens);
                        text_bytes += text.size();
                        progress.at(done + end);
                      });
    done += std::filesystem::file_size(file);
  }
  const ShardCounts counts = writer.finish();
  if (!options.output.quiet) {
    write_stderr(fmt::format("{}: {} documents, {} tokens ({:.2f} bytes a token) in {} files\n",
                             options.out, counts.documents, counts.tokens,
                             static_cast<double>(text_bytes) / static_cast<double>(counts.tokens),
                             counts.files));
  }
  return 0;
}

}  // namespace fathom
