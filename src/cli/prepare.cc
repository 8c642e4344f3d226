#include "cli/prepare.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "formats/json.h"
#include "train/data.h"
#include "train/shards.h"
#include "train/tokenizer_files.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

// Folders stand for all files below them, by name.
std::vector<fs::path> files_of(const std::vector<std::string>& inputs) {
  std::vector<fs::path> files;
  for (const std::string& input : inputs) {
    std::error_code error;
    if (!fs::is_directory(input, error)) {
      files.emplace_back(input);
      continue;
    }
    const size_t first = files.size();
    fs::recursive_directory_iterator entry(input, error);
    for (; !error && entry != fs::recursive_directory_iterator(); entry.increment(error)) {
      if (std::error_code ignored; entry->is_regular_file(ignored)) files.push_back(entry->path());
    }
    if (error) fail("{}: {}", input, error.message());
    std::sort(files.begin() + static_cast<std::ptrdiff_t>(first), files.end());
  }
  return files;
}

// body(text, bytes of the file that are done after it) for each document of a file: a JSONL line's "text", or all of any other file.
template <class Body>
void for_each_document(const fs::path& path, Body body) {
  const MappedFile file(path);
  const std::string_view all(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  const auto expect_short = [&](const std::string& place, size_t bytes) {
    if (bytes >= Limits{}.text_bytes) {
      fail("{}: {} bytes, expected less than {} in one document (split it, or JSONL: one {{\"text\": ...}} a line)", place, bytes,
           Limits{}.text_bytes);
    }
  };
  if (path.extension() != ".jsonl") {
    expect_short(path.string(), all.size());
    body(all, all.size());
    return file.check_unchanged();
  }
  size_t number = 0;
  for (size_t begin = 0; begin < all.size();) {
    const size_t end = std::min(all.find('\n', begin), all.size());
    const std::string_view line = all.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const std::string place = fmt::format("{}:{}", path.string(), number);
    const nlohmann::json value = parse_json(line, place);
    const std::string text = JsonObject(value, place).string("text");
    expect_short(place, text.size());
    body(text, std::min(begin, all.size()));
  }
  file.check_unchanged();
}

}  // namespace

int run_prepare(const PrepareCommand& options) {
  const TokenizerFiles tokenizer_files = read_tokenizer_files(options.tokenizer);
  const Tokenizer tokenizer = tokenizer_files.load(options.tokenizer);
  const std::vector<fs::path> files = files_of(options.inputs);
  uint64_t total = 0, done = 0, text_bytes = 0;
  for (const fs::path& file : files) {
    std::error_code error;
    const uint64_t bytes = fs::file_size(file, error);
    if (error) fail("{}: {}", file.string(), error.message());
    total += bytes;
  }
  InterruptScope interrupts;
  ShardWriter writer(options.out, tokenizer_files.fingerprint());
  Progress progress(options.output, "tokenizing", Progress::Unit::kBytes, total);
  for (const fs::path& file : files) {
    for_each_document(file, [&](std::string_view text, uint64_t end_of_document) {
      if (interrupted()) throw Interrupted{};
      if (!text.empty()) writer.add(text_document(tokenizer, text).tokens);
      text_bytes += text.size();
      progress.at(done + end_of_document);
    });
    done += fs::file_size(file);
  }
  const ShardCounts counts = writer.finish();
  if (!options.output.quiet) {
    write_stderr(fmt::format("{}: {} documents, {} tokens ({:.2f} bytes a token) in {} files\n", options.out, counts.documents, counts.tokens,
                             static_cast<double>(text_bytes) / static_cast<double>(counts.tokens), counts.files));
  }
  return 0;
}

}  // namespace fathom
