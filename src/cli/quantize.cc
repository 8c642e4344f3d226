#include "cli/quantize.h"

#include <cmath>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "base/clock.h"
#include "base/error.h"
#include "cli/interrupt.h"
#include "cli/models.h"
#include "cli/progress.h"
#include "train/imatrix.h"
#include "train/quantize.h"

namespace fathom {
namespace {

// What tensors of one kind and type have in common; or all together.
struct Line {
  uint64_t tensors = 0, values = 0, bytes = 0;
  double error = 0, norm = 0;
  std::set<DType> wanted;  // other types that these rows were too short for

  void add(const StoredTensor& t) {
    ++tensors;
    values += t.values;
    bytes += t.bytes;
    error += t.error;
    norm += t.norm;
    if (t.type.wanted != t.type.type) wanted.insert(t.type.wanted);
  }
  double bits() const { return 8.0 * static_cast<double>(bytes) / static_cast<double>(values); }
  double relative_error() const { return norm > 0 ? std::sqrt(error / norm) : 0; }
  std::string wanted_text() const {
    std::string text;
    for (const DType type : wanted)
      text += (text.empty() ? "" : ", ") + std::string(dtype_name(type));
    return text;
  }
};

using Lines = std::map<std::pair<TensorKind, DType>, Line>;

Lines lines_of(const std::vector<StoredTensor>& tensors, int64_t main_layers) {
  Lines lines;
  for (const StoredTensor& t : tensors)
    lines[{tensor_kind(t.name, main_layers), t.type.type}].add(t);
  return lines;
}

void print_table(const Lines& lines, const Line& all) {
  out("{:<24} {:<7} {:>8} {:>8} {:>11} {:>7} {:>10}\n", "kind", "type", "tensors", "weights",
      "size", "bits", "error");
  for (const auto& [key, line] : lines) {
    out("{:<24} {:<7} {:>8} {:>8} {:>11} {:>7.3f} {:>10.6f}{}\n", tensor_kind_name(key.first),
        dtype_name(key.second), line.tensors, count_text(static_cast<double>(line.values)),
        bytes_text(line.bytes), line.bits(), line.relative_error(),
        line.wanted.empty()
            ? ""
            : fmt::format("   for {}: rows are no multiple of its block", line.wanted_text()));
  }
  out("{:<24} {:<7} {:>8} {:>8} {:>11} {:>7.3f} {:>10.6f}\n", "all", "", all.tensors,
      count_text(static_cast<double>(all.values)), bytes_text(all.bytes), all.bits(),
      all.relative_error());
}

nlohmann::ordered_json json_of(const Line& line) {
  nlohmann::ordered_json j = {{"tensors", line.tensors},
                              {"weights", line.values},
                              {"bytes", line.bytes},
                              {"bits_per_weight", line.bits()},
                              {"relative_rms_error", line.relative_error()}};
  if (!line.wanted.empty()) j["instead_of"] = line.wanted_text();
  return j;
}

void print_lines(const Lines& lines, const Line& all) {
  const auto print = [](std::string_view kind, std::string_view type, const Line& line) {
    nlohmann::ordered_json j = {{"kind", kind}};
    if (!type.empty()) j["type"] = type;
    j.update(json_of(line));
    print_json(j);
  };
  for (const auto& [key, line] : lines)
    print(tensor_kind_name(key.first), dtype_name(key.second), line);
  print("all", "", all);
}

void expect_output(const QuantizeCommand& options) {
  if (!options.out.ends_with(".gguf"))
    fail("{}: expected a name that ends in .gguf", quoted(options.out));
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(options.out).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder, error))
    fail("{}: expected a folder to write into", quoted(folder.string()));
  if (!options.overwrite && std::filesystem::exists(options.out, error))
    fail("{}: exists already; --overwrite replaces it", quoted(options.out));
}

// Block types of the source that lost bits before, for a warning.
std::string lossy_types(const GgufSource& source) {
  std::set<std::string_view> names;
  for (const GgufTensor& t : source.tensors()) {
    if (dtype_info(t.dtype()).computable && dtype_info(t.dtype()).block_elements > 1)
      names.insert(dtype_name(t.dtype()));
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

void note_unweighted(const std::vector<StoredTensor>& tensors) {
  int64_t weighted = 0, matrices = 0;
  for (const StoredTensor& t : tensors) {
    if (t.type.type == DType::kF32) continue;
    ++matrices;
    weighted += t.weighted ? 1 : 0;
  }
  note("{} of {} matrices have an importance, the rest count all columns alike", weighted,
       matrices);
}

}  // namespace

std::vector<StoredTensor> write_gguf_watched(Context& ctx, const GgufSource& source,
                                             const std::string& out, QuantizeOptions quantize,
                                             const OutputOptions& output) {
  InterruptScope scope;
  Progress bar(output, "writing", Progress::Unit::kBytes, quantized_bytes(source, quantize.types));
  quantize.progress = [&](uint64_t bytes) {
    bar.at(bytes);
    check_interrupt();
  };
  return write_gguf(ctx, source, out, quantize);
}

int run_quantize(const QuantizeCommand& options) {
  const QuantizeMix& mix = find_mix(options.type);
  std::vector<TypeOverride> overrides;
  for (const std::string& text : options.overrides) overrides.push_back(parse_override(text));
  expect_output(options);
  const GgufSource source(
      Checkpoint::open(options.in),
      {.mtp = !options.no_mtp, .name = std::filesystem::path(options.out).stem().string()});
  if (const std::string lossy = lossy_types(source); !lossy.empty() && !options.output.quiet)
    note("{}: holds {}: what these lost is lost; errors below are against them", source.path(),
         lossy);
  QuantizeOptions quantize;
  quantize.file_type = mix.file_type;
  quantize.types = choose_types(source, mix, overrides);
  Importance importance;
  if (!options.imatrix.empty()) {
    importance = read_imatrix(options.imatrix);
    quantize.importance = &importance;
  }
  Context ctx(thread_count(options.threads));
  const double begin = seconds_now();
  const std::vector<StoredTensor> tensors =
      write_gguf_watched(ctx, source, options.out, quantize, options.output);
  const Lines lines = lines_of(tensors, source.main_layers());
  Line all;
  for (const StoredTensor& t : tensors) all.add(t);
  options.json ? print_lines(lines, all) : print_table(lines, all);
  if (quantize.importance != nullptr && !options.output.quiet) note_unweighted(tensors);
  if (!options.output.quiet)
    note("{}: {} in {}", options.out, bytes_text(std::filesystem::file_size(options.out)),
         duration_text(seconds_now() - begin));
  return 0;
}

}  // namespace fathom
