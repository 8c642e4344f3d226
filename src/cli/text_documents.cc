#include "cli/text_documents.h"

#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "formats/json.h"

namespace fathom {

namespace fs = std::filesystem;

std::vector<fs::path> text_files(const std::vector<std::string>& inputs) {
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

uint64_t total_bytes(const std::vector<fs::path>& files) {
  uint64_t total = 0;
  for (const fs::path& file : files) total += MappedFile(file).bytes().size();
  return total;
}

void for_each_document(const fs::path& path, uint64_t longest, const DocumentBody& body) {
  const MappedFile file(path);
  const std::string_view all(reinterpret_cast<const char*>(file.bytes().data()),
                             file.bytes().size());
  const auto hand_on = [&](std::string_view text, const std::string& place, uint64_t end) {
    if (text.size() > longest) {
      fail(
          "{}: {} bytes, expected at most {} in one document (split it, or JSONL: one {{\"text\": "
          "...}} a line)",
          place, text.size(), longest);
    }
    body(text, place, end);
  };
  if (path.extension() == ".jsonl") {
    for_each_json_line(all, path.string(), [&](const JsonObject& line, size_t end) {
      hand_on(line.string("text"), line.place(), end);
    });
  } else {
    hand_on(all, path.string(), all.size());
  }
  file.check_unchanged();
}

}  // namespace fathom
