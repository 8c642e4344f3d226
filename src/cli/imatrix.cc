#include "cli/imatrix.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "cli/ids.h"
#include "cli/interrupt.h"
#include "cli/models.h"
#include "cli/progress.h"
#include "engine/feeder.h"
#include "train/imatrix.h"

namespace fathom {
namespace {

constexpr int64_t kChunk = 128;  // rows whose logits exist at once

void run_window(const OpenedModel& opened, Context& ctx, const std::vector<int32_t>& tokens,
                std::vector<float>& logits) {
  const int64_t vocab = opened.model.config().vocab_size, rows = std::ssize(tokens);
  Feeder feeder(opened.model, ctx, rows, DType::kF32, MlaForm::kAbsorbed);
  for (int64_t begin = 0; begin < rows; begin += kChunk) {
    const int64_t count = std::min(kChunk, rows - begin);
    feeder.feed(std::span(tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(count)),
                {logits.data(), count, vocab, vocab});
    check_interrupt();
  }
}

}  // namespace

int run_imatrix(const ImatrixOptions& options) {
  if (!options.out.ends_with(".gguf"))
    fail("{}: expected a name that ends in .gguf", quoted(options.out));
  expect_writable(options.out);
  const std::string text = read_text_file(options.text);
  OpenOptions open;
  open.context_tokens = options.context_tokens;
  open.stream = false;  // the recorder knows weights by their place
  const OpenedModel opened = open_model(resolve_model(options.model), open, options.output);
  const int64_t longest = opened.model.config().max_position_embeddings;
  const int64_t window =
      options.context_tokens > 0 ? options.context_tokens : std::min<int64_t>(longest, 512);
  if (window < 2 || window > longest)
    fail("--ctx: found {}, expected 2 to {} (max_position_embeddings)", window, longest);
  const std::vector<int32_t> ids = opened.tokenizer.encode(text, false);
  const std::optional<int32_t> bos =
      opened.tokenizer.add_bos() ? opened.tokenizer.bos_id() : std::nullopt;
  if (ids.empty()) fail("{}: no tokens, expected a text", options.text);
  const int64_t step = window - (bos ? 1 : 0);

  Context ctx(thread_count(options.threads));
  ImportanceRecorder recorder(ctx, opened.model);
  std::vector<float> logits(static_cast<size_t>(kChunk * opened.model.config().vocab_size));
  int64_t windows = 0;
  {
    InterruptScope scope;
    Progress bar(options.output, "calibrating", Progress::Unit::kTokens, ids.size());
    for (int64_t begin = 0; begin < std::ssize(ids); begin += step, ++windows) {
      const int64_t end = std::min(begin + step, std::ssize(ids));
      std::vector<int32_t> tokens;
      if (bos) tokens.push_back(*bos);
      tokens.insert(tokens.end(), ids.begin() + begin, ids.begin() + end);
      run_window(opened, ctx, tokens, logits);
      bar.at(static_cast<uint64_t>(end));
    }
  }
  recorder.write(options.out, std::filesystem::path(options.text).filename().string(), windows,
                 window);
  if (!options.output.quiet) {
    note("{}: {} matrices, {} tokens in {} windows", options.out, recorder.tensors(), ids.size(),
         windows);
    if (const int64_t unseen = recorder.unseen_parts(); unseen > 0)
      note("{} experts saw no token: a longer text reaches more of them", unseen);
  }
  return 0;
}

}  // namespace fathom
