#include "cli/doctor.h"

#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/limits.h"
#include "base/memory.h"
#include "cli/machine.h"
#include "cli/models.h"
#include "kernels/roofline.h"
#include "tensor/context.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

void print_limits(bool json) {
  const Limits l;
  const std::pair<std::string_view, uint64_t> table[] = {
      {"safetensors_header_bytes", l.safetensors_header_bytes},
      {"gguf_string_bytes", l.gguf_string_bytes},
      {"gguf_token_bytes", l.gguf_token_bytes},
      {"gguf_array_elements", l.gguf_array_elements},
      {"gguf_keys", l.gguf_keys},
      {"gguf_dims", l.gguf_dims},
      {"gguf_alignment_min", l.gguf_alignment_min},
      {"gguf_alignment_max", l.gguf_alignment_max},
      {"tensors", l.tensors},
      {"tensor_rank", l.tensor_rank},
      {"tensor_name_bytes", l.tensor_name_bytes},
      {"width", l.width},
      {"heads", l.heads},
      {"shared_experts", l.shared_experts},
      {"positions", l.positions},
      {"layers", l.layers},
      {"experts", l.experts},
      {"vocabulary", l.vocabulary},
      {"config_file_bytes", l.config_file_bytes},
      {"tokenizer_file_bytes", l.tokenizer_file_bytes},
      {"text_bytes", l.text_bytes},
      {"json_depth", l.json_depth},
      {"json_file_nodes", l.json_file_nodes},
      {"split_files", l.split_files},
      {"trained_pieces", l.trained_pieces},
      {"trained_piece_bytes", l.trained_piece_bytes},
      {"stop_strings", l.stop_strings},
      {"top_logprobs", l.top_logprobs},
  };
  static_assert(sizeof(Limits) == std::size(table) * sizeof(uint64_t),
                "a limit is missing from this table");
  Json object;
  for (const auto& [name, value] : table) {
    if (json)
      object[std::string(name)] = value;
    else
      out("{:<26} {}\n", name, value);
  }
  if (json) print_json(object);
}

uint64_t disk_free() {
  std::error_code error;
  const auto space = std::filesystem::space(".", error);
  return error ? 0 : space.available;
}

}  // namespace

int run_doctor(const DoctorOptions& options) {
  if (options.print_limits) {
    print_limits(options.json);
    return 0;
  }
  Context ctx(thread_count(options.threads));
  const MemoryState memory = memory_state().value_or(MemoryState{});
  const HugePages huge = huge_pages();
  const std::vector<std::string> flags = cpu_vector_flags();
  if (!options.json) {
    out("fathom {}\n\n", FATHOM_VERSION);
    out("  CPU          {}\n", cpu_name());
    out("  cores        {} usable, {} threads used\n", available_cores(), ctx.pool().threads());
    std::string instructions;
    for (const std::string& flag : flags) instructions += " " + flag;
    out("  instructions{}\n", instructions);
    out("  kernels      {}\n", isa_name(ctx.isa()));
    out("  memory       {} available of {}{}\n", bytes_text(memory.available),
        bytes_text(memory.total), memory.limited ? " (limit of this container)" : "");
    out("  huge pages   transparent: {}, reserved: {}\n",
        huge.transparent.empty() ? "unknown" : huge.transparent, huge.reserved);
    out("  disk free    {} (here)\n\n", bytes_text(disk_free()));
    if (!options.output.quiet) note("measuring for {:.0f} s ...", options.seconds);
  }
  const Roofs roofs = measure_roofs(ctx, options.seconds);
  if (options.json) {
    print_json({{"version", FATHOM_VERSION},
                {"cpu", cpu_name()},
                {"cores", available_cores()},
                {"threads", ctx.pool().threads()},
                {"instructions", flags},
                {"kernels", isa_name(ctx.isa())},
                {"memory_bytes", memory.total},
                {"memory_available_bytes", memory.available},
                {"memory_limited", memory.limited},
                {"transparent_huge_pages", huge.transparent},
                {"huge_pages_reserved", huge.reserved},
                {"disk_free_bytes", disk_free()},
                {"f32_flops", roofs.f32_flops},
                {"bf16_flops", roofs.bf16_flops},
                {"int8_ops", roofs.int8_ops},
                {"read_bytes_per_second", roofs.read_bytes}});
    return 0;
  }
  out("  f32          {:.0f} GFLOP/s\n", roofs.f32_flops / 1e9);
  out("  bf16         {:.0f} GFLOP/s\n", roofs.bf16_flops / 1e9);
  out("  int8         {:.0f} GOP/s\n", roofs.int8_ops / 1e9);
  out("  memory read  {:.1f} GB/s\n\n", roofs.read_bytes / 1e9);
  out("A model that reads 1 GiB of weights per token can generate at most {:.1f} tokens/s here.\n",
      roofs.read_bytes / (1 << 30));
  return 0;
}

}  // namespace fathom
