// Bounds, all relative to the largest reference value of the comparison (docs/numerics.md derives
// them):
//   f32 activations (Precision::kF32), any weights: 2e-5 everywhere
//   BF16 and FP8 weights with bf16 activations, as `run` computes: rounding x to bf16 is, for one
//   output, what a relative change of each weight by up to 2^-9 is. So the error is compared with
//   that of the exact model with these weights changed at random by so much: the medians over
//   positions (of a row's largest error) may differ by a factor of two. A median, because a token
//   whose expert choice flips at a near tie is legitimately elsewhere; the exact comparison above
//   knows no such excuse.
#include "cli/selftest.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <list>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "base/check.h"
#include "base/error.h"
#include "base/limits.h"
#include "base/random.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/selftest_train.h"
#include "engine/feeder.h"
#include "kernels/gemm.h"
#include "kernels/quantize.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

constexpr double kF32Bound = 2e-5;

std::vector<float> read_f32(const Safetensors& file, const std::string& name, int64_t rows,
                            int64_t cols) {
  const TensorInfo* tensor = file.find(name);
  if (tensor == nullptr) fail("{}: tensor {}: missing", file.file().path(), quoted(name));
  if (tensor->dtype != DType::kF32 || tensor->bytes != static_cast<uint64_t>(rows * cols) * 4) {
    fail("{}: tensor {}: expected F32 [{}, {}]", file.file().path(), quoted(name), rows, cols);
  }
  std::vector<float> values(static_cast<size_t>(rows * cols));
  __builtin_memcpy(values.data(), tensor->data, tensor->bytes);
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]))
      fail("{}: tensor {}: element {} is {}, expected finite reference values", file.file().path(),
           quoted(name), i, values[i]);
  }
  return values;
}

// Ids [count] in [0, limit).
std::vector<int32_t> read_ids(const Safetensors& file, const std::string& name, int64_t limit) {
  const TensorInfo* tensor = file.find(name);
  if (tensor == nullptr) fail("{}: tensor {}: missing", file.file().path(), quoted(name));
  if (tensor->dtype != DType::kI64)
    fail("{}: tensor {}: type {}, expected I64", file.file().path(), quoted(name),
         dtype_name(tensor->dtype));
  std::vector<int32_t> ids;
  for (uint64_t i = 0; i < tensor->bytes / 8; ++i) {
    int64_t id = 0;
    __builtin_memcpy(&id, tensor->data + i * 8, 8);
    if (id < 0 || id >= limit)
      fail("{}: tensor {}: element {}: found {}, expected an id below {}", file.file().path(),
           quoted(name), i, id, limit);
    ids.push_back(static_cast<int32_t>(id));
  }
  if (ids.empty()) fail("{}: tensor {}: empty", file.file().path(), quoted(name));
  return ids;
}

// Largest difference over the largest reference value (finite, by read_f32); NaN or Inf in ours is
// an infinite error.
SelftestResult compare(std::string subject, std::span<const float> found,
                       std::span<const float> expected, int64_t cols, double bound) {
  FATHOM_CHECK(found.size() == expected.size(), found.size(), expected.size());
  SelftestResult result{std::move(subject), 0, bound, 0, 0, "", false};
  double scale = 0;
  for (const float e : expected) scale = std::max(scale, std::abs(static_cast<double>(e)));
  if (scale == 0) scale = 1;
  for (size_t i = 0; i < expected.size(); ++i) {
    double error =
        std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i])) / scale;
    if (!std::isfinite(found[i])) error = INFINITY;
    if (error > result.error || i == 0) {
      result.error = error;
      result.row = static_cast<int64_t>(i) / cols;
      result.column = static_cast<int64_t>(i) % cols;
      result.detail = fmt::format("found {}, expected {}", found[i], expected[i]);
    }
  }
  result.passed = result.error <= bound;
  return result;
}

// The largest logit of each row is the reference's, wherever the reference's own margin exceeds
// twice the error allowed.
SelftestResult compare_argmax(std::string subject, std::span<const float> found,
                              std::span<const float> expected, int64_t cols, double bound) {
  SelftestResult result{std::move(subject), 0, 0, 0, 0, "", true};
  double scale = 0;
  for (const float e : expected) scale = std::max(scale, std::abs(static_cast<double>(e)));
  const auto rows = static_cast<int64_t>(expected.size()) / cols;
  int64_t wrong = 0, judged = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const auto row = expected.subspan(static_cast<size_t>(r * cols), static_cast<size_t>(cols));
    const auto best = std::max_element(row.begin(), row.end());
    float second = -INFINITY;
    for (auto it = row.begin(); it != row.end(); ++it) {
      if (it != best) second = std::max(second, *it);
    }
    if (static_cast<double>(*best - second) <= 2 * bound * scale) continue;
    ++judged;
    const auto ours = found.subspan(static_cast<size_t>(r * cols), static_cast<size_t>(cols));
    const auto chosen = std::max_element(ours.begin(), ours.end()) - ours.begin();
    if (chosen != best - row.begin()) {
      if (wrong++ == 0) {
        result.row = r;
        result.column = chosen;
        result.detail = fmt::format("found token {}, expected {}", chosen, best - row.begin());
      }
    }
  }
  result.error = static_cast<double>(wrong);
  result.passed = wrong == 0;
  result.subject += fmt::format(" ({} of {} rows decided)", judged, rows);
  return result;
}

SelftestResult compare_experts(std::string subject, const std::vector<int32_t>& found,
                               const std::vector<int32_t>& expected, int64_t k) {
  FATHOM_CHECK(found.size() == expected.size(), found.size(), expected.size());
  SelftestResult result{std::move(subject), 0, 0, 0, 0, "", false};
  for (size_t i = 0; i < expected.size(); ++i) {
    if (found[i] != expected[i] && result.error++ == 0) {
      result.row = static_cast<int64_t>(i) / k;
      result.column = static_cast<int64_t>(i) % k;
      result.detail = fmt::format("found expert {}, expected {}", found[i], expected[i]);
    }
  }
  result.passed = result.error == 0;
  return result;
}

// A way to cut the prompt.
struct Feeding {
  const char* name;
  std::vector<int64_t> chunks;  // repeated until the prompt is used up
};

const std::vector<Feeding>& feedings() {
  static const std::vector<Feeding> kFeedings = {
      {"whole", {INT64_MAX}}, {"token by token", {1}}, {"ragged chunks", {7, 1, 30, 2, 13}}};
  return kFeedings;
}

struct Outputs {
  std::vector<float> logits, hidden, mtp_logits;
  std::vector<int32_t> experts;
};

Outputs run(const Model& model, Context& ctx, std::span<const int32_t> ids, DType cache_dtype,
            MlaForm form, const Feeding& feeding) {
  const auto tokens = static_cast<int64_t>(ids.size());
  const ModelConfig& c = model.config();
  Feeder feeder(model, ctx, tokens, cache_dtype, form);
  Outputs out;
  out.logits.resize(static_cast<size_t>(tokens * c.vocab_size));
  std::vector<float> final_hidden(static_cast<size_t>(tokens * c.hidden_size));
  const Rows logits{out.logits.data(), tokens, c.vocab_size, c.vocab_size};
  const Rows hidden{final_hidden.data(), tokens, c.hidden_size, c.hidden_size};
  const bool whole = feeding.chunks.front() >= tokens;
  ForwardTrace trace;
  size_t turn = 0;
  for (int64_t first = 0; first < tokens;) {
    const int64_t count = std::min(feeding.chunks[turn++ % feeding.chunks.size()], tokens - first);
    Rows chunk_hidden = hidden.slice(first, count);
    check_interrupt();
    feeder.feed(ids.subspan(static_cast<size_t>(first), static_cast<size_t>(count)),
                logits.slice(first, count), &chunk_hidden, whole ? &trace : nullptr);
    first += count;
  }
  out.hidden = std::move(trace.hidden);
  out.experts = std::move(trace.experts);
  if (model.has_mtp() && tokens > 1) {
    out.mtp_logits.resize(static_cast<size_t>((tokens - 1) * c.vocab_size));
    const Rows mtp{out.mtp_logits.data(), tokens - 1, c.vocab_size, c.vocab_size};
    turn = 0;
    for (int64_t first = 0; first < tokens - 1;) {
      const int64_t count =
          std::min(feeding.chunks[turn++ % feeding.chunks.size()], tokens - 1 - first);
      feeder.feed_mtp(ids.subspan(static_cast<size_t>(first + 1), static_cast<size_t>(count)),
                      hidden.slice(first, count), mtp.slice(first, count));
      first += count;
    }
  }
  return out;
}

bool small_folder(const Checkpoint& checkpoint) {
  constexpr uint64_t kMostBytes = 64 << 20;
  uint64_t bytes = 0;
  for (const TensorInfo* tensor : checkpoint.tensors()) bytes += tensor->bytes;
  return checkpoint.kind() == Checkpoint::Kind::kFolder && bytes <= kMostBytes;
}

// A matrix before which x is rounded to bf16.
bool rounds_x(const TensorInfo& tensor) {
  return rounds_x_to_bf16(tensor.dtype) && tensor.shape.size() == 2;
}

bool rounds_x(const Model& model) {
  for (const TensorInfo* tensor : model.checkpoint().tensors()) {
    if (rounds_x(*tensor) && tensor->name.find("embed") == std::string::npos) return true;
  }
  return false;
}

// Reference data for one set of weights; empty vectors where nothing was recorded.
struct Reference {
  std::vector<int32_t> ids;
  std::vector<float> logits, hidden, mtp_logits;
  std::vector<int32_t> experts;
};

// The middle one of the rows' largest errors, and its row.
std::pair<double, int64_t> median_row_error(std::span<const float> found,
                                            std::span<const float> expected, int64_t cols) {
  double scale = 0;
  for (const float e : expected) scale = std::max(scale, std::abs(static_cast<double>(e)));
  std::vector<std::pair<double, int64_t>> errors;
  for (size_t first = 0; first < expected.size(); first += static_cast<size_t>(cols)) {
    double worst = 0;
    for (size_t i = first; i < first + static_cast<size_t>(cols); ++i) {
      const double error =
          std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i])) / scale;
      worst = std::max(worst, std::isfinite(error) ? error : INFINITY);
    }
    errors.emplace_back(worst, static_cast<int64_t>(first) / cols);
  }
  std::sort(errors.begin(), errors.end());
  return errors[errors.size() / 2];
}

// A folder that deletes itself.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (fs::temp_directory_path() / "fathom-selftest-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr)
      fail_resource("{}: cannot create a temporary folder", pattern);
    path_ = pattern;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const fs::path& path() const { return path_; }

 private:
  fs::path path_;
};

// Writes the checkpoint again with some tensors changed: `change` returns the new bytes and type,
// no bytes to leave a tensor out, or nothing to keep it.
using Change =
    std::function<std::optional<std::pair<DType, std::vector<std::byte>>>(const TensorInfo&)>;
void write_changed(const Checkpoint& checkpoint, const fs::path& folder, const Change& change) {
  std::list<std::vector<std::byte>> memory;
  std::vector<TensorToWrite> tensors;
  for (const TensorInfo* tensor : checkpoint.tensors()) {
    if (auto changed = change(*tensor)) {
      if (changed->second.empty()) continue;
      memory.push_back(std::move(changed->second));
      tensors.push_back({tensor->name, changed->first, tensor->shape, memory.back()});
    } else {
      tensors.push_back(
          {tensor->name, tensor->dtype, tensor->shape, {tensor->data, tensor->bytes}});
    }
  }
  write_safetensors(folder / "model.safetensors", tensors);
  write_file_atomically(folder / "config.json",
                        *checkpoint.side_file("config.json", Limits{}.config_file_bytes));
}

// Every weight but the router bias rounded to bf16.
void write_bf16(const Checkpoint& checkpoint, const fs::path& folder) {
  write_changed(
      checkpoint, folder,
      [&](const TensorInfo& tensor) -> std::optional<std::pair<DType, std::vector<std::byte>>> {
        if (tensor.dtype != DType::kF32)
          fail("{}: tensor {}: expected F32", checkpoint.file_name(tensor), quoted(tensor.name));
        if (tensor.name.ends_with("e_score_correction_bias")) return std::nullopt;
        std::vector<std::byte> bytes(tensor.bytes / 2);
        for (uint64_t i = 0; i < tensor.bytes / 4; ++i) {
          float value = 0;
          __builtin_memcpy(&value, tensor.data + i * 4, 4);
          const bf16 rounded = f32_to_bf16(value);
          __builtin_memcpy(bytes.data() + i * 2, &rounded, 2);
        }
        return std::pair(DType::kBF16, std::move(bytes));
      });
}

// Every matrix in BF16 or FP8 as F32, each weight changed by a uniform relative amount within 2^-9.
void write_perturbed(const Checkpoint& checkpoint, const fs::path& folder) {
  constexpr std::string_view kScales = "_scale_inv";
  uint64_t index = 0;
  write_changed(
      checkpoint, folder,
      [&](const TensorInfo& tensor) -> std::optional<std::pair<DType, std::vector<std::byte>>> {
        if (tensor.name.ends_with(kScales)) return std::pair(DType::kF32, std::vector<std::byte>{});
        if (!rounds_x(tensor)) return std::nullopt;
        WeightView w{tensor.dtype, tensor.shape[0], tensor.shape[1], tensor.data, nullptr, 0};
        std::vector<float> scales;
        if (const TensorInfo* stored = checkpoint.find(tensor.name + std::string(kScales))) {
          scales.resize(stored->bytes / 4);
          __builtin_memcpy(scales.data(), stored->data, stored->bytes);
          w.block_scales = scales.data();
          w.scale_cols = stored->shape[1];
        }
        const RandomKey key{0, RandomPurpose::kTest, index++};
        std::vector<float> row(static_cast<size_t>(w.cols));
        std::vector<std::byte> bytes(static_cast<size_t>(w.rows) * row.size() * sizeof(float));
        for (int64_t r = 0; r < w.rows; ++r) {
          dequantize_weight(detect_isa(), w, r, 0, w.cols, row.data());
          const auto first = static_cast<uint64_t>(r * w.cols);
          for (size_t c = 0; c < row.size(); ++c)
            row[c] = static_cast<float>(row[c] *
                                        (1 + 0x1p-9 * (2 * random_uniform(key, first + c) - 1)));
          __builtin_memcpy(bytes.data() + first * sizeof(float), row.data(),
                           row.size() * sizeof(float));
        }
        return std::pair(DType::kF32, std::move(bytes));
      });
}

void check_model(const std::string& name, const Model& model, int threads,
                 const Reference& reference, std::vector<SelftestResult>& results) {
  Context ctx(threads, detect_isa(), Precision::kF32);
  const ModelConfig& c = model.config();
  std::vector<MlaForm> forms = {MlaForm::kExpanded};
  if (c.is_mla()) forms.push_back(MlaForm::kAbsorbed);
  for (const MlaForm form : forms) {
    const std::string form_name = !c.is_mla()                  ? ""
                                  : form == MlaForm::kExpanded ? ", expanded"
                                                               : ", absorbed";
    Outputs first;
    for (const Feeding& feeding : feedings()) {
      const Outputs out = run(model, ctx, reference.ids, DType::kF32, form, feeding);
      const std::string place = form_name + ", " + feeding.name;
      results.push_back(compare(name + ": logits" + place, out.logits, reference.logits,
                                c.vocab_size, kF32Bound));
      results.push_back(compare_argmax(name + ": argmax" + place, out.logits, reference.logits,
                                       c.vocab_size, kF32Bound));
      if (!reference.mtp_logits.empty()) {
        results.push_back(compare(name + ": MTP logits" + place, out.mtp_logits,
                                  reference.mtp_logits, c.vocab_size, kF32Bound));
      }
      if (&feeding != &feedings().front()) {
        const bool equal = out.logits == first.logits && out.mtp_logits == first.mtp_logits;
        results.push_back({name + ": same bits as in one piece" + place, equal ? 0.0 : 1.0, 0, 0, 0,
                           equal ? "" : "some bits differ", equal});
        continue;
      }
      if (!reference.hidden.empty()) {
        results.push_back(compare(name + ": hidden states" + place, out.hidden, reference.hidden,
                                  c.hidden_size, kF32Bound));
      }
      if (!reference.experts.empty()) {
        results.push_back(compare_experts(name + ": experts" + place, out.experts,
                                          reference.experts, c.router.num_experts_per_tok));
      }
      first = out;
    }
    // The perturbed copy is written beside nothing and held in memory once: for small recorded
    // models, not for a checkpoint of gigabytes.
    if (!rounds_x(model) || !small_folder(model.checkpoint())) continue;
    Context native(threads);
    const Outputs rounded =
        run(model, native, reference.ids, DType::kF32, form, feedings().front());
    const TemporaryFolder temporary;
    write_perturbed(model.checkpoint(), temporary.path());
    const Outputs perturbed = run(Model::load(temporary.path()), ctx, reference.ids, DType::kF32,
                                  form, feedings().front());
    const auto [error, row] = median_row_error(rounded.logits, reference.logits, c.vocab_size);
    const double bound =
        2 * median_row_error(perturbed.logits, reference.logits, c.vocab_size).first;
    results.push_back({name + ": logits" + form_name + ", bf16 activations, median position", error,
                       bound, row, 0, "", error <= bound});
  }
}

std::vector<SelftestResult> selftest_model_folder(const fs::path& folder, int threads) {
  const Model model = Model::load(folder);
  const ModelConfig& c = model.config();
  const Safetensors golden = Safetensors::open(folder / "golden.safetensors");
  Reference reference;
  reference.ids = read_ids(golden, "input_ids", c.vocab_size);
  const auto tokens = static_cast<int64_t>(reference.ids.size());
  reference.logits = read_f32(golden, "logits", tokens, c.vocab_size);
  if (golden.find("hidden") != nullptr) {
    reference.hidden =
        read_f32(golden, "hidden", (c.num_hidden_layers + 1) * tokens, c.hidden_size);
  }
  if (golden.find("mtp_logits") != nullptr) {
    if (!model.has_mtp())
      fail("{}: tensor 'mtp_logits': recorded, but the model has no MTP layer to check",
           golden.file().path());
    reference.mtp_logits = read_f32(golden, "mtp_logits", tokens - 1, c.vocab_size);
  }
  if (golden.find("experts") != nullptr) {
    reference.experts = read_ids(golden, "experts", c.n_routed_experts);
    int64_t moe_layers = 0;
    for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer)
      moe_layers += c.is_moe_layer(layer) ? 1 : 0;
    const int64_t expected = moe_layers * tokens * c.router.num_experts_per_tok;
    if (std::ssize(reference.experts) != expected) {
      fail(
          "{}: tensor 'experts': {} elements, expected {} (MoE layers, tokens, "
          "num_experts_per_tok)",
          golden.file().path(), reference.experts.size(), expected);
    }
  }
  const std::string name = folder.filename().string();
  std::vector<SelftestResult> results;
  check_model(name, model, threads, reference, results);
  if (golden.find("logits_bf16_weights") != nullptr) {
    Reference rounded{
        reference.ids, read_f32(golden, "logits_bf16_weights", tokens, c.vocab_size), {}, {}, {}};
    const TemporaryFolder temporary;
    write_bf16(model.checkpoint(), temporary.path());
    check_model(name + " (BF16)", Model::load(temporary.path()), threads, rounded, results);
  }
  return results;
}

std::vector<SelftestResult> selftest_gguf_folder(const fs::path& folder, int threads) {
  const Safetensors golden = Safetensors::open(folder / "golden.safetensors");
  std::set<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == ".gguf") files.insert(entry.path());
  }
  std::vector<SelftestResult> results;
  for (const fs::path& file : files) {
    const std::string name = file.stem().string();
    if (golden.find(name + ".logits") == nullptr) {
      note("{}: no {}.logits recorded, not compared", file.string(), name);
      continue;
    }
    // input_ids are shared by all files whose name begins with the same prefix.
    const TensorInfo* ids = nullptr;
    for (const TensorInfo& tensor : golden.tensors()) {
      constexpr std::string_view kIds = ".input_ids";
      if (!tensor.name.ends_with(kIds)) continue;
      if (name.starts_with(tensor.name.substr(0, tensor.name.size() - kIds.size()))) ids = &tensor;
    }
    if (ids == nullptr) fail("{}: no input_ids for {}", golden.file().path(), quoted(name));
    const Model model = Model::load(file);
    Reference reference;
    reference.ids = read_ids(golden, ids->name, model.config().vocab_size);
    const auto tokens = std::ssize(reference.ids);
    reference.logits = read_f32(golden, name + ".logits", tokens, model.config().vocab_size);
    if (model.has_mtp() && golden.find(name + ".mtp_logits") != nullptr) {
      reference.mtp_logits =
          read_f32(golden, name + ".mtp_logits", tokens - 1, model.config().vocab_size);
    }
    check_model(name, model, threads, reference, results);
  }
  if (results.empty()) fail("{}: no GGUF file with recorded logits", folder.string());
  return results;
}

}  // namespace

std::vector<SelftestResult> selftest_folder(const std::string& folder, int threads) {
  fs::path path = fs::path(folder).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();  // a slash at the end
  std::error_code unreadable;
  if (!fs::exists(path / "golden.safetensors", unreadable))
    fail("{}: golden.safetensors is missing (expected a folder of recorded vectors)", folder);
  return fs::exists(path / "config.json", unreadable) ? selftest_model_folder(path, threads)
                                                      : selftest_gguf_folder(path, threads);
}

int run_selftest(const SelftestOptions& options) {
  InterruptScope scope;  // temporary copies are removed on the way out
  const int threads = options.threads > 0 ? options.threads : available_cores();
  int64_t failed = 0, total = 0;
  for (const std::string& folder : options.folders) {
    for (const SelftestResult& r :
         options.train ? selftest_training(folder, threads) : selftest_folder(folder, threads)) {
      ++total;
      failed += r.passed ? 0 : 1;
      if (options.json) {
        const nlohmann::ordered_json line = {
            {"subject", r.subject},
            {"passed", r.passed},
            {"error", std::isfinite(r.error) ? nlohmann::ordered_json(r.error)
                                             : nlohmann::ordered_json("inf")},
            {"bound", r.bound},
            {"row", r.row},
            {"column", r.column},
            {"detail", r.detail}};
        print_json(line);
        continue;
      }
      const char* mark = r.passed ? (options.color ? "\x1b[32mok  \x1b[0m" : "ok  ")
                                  : (options.color ? "\x1b[31mFAIL\x1b[0m" : "FAIL");
      out("{} {}: {:.2g} (bound {:.2g})", mark, r.subject, r.error, r.bound);
      if (!r.passed && options.train) out(", {}", r.detail);
      if (!r.passed && !options.train) {
        out(", worst at position {}, element {}: {}", r.row, r.column, r.detail);
      }
      out("\n");
    }
  }
  if (!options.json) out("{} comparisons, {} failed\n", total, failed);
  return failed == 0 ? 0 : 1;
}

}  // namespace fathom
