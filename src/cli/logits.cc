#include "cli/logits.h"

#include <algorithm>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/memory.h"
#include "cli/ids.h"
#include "cli/interrupt.h"
#include "cli/models.h"
#include "cli/progress.h"
#include "engine/engine.h"
#include "engine/feeder.h"
#include "formats/safetensors.h"

namespace fathom {
namespace {

Precision parse_precision(const std::string& name) {
  if (name == "native") return Precision::kNative;
  if (name == "f32") return Precision::kF32;
  fail("--precision: found {}, expected native or f32", quoted(name));
}

MlaForm parse_form(const std::string& name) {
  if (name == "absorbed") return MlaForm::kAbsorbed;
  if (name == "expanded") return MlaForm::kExpanded;
  fail("--form: found {}, expected absorbed or expanded", quoted(name));
}

}  // namespace

int run_logits(const LogitsOptions& options) {
  if (options.chunk < 1) fail("--chunk: found {}, expected 1 or more", options.chunk);
  const MlaForm form = parse_form(options.form);
  Context ctx(thread_count(options.threads), parse_isa(options.isa),
              parse_precision(options.precision));
  const std::vector<int32_t> ids = read_ids(options.ids);
  if (ids.empty()) fail("{}: no token ids, expected at least one", options.ids);
  expect_writable(options.out);
  const Model model = Model::load(resolve_model(options.model));
  const auto tokens = static_cast<int64_t>(ids.size());
  const int64_t longest = model.config().max_position_embeddings;
  if (tokens > longest)
    fail("{}: {} token ids, expected at most {} (max_position_embeddings)", options.ids, tokens,
         longest);
  const int64_t vocab_size = model.config().vocab_size;
  for (const int32_t id : ids) {
    if (id >= vocab_size)
      fail("{}: token id {}: expected less than {} (vocab_size)", options.ids, id, vocab_size);
  }
  const uint64_t result_bytes =
      static_cast<uint64_t>(tokens) * static_cast<uint64_t>(vocab_size) * sizeof(float);
  const uint64_t available = available_memory().value_or(0);
  if (available != 0 && result_bytes > available) {
    fail_resource("{}: logits of {} tokens take {}, available are {}", options.ids, tokens,
                  bytes_text(result_bytes), bytes_text(available));
  }

  InterruptScope scope;  // the output appears whole or not at all
  Feeder feeder(model, ctx, tokens,
                parse_cache_dtype(options.cache).value_or(default_cache_dtype(model)), form);
  std::vector<float> logits(static_cast<size_t>(tokens * vocab_size));
  {
    Progress bar(options.output, "logits", Progress::Unit::kTokens, ids.size());
    for (int64_t begin = 0; begin < tokens; begin += options.chunk) {
      const int64_t count = std::min(options.chunk, tokens - begin);
      feeder.feed(std::span(ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(count)),
                  {logits.data() + begin * vocab_size, count, vocab_size, vocab_size});
      bar.at(static_cast<uint64_t>(begin + count));
      check_interrupt();
    }
  }
  const std::vector<int64_t> wide(ids.begin(), ids.end());
  const TensorToWrite result[] = {
      {"logits", DType::kF32, {tokens, vocab_size}, std::as_bytes(std::span(logits))},
      {"input_ids", DType::kI64, {tokens}, std::as_bytes(std::span(wide))}};
  write_safetensors(options.out, result);
  if (!options.output.quiet)
    note("{}: logits of {} tokens, vocabulary {}", options.out, tokens, vocab_size);
  return 0;
}

}  // namespace fathom
