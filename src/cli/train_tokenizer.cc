#include "cli/train_tokenizer.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "cli/progress.h"
#include "cli/text_documents.h"
#include "text/bpe_trainer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

void read_texts(const TrainTokenizerOptions& options, BpeTrainer& trainer) {
  const std::vector<fs::path> files = text_files(options.files);
  const uint64_t total = total_bytes(files);
  if (total == 0) fail("{}: 0 bytes, expected text to learn from", fmt::join(options.files, ", "));
  make_folders(options.folder);
  // not after an hour of reading and merging
  expect_writable(fs::path(options.folder) / "tokenizer.json");
  Progress bar(options.output, "reading", Progress::Unit::kBytes, total);
  uint64_t done = 0;
  for (const fs::path& file : files) {
    for_each_document(file, UINT64_MAX,
                      [&](std::string_view text, const std::string& place, uint64_t end) {
                        trainer.add(text, place, [&](uint64_t bytes) {
                          bar.at(done + end - std::min<uint64_t>(end, text.size() - bytes));
                        });
                      });
    done += fs::file_size(file);
  }
}

TrainedBpe learn(const TrainTokenizerOptions& options, const BpeTrainer& trainer) {
  Progress bar(options.output, "merging", Progress::Unit::kTokens,
               static_cast<uint64_t>(options.vocab_size));
  return trainer.train([&](uint64_t tokens) { bar.at(tokens); });
}

void write_files(const fs::path& folder, const TrainedBpe& trained) {
  write_file_atomically(folder / "tokenizer_config.json", tokenizer_config_json());
  write_file_atomically(folder / "tokenizer.json", tokenizer_json(trained));
}

}  // namespace

int run_train_tokenizer(const TrainTokenizerOptions& options) {
  BpeTrainer trainer(options.vocab_size);
  read_texts(options, trainer);
  const TrainedBpe trained = learn(options, trainer);
  write_files(options.folder, trained);
  out("vocabulary {}, {} merges, {:.3f} bytes per token\n", trained.vocab_size(),
      trained.merges.size(),
      static_cast<double>(trained.text_bytes) / static_cast<double>(trained.text_tokens));
  if (trained.vocab_size() < options.vocab_size && !options.output.quiet) {
    note("no pair is left that occurs twice: {} tokens instead of {}", trained.vocab_size(),
         options.vocab_size);
  }
  return 0;
}

}  // namespace fathom
