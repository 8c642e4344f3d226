// Every limit on input from outside, named once; `fathom doctor --print-limits` prints this table.
// Each is tested at the limit and one past it.
#pragma once

#include <cstdint>

namespace fathom {

struct Limits {
  uint64_t safetensors_header_bytes = 100'000'000;
  uint64_t gguf_string_bytes = 16u << 20;
  uint64_t gguf_token_bytes = 64u << 10;
  uint64_t gguf_array_elements = 64u << 20;
  uint64_t gguf_keys = 65'536;
  uint64_t gguf_dims = 4;
  uint64_t gguf_alignment_min = 8;
  uint64_t gguf_alignment_max = 65'536;
  uint64_t tensors = 1'000'000;
  uint64_t tensor_rank = 8;
  uint64_t tensor_name_bytes = 512;
  // hidden sizes, ranks, head sizes: far above any model, far below overflow
  uint64_t width = 1u << 20;
  uint64_t heads = 65'536;
  uint64_t shared_experts = 64;
  uint64_t positions = uint64_t{1} << 31;
  uint64_t layers = 1'024;
  uint64_t experts = 4'096;
  uint64_t vocabulary = 2'097'152;
  uint64_t config_file_bytes = 16u << 20;
  uint64_t tokenizer_file_bytes = 128u << 20;
  uint64_t text_bytes = 256u << 20;  // a prompt, a file to score, a saved conversation
  uint64_t json_depth = 64;
  uint64_t json_file_nodes = 4'000'000;
  uint64_t split_files = 1'024;
  // different ones in the text that a tokenizer is trained on
  uint64_t trained_pieces = 8u << 20;
  uint64_t trained_piece_bytes = 128u << 20;  // together; training takes 20 to 30 times this
  uint64_t stop_strings = 16;
  uint64_t top_logprobs = 20;
};

}  // namespace fathom
