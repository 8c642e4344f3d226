// Byte-level BPE (GPT-2 scheme) as DeepSeek-LLM/V2, V3/R1, Qwen2, Llama-3 and SmolLM2/GPT-2 use it.
//
// encode: cut out added tokens by leftmost-longest match; normalise (none or NFC); split each piece
// by the pre-tokeniser; merge bytes by rank, lowest rank first, leftmost on ties. decode: the
// concatenated bytes of the tokens. encode then decode gives the same bytes for any input, valid
// UTF-8 or not, if the tokenizer has no normaliser, the vocabulary has every byte (one that it
// lacks becomes U+FFFD) and no token found in the text swallows white space around it. Work is O(n
// log n) in the input. A Tokenizer is immutable: any number of threads may use one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "formats/checkpoint.h"

namespace fathom {

class Tokenizer {
 public:
  // From a Hugging Face tokenizer.json (text and its path for messages). Unknown fields, model
  // types, normalisers, pre-tokenisers and post-processors are refused by name; `truncation` and
  // `padding` are ignored (they are batching habits, not the model). bos/eos come from
  // tokenizer_config.json when given (text), else are absent. add_bos is its add_bos_token, or,
  // without that field, whether the post-processor puts the BOS first.
  static Tokenizer from_json(std::string_view tokenizer_json, std::string_view place,
                             std::optional<std::string_view> tokenizer_config_json = std::nullopt);
  // From GGUF metadata (tokenizer.ggml.*). Control tokens are special, user-defined ones are added
  // tokens, unused ones no tokens.
  static Tokenizer from_gguf(const Gguf& gguf);
  // Whichever of the two the checkpoint carries; throws if it carries none. Beside tokenizer.json
  // it reads the ends of generation_config.json and, if tokenizer_config.json has no template,
  // chat_template.jinja.
  static Tokenizer from_checkpoint(const Checkpoint& checkpoint);

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Ids of `text`, any bytes, less than 256 MiB. With parse_special, added tokens written in the
  // text become their ids. Without, only those do that are plain text: not special, and one
  // character or a run of white space (DeepSeek-LLM's byte characters). No other added token can
  // come out then, whatever its file says of it (V3 does not call <｜User｜> special): user content
  // cannot forge one. Ill-formed bytes are symbols to the pre-tokeniser and keep their bytes. No
  // BOS is added: templates and callers do that.
  std::vector<int32_t> encode(std::string_view text, bool parse_special) const;

  // Raw bytes of a token (empty for ids without a token, such as vocabulary padding).
  std::string_view token_bytes(int32_t id) const;
  std::string decode(std::span<const int32_t> ids) const;

  // Id of an added or vocabulary token written literally ("<think>", "\n\n"); absent if there is
  // none.
  std::optional<int32_t> find(std::string_view token) const;
  bool is_special(int32_t id) const;  // as the file flags it; false for any id that has no token
  int32_t vocab_size() const;         // largest id with a token, plus one
  std::optional<int32_t> bos_id() const;
  std::vector<int32_t> eos_ids() const;
  bool add_bos() const;  // plain text (not a rendered chat) starts with BOS
  // What tokenizer.ggml.pre calls this way of splitting; "default" for a vocabulary without merges,
  // where splitting changes nothing. Throws if GGUF has no name for it.
  std::string_view gguf_pre_tokenizer() const;
  // The model's own chat template source, if its files carry one (only hashed and searched, never
  // run).
  const std::string& chat_template_source() const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fathom
