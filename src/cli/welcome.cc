#include "cli/welcome.h"

#include "base/error.h"
#include "base/memory.h"
#include "base/thread_pool.h"
#include "cli/machine.h"
#include "cli/models.h"
#include "tensor/context.h"

namespace fathom {
namespace {

// One line about a model, or why it cannot be used; opening reads headers only.
std::string describe_model(const std::filesystem::path& path, uint64_t memory_bytes) {
  try {
    const Checkpoint checkpoint = Checkpoint::open(path);
    const ModelConfig config = load_config(checkpoint);
    const ModelSizes sizes = measure_model(checkpoint, &config);
    const bool fits = sizes.bytes + rebuilt_bytes(checkpoint, config) < memory_bytes;
    return fmt::format("{}, {}{}", true_name(checkpoint, config, std::nullopt, sizes),
                       bytes_text(sizes.bytes), fits ? "" : " (larger than the free memory)");
  } catch (const Error& error) {
    return fmt::format("cannot be used: {}", error.what());
  }
}

// A path as a shell takes it.
std::string shell_word(const std::string& path) {
  if (path.find_first_not_of(
          "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-+=:@%") == path.npos)
    return path;
  std::string word = "'";
  for (const char c : path) word += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return word + "'";
}

}  // namespace

int run_version() {
  out("fathom {}\n", FATHOM_VERSION);
  return 0;
}

int run_welcome(const OutputOptions&) {
  const MemoryState memory = memory_state().value_or(MemoryState{});
  out("fathom {}\n\n", FATHOM_VERSION);
  out("  machine  {}, {} cores, {}\n", cpu_name(), available_cores(), isa_name(detect_isa()));
  out("  memory   {} free of {}{}\n\n", bytes_text(memory.available), bytes_text(memory.total),
      memory.limited ? " (limit of this container)" : "");
  const std::vector<std::filesystem::path> models = find_models();
  if (models.empty()) {
    if (const auto bundled = bundled_model()) {
      out("The bundled model solves Countdown problems, thinking aloud:\n\n  fathom run \"Use 27, "
          "7 and 12 to make 22.\" --check countdown --temp 1\n\n");
    }
    out("No models in ./models. fathom runs GGUF files and Hugging Face folders of the DeepSeek "
        "family (V2, V3, R1 and the R1\n"
        "distillations), Qwen2 and Llama-3. With a model at hand, type\n\n  fathom run "
        "path/to/model.gguf\n\n");
  } else {
    out("Models in ./models:\n\n");
    for (const auto& model : models)
      out("  {}\n      {}\n", model.string(), describe_model(model, memory.available));
    out("\nNext, type\n\n  fathom run {}\n\n", shell_word(models.front().string()));
  }
  out("`fathom --help` lists the commands, `fathom doctor` measures this machine.\n");
  return 0;
}

}  // namespace fathom
