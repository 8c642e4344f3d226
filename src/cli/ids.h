// Lists of token ids, and text, from the command line, files and stdin.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace fathom {

// Integers separated by white space or commas, or a JSON list of them. `place` begins every error.
std::vector<int32_t> parse_ids(std::string_view text, const std::string& place);
// The same from a file; of a .safetensors file its tensor `input_ids` (I64 or I32, read flat).
std::vector<int32_t> read_ids(const std::filesystem::path& path);
// Everything on stdin, or a regular or special file. Throws over Limits::text_bytes.
std::string read_stdin();
std::string read_text_file(const std::filesystem::path& path);

}  // namespace fathom
