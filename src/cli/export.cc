#include "cli/export.h"

#include <filesystem>

#include "base/error.h"
#include "train/export.h"

namespace fathom {
namespace {

constexpr std::pair<const char*, DType> kTypes[] = {
    {"f32", DType::kF32}, {"f16", DType::kF16}, {"bf16", DType::kBF16}, {"q8_0", DType::kQ8_0}};

DType parse_type(const std::string& name) {
  for (const auto& [known, dtype] : kTypes) {
    if (name == known) return dtype;
  }
  fail("--type: found {}, expected f32, f16, bf16 or q8_0", quoted(name));
}

}  // namespace

int run_export(const ExportCommand& options) {
  const DType type = parse_type(options.type);
  if (!options.out.ends_with(".gguf"))
    fail("{}: expected a name that ends in .gguf", quoted(options.out));
  export_gguf(Checkpoint::open(options.model), options.out, {type, !options.no_mtp});
  if (!options.output.quiet)
    note("{}: {}", options.out, bytes_text(std::filesystem::file_size(options.out)));
  return 0;
}

}  // namespace fathom
