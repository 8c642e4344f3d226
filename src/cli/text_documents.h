// Texts that a command is given to learn from: what counts as one document of them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

// Files as they are; a folder stands for all files below it, by name.
std::vector<std::filesystem::path> text_files(const std::vector<std::string>& inputs);
uint64_t total_bytes(const std::vector<std::filesystem::path>& files);

// body(text, place for messages, bytes of the file up to its end): the "text" of each line of a
// .jsonl file, or all of any other file.
// Throws "FILE: ..." or "FILE:LINE: ...": no such field, longer than `longest` bytes, changed
// meanwhile.
using DocumentBody =
    std::function<void(std::string_view text, const std::string& place, uint64_t end)>;
void for_each_document(const std::filesystem::path& path, uint64_t longest,
                       const DocumentBody& body);

}  // namespace fathom
