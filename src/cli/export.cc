#include "cli/export.h"

#include <filesystem>

#include "base/error.h"
#include "cli/models.h"
#include "cli/quantize.h"

namespace fathom {
namespace {

// `fathom quantize` has the others.
void expect_type(const std::string& name) {
  for (const char* known : {"f32", "f16", "bf16", "q8_0"}) {
    if (name == known) return;
  }
  fail("--type: found {}, expected f32, f16, bf16 or q8_0", quoted(name));
}

}  // namespace

int run_export(const ExportCommand& options) {
  expect_type(options.type);
  if (!options.out.ends_with(".gguf"))
    fail("{}: expected a name that ends in .gguf", quoted(options.out));
  Checkpoint checkpoint = Checkpoint::open(options.model);
  if (checkpoint.kind() != Checkpoint::Kind::kFolder || checkpoint.gguf() != nullptr)
    fail("{}: expected a Hugging Face folder to export", options.model);
  const GgufSource source(
      std::move(checkpoint),
      {.mtp = !options.no_mtp, .name = std::filesystem::path(options.out).stem().string()});
  Context ctx(thread_count(0));
  const QuantizeMix& mix = find_mix(options.type);
  write_gguf_watched(ctx, source, options.out,
                     {.file_type = mix.file_type, .types = choose_types(source, mix, {})},
                     options.output);
  if (!options.output.quiet)
    note("{}: {}", options.out, bytes_text(std::filesystem::file_size(options.out)));
  return 0;
}

}  // namespace fathom
