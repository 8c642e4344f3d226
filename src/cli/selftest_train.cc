#include "cli/selftest_train.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "cli/ids.h"
#include "formats/json.h"
#include "train/trainer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

struct RecordedBatch {
  std::vector<int32_t> tokens, targets;
  std::vector<int64_t> lengths;
  TrainBatch batch() const { return {tokens, lengths, targets}; }
};

RecordedBatch read_batch(const fs::path& folder, const JsonObject& info, int64_t vocab_size) {
  RecordedBatch b;
  const fs::path golden = folder / "golden.safetensors";
  b.tokens = read_ids(golden);
  for (const int32_t id : b.tokens) {
    if (id >= vocab_size)
      fail("{}: input_ids: found {}, expected an id below {}", golden.string(), id, vocab_size);
  }
  b.lengths = info.integers("documents", 1, std::ssize(b.tokens));
  b.targets.assign(b.tokens.size(), -1);
  size_t begin = 0;
  for (const int64_t length : b.lengths) {
    const size_t end = begin + static_cast<size_t>(length);
    if (end > b.tokens.size())
      fail("{}: documents: add up to more than the {} tokens", info.place(), b.tokens.size());
    for (size_t t = begin; t + 1 < end; ++t) b.targets[t] = b.tokens[t + 1];
    begin = end;
  }
  if (begin != b.tokens.size())
    fail("{}: documents: add up to {}, expected {} tokens", info.place(), begin, b.tokens.size());
  return b;
}

SelftestResult result(std::string subject, double error, double bound, std::string detail) {
  if (!std::isfinite(error)) error = INFINITY;
  return {std::move(subject), error, bound, 0, 0, std::move(detail), error <= bound};
}

// Sum of squares of expected - actual(i) and of expected - base(i), over the tensor that `file` has
// for the parameter; nothing of it recorded means that the loss does not reach it: expected 0.
struct Distance {
  double error = 0, scale = 0;
  double relative() const {
    return scale > 0 ? std::sqrt(error / scale) : error > 0 ? INFINITY : 0;
  }
};

Distance distance(const Safetensors& file, const Parameter& p, const float* actual,
                  const float* base) {
  const TensorInfo* tensor = file.find(p.name);
  if (tensor != nullptr &&
      (tensor->dtype != DType::kF32 || tensor->bytes != static_cast<uint64_t>(p.count) * 4)) {
    fail("{}: tensor {}: expected F32 of {} elements", file.file().path(), quoted(p.name), p.count);
  }
  Distance d;
  for (int64_t i = 0; i < p.count; ++i) {
    float expected = base != nullptr ? base[i] : 0;
    if (tensor != nullptr) __builtin_memcpy(&expected, tensor->data + i * 4, 4);
    d.error += std::pow(double{actual[i]} - expected, 2);
    d.scale += std::pow(double{expected} - (base != nullptr ? base[i] : 0), 2);
  }
  return d;
}

void check_gradients(const std::string& name, const fs::path& file, const Model& base,
                     const RecordedBatch& recorded, const JsonObject& run, int threads,
                     std::vector<SelftestResult>& results) {
  const ModelConfig& config = base.config();
  const ParameterTable table = parameter_table(config);
  std::vector<float> master(static_cast<size_t>(table.total)), gradients(master.size());
  copy_weights(config, table, base.weights(), master);
  const Model model(config, map_weights(config, table, master, {}));
  const ModelGradients views = map_gradients(config, table, gradients);
  const TrainBatch batch = recorded.batch();
  Objective objective;
  for (const int32_t target : recorded.targets) objective.targets += target >= 0 ? 1 : 0;
  objective.mtp_targets = mtp_target_count(batch);
  objective.documents = std::ssize(recorded.lengths);
  objective.mtp_loss_weight = run.number("mtp_weight");
  objective.balance_alpha.sequence = run.number("balance_alpha");
  StepLosses losses;
  losses.expert_tokens.resize(static_cast<size_t>(moe_layers(model) * config.n_routed_experts));
  Context ctx(threads, detect_isa(), Precision::kF32);
  add_gradients(ctx, model, batch, objective, &views, losses);

  const double total = losses.total(objective), expected = run.number("total");
  results.push_back(result(name + ": loss", std::abs(total - expected) / std::abs(expected), 1e-5,
                           fmt::format("found {}, expected {}", total, expected)));
  const Safetensors recorded_gradients = Safetensors::open(file);
  double worst = -1;
  std::string worst_name;
  for (const Parameter& p : table.parameters) {
    const double error =
        distance(recorded_gradients, p, gradients.data() + p.offset, nullptr).relative();
    if (error > worst || std::isnan(error)) worst = error, worst_name = p.name;
  }
  results.push_back(
      result(fmt::format("{}: gradients of {} tensors", name, table.parameters.size()), worst, 1e-4,
             "worst: " + worst_name));
}

void check_steps(const std::string& name, const fs::path& file, const Model& base,
                 const RecordedBatch& recorded, const JsonObject& run, int threads,
                 std::vector<SelftestResult>& results) {
  const JsonObject adamw(run.value("adamw"), run.place() + ": adamw");
  TrainerOptions options;
  options.f32 = true;
  options.optimizer = {.beta1 = adamw.number("beta1"),
                       .beta2 = adamw.number("beta2"),
                       .eps = adamw.number("eps"),
                       .weight_decay = adamw.number("weight_decay"),
                       .clip = adamw.number("clip")};
  Context ctx(threads, detect_isa(), Precision::kF32);
  Trainer trainer(ctx, base, options, 0);
  const std::vector<float> before(trainer.master().begin(), trainer.master().end());
  const TrainBatch batch = recorded.batch();
  double worst = 0;
  std::string detail;
  const nlohmann::json& losses = adamw.value("losses");
  if (!losses.is_array() || losses.empty())
    fail("{}: losses: expected an array of numbers", adamw.place());
  for (size_t step = 0; step < losses.size(); ++step) {
    if (!losses[step].is_number()) fail("{}: losses[{}]: expected a number", adamw.place(), step);
    const StepReport report =
        trainer.step({&batch, 1}, {.lr = adamw.number("lr"),
                                   .mtp_loss_weight = run.number("mtp_weight"),
                                   .balance_alpha = {.sequence = run.number("balance_alpha")},
                                   .bias_update_rate = adamw.number("bias_rate")});
    const double expected = losses[step].get<double>(),
                 error = std::abs(report.loss - expected) / std::abs(expected);
    if (!(error <= worst))
      worst = error,
      detail = fmt::format("step {}: found {}, expected {}", step + 1, report.loss, expected);
  }
  results.push_back(
      result(fmt::format("{}: losses of {} steps", name, losses.size()), worst, 1e-2, detail));
  const Safetensors after = Safetensors::open(file);
  Distance all;
  for (const Parameter& p : trainer.table().parameters) {
    const Distance d =
        distance(after, p, trainer.master().data() + p.offset, before.data() + p.offset);
    all.error += d.error, all.scale += d.scale;
  }
  results.push_back(
      result(fmt::format("{}: change of the weights in {} steps", name, losses.size()),
             all.relative(), 3e-2, ""));
}

}  // namespace

std::vector<SelftestResult> selftest_training(const std::string& folder, int threads) {
  const fs::path path = fs::path(folder).lexically_normal();
  const std::string model_name =
      (path.has_filename() ? path : path.parent_path()).filename().string();
  const std::string place = (path / "info.json").string();
  const nlohmann::json value = parse_json(read_file(path / "info.json", 1 << 20), place);
  const JsonObject info(value, place);
  const Model model = Model::load(path);
  const RecordedBatch recorded = read_batch(path, info, model.config().vocab_size);
  std::vector<SelftestResult> results;
  for (const char* kind : {"plain", "full"}) {
    const auto run = info.optional_object(kind);
    if (!run) continue;
    const std::string name = fmt::format("{}, {}", model_name, kind);
    const fs::path gradients = path / fmt::format("grads_{}.safetensors", kind),
                   after = path / fmt::format("after10_{}.safetensors", kind);
    if (fs::exists(gradients))
      check_gradients(name, gradients, model, recorded, *run, threads, results);
    if (fs::exists(after)) check_steps(name, after, model, recorded, *run, threads, results);
  }
  if (results.empty())
    fail("{}: no recorded training (expected grads_plain.safetensors or the like)", folder);
  return results;
}

}  // namespace fathom
