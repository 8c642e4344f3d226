#include "train/run.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/limits.h"
#include "base/memory.h"
#include "base/utf8.h"
#include "formats/json.h"
#include "kernels/roofline.h"
#include "train/balance.h"
#include "train/data.h"
#include "train/flops.h"
#include "train/metrics.h"
#include "train/shards.h"
#include "train/step_memory.h"
#include "train/tokenizer_files.h"
#include "train/train_state.h"
#include "train/trainer.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr int kMostSkipped = 5;       // gradients in a row that are not finite
constexpr int kMostFailedSaves = 3;   // in a row
constexpr size_t kSamplePrompt = 32;  // tokens
constexpr int64_t kSampleTokens = 64;
// validation texts are other draws than training's
constexpr uint64_t kValidationSeed = 0x76616c6964;

TokenizerFiles tokenizer_files(const Recipe& recipe) {
  if (recipe.tokenizer.empty() && fs::is_regular_file(recipe.model_path)) {
    fail(
        "{}: tokenizer.path: missing, expected the folder of tokenizer.json: model.path is one "
        "file",
        recipe.name);
  }
  return recipe.tokenizer.empty() ? read_tokenizer_folder(recipe.model_path)
                                  : read_tokenizer_files(recipe.tokenizer);
}

ModelConfig new_config(const Recipe& recipe, const Tokenizer& tokenizer) {
  Json config = Json::parse(recipe.config_json);
  const int64_t vocab = recipe.vocab_size == 0 ? tokenizer.vocab_size() : recipe.vocab_size;
  if (vocab < tokenizer.vocab_size()) {
    fail("{}: model.vocab_size: found {}, expected at least the tokenizer's {}", recipe.name, vocab,
         tokenizer.vocab_size());
  }
  config["vocab_size"] = vocab;
  if (const auto bos = tokenizer.bos_id()) config["bos_token_id"] = *bos;
  if (!tokenizer.eos_ids().empty()) config["eos_token_id"] = tokenizer.eos_ids()[0];
  return parse_config(config.dump(), recipe.name + ": model");
}

// The device and communication losses have a gradient only where experts lie in several groups that
// the router knows.
void expect_device_groups(const Recipe& recipe, const ModelConfig& config) {
  const RouterRule& r = config.router;
  const bool grouped =
      config.n_routed_experts > 0 && r.n_group >= 2 && r.topk_method != TopkMethod::kGreedy;
  const auto refuse = [&](const char* key, double alpha) {
    if (alpha == 0 || grouped) return;
    fail(
        "{}: moe.{}: found {} with {}, expected a router with groups of experts (topk_method "
        "group_limited_greedy or noaux_tc, n_group of at least 2)",
        recipe.name, key, alpha,
        config.n_routed_experts == 0           ? std::string("a model without experts")
        : r.topk_method == TopkMethod::kGreedy ? std::string("topk_method greedy")
                                               : fmt::format("n_group {}", r.n_group));
  };
  refuse("device_balance_alpha", recipe.balance_alpha.device);
  refuse("communication_balance_alpha", recipe.balance_alpha.communication);
}

struct Data {
  std::unique_ptr<DocumentSource> training, validation;
};

// Training's documents, and others to validate on: problems and conversations that are held out; of
// texts other draws.
Data open_data(const Recipe& recipe, const Tokenizer& tokenizer, uint64_t fingerprint) {
  const Recipe::Data& data = recipe.data;
  const auto both = [&](const auto& open) {
    return Data{open(Split::kTrain, recipe.seed),
                open(Split::kValidation, recipe.seed ^ kValidationSeed)};
  };
  switch (data.kind) {
    case DataKind::kTexts:
      return both([&](Split, uint64_t seed) { return task_texts(tokenizer, data.tasks, seed); });
    case DataKind::kConversations:
      return both([&](Split split, uint64_t seed) {
        return task_conversations(tokenizer, detect_chat_format(tokenizer), data.tasks, seed, split,
                                  data.thought_share);
      });
    case DataKind::kMessages: {
      const auto messages = read_messages(tokenizer, detect_chat_format(tokenizer), data.path);
      return both(
          [&](Split split, uint64_t seed) { return message_documents(messages, seed, split); });
    }
    case DataKind::kShards: {
      const auto shards = open_shards(data.path, fingerprint, tokenizer.vocab_size());
      return both([&](Split split, uint64_t seed) {
        return shard_documents(shards, data.sequence_length, seed, split);
      });
    }
  }
  return {};
}

// A folder that somebody has, or has had, is asked for before any work; a new one is made once all
// else is right.
std::optional<FolderLock> lock_run(const fs::path& folder, bool new_one) {
  std::error_code ignored;
  if (!new_one && !fs::exists(folder / FolderLock::kFile, ignored)) return std::nullopt;
  return std::make_optional<FolderLock>(
      folder,
      "a folder that no other run writes to (-o names another; or wait, or stop that run "
      "and go on with --resume)");
}

class Run {
 public:
  Run(const Recipe& recipe, const TrainingOptions& options, RunObserver& observer)
      : recipe_(recipe),
        options_(options),
        observer_(observer),
        lock_(lock_run(options.folder, false)),
        ctx_(recipe.threads > 0 ? recipe.threads : available_cores(), detect_isa(),
             recipe.train.f32 ? Precision::kF32 : Precision::kNative),
        files_(tokenizer_files(recipe)),
        tokenizer_(files_.load("tokenizer.json")),
        cut_(recipe.data.kind == DataKind::kTexts || recipe.data.kind == DataKind::kShards),
        data_(open_data(recipe, tokenizer_, files_.fingerprint())),
        packer_(*data_.training, recipe.data.sequence_length, cut_) {
    if (!recipe.model_path.empty()) base_.emplace(Model::load(recipe.model_path));
    const ModelConfig config = base_ ? base_->config() : new_config(recipe, tokenizer_);
    if (recipe.data.sequence_length > config.max_position_embeddings) {
      fail(
          "{}: data.sequence_length: found {}, expected at most the model's "
          "max_position_embeddings {}",
          recipe.name, recipe.data.sequence_length, config.max_position_embeddings);
    }
    if (tokenizer_.vocab_size() > config.vocab_size) {
      fail("{}: tokenizer: {} tokens, expected at most the model's vocab_size {}", recipe.name,
           tokenizer_.vocab_size(), config.vocab_size);
    }
    expect_device_groups(recipe, config);
    expect_room_for_answers(config);
    plan_memory(config);
    TrainerOptions trainer_options;
    trainer_options.optimizer = recipe.optimizer;
    trainer_options.f32 = recipe.train.f32;
    trainer_options.recompute = recipe.train.recompute;
    trainer_options.lora = recipe.lora;
    trainer_ = base_ ? std::make_unique<Trainer>(ctx_, *base_, trainer_options, recipe.seed)
                     : std::make_unique<Trainer>(ctx_, config, trainer_options, recipe.seed);
    if (base_ && !recipe.lora) base_.reset();  // copied
    flops_ = training_flops(config, trainer_->table(), false);
    mtp_flops_ = training_flops(config, trainer_->table(), true);
  }

  RunResult run() {
    const auto lock = lock_ ? std::nullopt : lock_run(options_.folder, true);
    const int64_t first = start();
    MetricsOptions metrics_options;
    metrics_options.folder = options_.folder;
    if (first > 0 || options_.resume) metrics_options.resumed_step = first;
    metrics_options.warn = [this](const std::string& text) { observer_.note(text); };
    MetricsLog metrics(std::move(metrics_options));
    metrics_ = &metrics;
    RunMetrics facts;
    facts.name = recipe_.name;
    facts.stage = cut_ ? "pretrain" : "sft";
    facts.command = options_.command;
    facts.machine = options_.machine;
    facts.precision = recipe_.train.f32 ? "f32" : "bf16";
    facts.threads = ctx_.pool().threads();
    facts.parameters = parameter_count(trainer_->table());
    facts.active_parameters = active_parameters(trainer_->config(), trainer_->table());
    facts.roof_flops = recipe_.train.f32 ? roofs_.f32_flops : roofs_.bf16_flops;
    facts.steps = steps();
    facts.recipe = recipe_.text;
    metrics.write(facts);
    int skipped = 0;
    int64_t step = first;
    for (; step < steps(); ++step) {
      if (observer_.stop_requested()) {
        save(step);
        return {step, false, validation_};
      }
      skipped = one_step(step) ? skipped + 1 : 0;
      const int64_t done = step + 1;
      if (skipped == kMostSkipped) {
        save(done);
        throw Error(
            ExitCode::kDiverged,
            fmt::format("step {}: {} gradients in a row are not finite (lower schedule.lr?); saved",
                        done, skipped));
      }
      const bool last = done == steps();
      const bool best = is_due(recipe_.evaluation.every, done) && evaluate_or_save(done, last);
      if (best || is_due(recipe_.checkpoint.every, done)) save(done);
    }
    write_result(step);
    return {step, true, validation_};
  }

 private:
  int64_t steps() const { return recipe_.train.steps(); }
  bool is_due(int64_t every, int64_t done) const {
    return done == steps() || (every > 0 && done % every == 0);
  }

  EvaluationOptions evaluation_options(Split split) const {
    EvaluationOptions options;
    options.problems = recipe_.evaluation.problems;
    options.samples = recipe_.evaluation.samples;
    options.temperature = recipe_.evaluation.temperature;
    options.max_tokens = recipe_.evaluation.max_tokens;
    options.split = split;
    return options;
  }

  // What the evaluation will ask is asked for now, not after the last step.
  void expect_room_for_answers(const ModelConfig& config) const {
    if (recipe_.evaluation.task.empty()) return;
    const auto task = make_task(recipe_.evaluation.task);
    const ChatFormat format = detect_chat_format(tokenizer_);
    for (const Split split : {Split::kValidation, Split::kTest}) {
      const int64_t most = longest_answer(config.max_position_embeddings, tokenizer_, format, *task,
                                          evaluation_options(split));
      if (recipe_.evaluation.max_tokens > most) {
        fail(
            "{}: evaluation.max_tokens: found {}, expected at most {}: the longest question takes "
            "{} of the model's {} positions",
            recipe_.name, recipe_.evaluation.max_tokens, most,
            config.max_position_embeddings - most, config.max_position_embeddings);
      }
    }
  }

  void plan_memory(const ModelConfig& config) {
    const ParameterTable table =
        recipe_.lora ? lora_table(config, *recipe_.lora) : parameter_table(config);
    const StepShape shape{
        .tokens = std::min(recipe_.train.micro_batch_tokens, recipe_.train.tokens_per_step),
        .sequence_length = recipe_.data.sequence_length,
        .recompute = recipe_.train.recompute,
        .widened_bytes = recipe_.lora ? widened_bytes(*base_, ctx_.precision()) : 0,
        .lora_rank = recipe_.lora ? recipe_.lora->rank : 0,
        .optimizer = recipe_.optimizer.kind};
    const StepMemory step = step_memory(config, table, shape);
    facts_.step_bytes = step.total(ctx_.pool().threads());
    facts_.state_bytes = static_cast<uint64_t>(Trainer::state_bytes(table, recipe_.train.f32));
    if (recipe_.lora) {
      for (const TensorInfo* tensor : base_->checkpoint().tensors())
        facts_.frozen_bytes += tensor->bytes;
    }
    const auto available = available_memory();
    if (available && facts_.frozen_bytes + facts_.state_bytes + facts_.step_bytes > *available) {
      fail_resource(
          "{}: needs {}{} MB for weights, gradients and moments and {} MB for a step, {} MB are "
          "available (smaller train.micro_batch_tokens, or train.recompute = true)",
          recipe_.name,
          recipe_.lora ? fmt::format("{} MB for the frozen base, ", facts_.frozen_bytes >> 20) : "",
          facts_.state_bytes >> 20, facts_.step_bytes >> 20, *available >> 20);
    }
    ctx_.scratch().reserve(step.scratch);
  }

  // Finds where to begin and says what is about to happen.
  int64_t start() {
    int64_t first = 0;
    prune_checkpoints(options_.folder, INT32_MAX, std::nullopt);  // leftovers of killed saves
    const auto found = find_checkpoint(options_.folder);
    if (found && !options_.resume) {
      fail("{}: holds a run already (step {}), expected a new folder, or --resume to go on",
           options_.folder.string(), found->step);
    }
    if (found) {
      for (const std::string& damaged : found->damaged)
        observer_.note("skipped a damaged checkpoint: " + damaged);
      first = restore(*found);
    }
    if (options_.measure_roofs) roofs_ = measure_roofs(ctx_, 0.3);
    const ModelConfig& c = trainer_->config();
    facts_.model = fmt::format("{}, {} layers, hidden {}", architecture_name(c.architecture),
                               c.num_hidden_layers, c.hidden_size);
    facts_.steps = steps();
    facts_.first_step = first;
    facts_.parameters = parameter_count(trainer_->table());
    facts_.bf16_roof = roofs_.bf16_flops;
    facts_.f32_roof = roofs_.f32_flops;
    observer_.started(facts_);
    return first;
  }

  int64_t restore(const FoundCheckpoint& found) {
    const std::string place = (found.folder / "state.json").string();
    const nlohmann::json value = parse_json(found.state_json, place);
    const JsonObject state(value, place);
    if (const std::string recipe = state.string("recipe"); recipe != recipe_.text) {
      fail(
          "{}: recipe: differs from the one given, expected the same (a changed recipe is a new "
          "run; first difference: {})",
          place, first_difference(recipe, recipe_.text));
    }
    expect_same_run(found, train_state(found.step));
    // Of runs before there were fingerprints: none.
    if (const std::string here = hash_text(data_.training->fingerprint()),
        data = state.optional_string("data").value_or(hash_text(0));
        data != here) {
      fail(
          "{}: data: found {}, the run's data now have {} (data.path has changed; changed data are "
          "a new run)",
          place, data, here);
    }
    load_optimizer(found.folder, trainer_->table(), trainer_->master(),
                   trainer_->optimizer().first_moment(), trainer_->optimizer().second_moment());
    trainer_->optimizer().set_steps(state.integer("optimizer_steps", 0, INT64_MAX));
    trainer_->refresh();
    packer_.seek(static_cast<uint64_t>(state.integer("next_document", 0, INT64_MAX)));
    tokens_ = state.integer("tokens", 0, INT64_MAX);
    if (state.has("best_step")) {
      best_step_ = state.integer("best_step", 0, INT64_MAX);
      best_score_ = state.number("best_score");
    }
    observer_.note(
        fmt::format("resumed from {} at step {}", found.folder.filename().string(), found.step));
    return found.step;
  }

  static std::string first_difference(const std::string& a, const std::string& b) {
    size_t begin_a = 0, begin_b = 0;
    while (begin_a < a.size() && begin_b < b.size()) {
      const size_t end_a = std::min(a.find('\n', begin_a), a.size()),
                   end_b = std::min(b.find('\n', begin_b), b.size());
      const std::string line_a = a.substr(begin_a, end_a - begin_a),
                        line_b = b.substr(begin_b, end_b - begin_b);
      if (line_a != line_b) return fmt::format("{} there, {} here", quoted(line_a), quoted(line_b));
      begin_a = end_a + 1, begin_b = end_b + 1;
    }
    return "one is longer";
  }

  // True if the step was skipped.
  bool one_step(int64_t step) {
    const double begin = seconds_now();
    packer_.next(recipe_.train.tokens_per_step, batch_);
    const double lr = recipe_.schedule.lr_at(step, steps());
    const double share = static_cast<double>(step) / static_cast<double>(steps());
    const double mtp_loss_weight =
        share < recipe_.mtp_late_from ? recipe_.mtp_loss_weight : recipe_.mtp_late_loss_weight;
    const StepReport report = trainer_->step(
        batch_.micro_batches(recipe_.train.micro_batch_tokens),
        {.lr = lr,
         .mtp_loss_weight = mtp_loss_weight,
         .balance_alpha = recipe_.balance_alpha,
         .bias_update_rate = share < recipe_.bias_update_until ? recipe_.bias_update_rate : 0});
    tokens_ += report.tokens;
    const double seconds = seconds_now() - begin;
    const double length = static_cast<double>(report.tokens) /
                          static_cast<double>(std::max<int64_t>(1, report.documents));
    const double flops = static_cast<double>(report.tokens) *
                         (mtp_loss_weight != 0 ? mtp_flops_ : flops_).per_token(length);
    const double roof = recipe_.train.f32 ? roofs_.f32_flops : roofs_.bf16_flops;
    const std::vector<double> loads =
        load_max_over_mean(report.expert_tokens, trainer_->config().n_routed_experts);
    const double worst = loads.empty() ? 0 : *std::max_element(loads.begin(), loads.end());
    const StepLine line{step + 1,
                        steps(),
                        report.loss,
                        report.cross_entropy,
                        report.mtp_cross_entropy,
                        report.balance,
                        lr,
                        report.gradient_norm,
                        tokens_,
                        seconds,
                        static_cast<double>(report.tokens) / seconds,
                        flops / seconds,
                        roof > 0 ? flops / seconds / roof : 0,
                        worst,
                        report.skipped};
    StepMetrics m;
    m.step = step + 1;
    m.tokens = tokens_;
    m.loss = report.loss, m.cross_entropy = report.cross_entropy,
    m.mtp_cross_entropy = report.mtp_cross_entropy;
    m.balance_loss = report.balance;
    m.lr = lr, m.gradient_norm = report.gradient_norm, m.skipped = report.skipped;
    m.seconds = seconds, m.tokens_per_second = line.tokens_per_second,
    m.flops_per_second = line.flops;
    const ResidentMemory held = resident_memory();
    m.memory_bytes = held.file + held.anonymous;
    m.expert_load = loads;
    metrics_->write(m);
    observer_.step(line);
    if (report.skipped)
      observer_.note(fmt::format("step {}: the gradient is not finite; skipped", step + 1));
    return report.skipped;
  }

  // An evaluation that fails (for memory, say) must not cost the steps before it.
  bool evaluate_or_save(int64_t step, bool last) {
    try {
      return evaluate(step, last);
    } catch (...) {
      save(step);
      throw;
    }
  }

  // True if this is the best so far: by the task's score if there is one, else by the validation
  // loss. The last evaluation is on the test problems and chooses nothing.
  bool evaluate(int64_t step, bool last) {
    Packer packer(*data_.validation, recipe_.data.sequence_length, cut_);
    StepBatch batch;
    packer.next(recipe_.evaluation.validation_tokens, batch);
    validation_ = trainer_->evaluate(batch.micro_batches(recipe_.train.micro_batch_tokens));
    observer_.validated(step, validation_);
    EvaluationMetrics m;
    m.step = step;
    m.validation_loss = validation_;
    double score = -validation_;
    if (!recipe_.evaluation.task.empty()) {
      const TaskScore& task = m.tasks.emplace_back(score_task(step, last));
      score = task.pass_at.empty() ? task.greedy : task.pass_at.front().second;
    } else {
      show_sample(step);
    }
    metrics_->write(m);
    // cut short by a wish to stop: a score of other problems than those of its rivals
    const bool cut = !m.tasks.empty() && m.tasks[0].problems < recipe_.evaluation.problems;
    if (last || cut || !std::isfinite(score) || (best_step_ && score <= best_score_)) return false;
    best_step_ = step;
    best_score_ = score;
    return true;
  }

  // For the eye, where no task judges: the model goes on with a validation document, in
  // pre-training from its beginning, in fine-tuning from the question.
  void show_sample(int64_t step) {
    Document document;
    data_.validation->document(static_cast<uint64_t>(step), document);
    const auto& [tokens, learned] = document;
    const size_t begin = cut_
                             ? std::min(kSamplePrompt, tokens.size() / 2)
                             : static_cast<size_t>(std::find(learned.begin(), learned.end(), true) -
                                                   learned.begin());
    const auto prompt = std::span(tokens).first(std::clamp<size_t>(begin, 1, tokens.size()));
    SampleMetrics sample;
    sample.step = step;
    sample.prompt = replace_invalid_utf8(tokenizer_.decode(prompt));
    sample.completion = continue_text(ctx_, trainer_->model(), tokenizer_, prompt,
                                      std::min(kSampleTokens, recipe_.evaluation.max_tokens),
                                      {.temperature = recipe_.evaluation.temperature,
                                       .seed = recipe_.seed,
                                       .choice = static_cast<uint64_t>(step)},
                                      [this] { return observer_.stop_requested(); });
    metrics_->write(sample);
    observer_.sampled(step, sample.prompt, sample.completion);
  }

  TaskScore score_task(int64_t step, bool last) {
    const auto task = make_task(recipe_.evaluation.task);
    const EvaluationOptions options = evaluation_options(last ? Split::kTest : Split::kValidation);
    const EvaluationResult r =
        evaluate_task(ctx_, trainer_->model(), tokenizer_, detect_chat_format(tokenizer_), *task,
                      options, [this] { return observer_.stop_requested(); });
    for (const AnsweredProblem& a : r.examples) {
      SampleMetrics sample;
      sample.step = step;
      sample.task = recipe_.evaluation.task;
      sample.prompt = a.question, sample.completion = a.completion;
      sample.correct = a.verdict.correct();
      sample.verdict = fmt::format("{}{}{}", verdict_name(a.verdict.kind),
                                   a.verdict.reason.empty() ? "" : ": ", a.verdict.reason);
      metrics_->write(sample);
    }
    observer_.evaluated(step, recipe_.evaluation.task, r);
    TaskScore result;
    result.task = recipe_.evaluation.task;
    result.problems = r.problems, result.samples = r.samples;
    result.greedy = r.greedy;
    result.temperature = options.temperature;
    result.pass_at = r.pass_k;
    return result;
  }

  // RUN/model, which any engine loads: with LoRA the base with the adapter merged into it, and the
  // adapter alone beside it.
  void write_result(int64_t step) {
    TrainState state = train_state(step);
    if (!recipe_.lora) return write_model_folder(options_.folder / "model", state);
    state.side_files.emplace_back(
        "adapter_config.json",
        adapter_config_json(*recipe_.lora, trainer_->table(), recipe_.model_path));
    write_model_folder(options_.folder / "adapter", state);
    state.side_files.pop_back();
    const ModelConfig& config = trainer_->config();
    const ParameterTable full = parameter_table(config);
    const MergedWeights merged(config, full, base_->weights(), *recipe_.lora, trainer_->table(),
                               trainer_->master());
    state.table = &full;
    state.make = [&](const Parameter& p, int64_t begin, std::span<float> out) {
      merged.read(p, begin, out);
    };
    state.adapter = false;
    write_model_folder(options_.folder / "model", state);
  }

  TrainState train_state(int64_t step) {
    TrainState s;
    s.step = step;
    s.table = &trainer_->table();
    s.master = trainer_->master();
    s.first_moment = trainer_->optimizer().first_moment();
    s.second_moment = trainer_->optimizer().second_moment();
    s.config = &trainer_->config();
    s.f32 = recipe_.train.f32;
    s.adapter = recipe_.lora.has_value();
    Json json = {{"step", step},
                 {"tokens", tokens_},
                 {"next_document", packer_.position()},
                 {"optimizer_steps", trainer_->optimizer().steps()},
                 {"data", hash_text(data_.training->fingerprint())},
                 {"recipe", recipe_.text}};
    if (best_step_) json["best_step"] = *best_step_, json["best_score"] = best_score_;
    s.state_json = json.dump(2) + "\n";
    s.side_files = {{"tokenizer.json", files_.json},
                    {"tokenizer_config.json", files_.config},
                    {"recipe.toml", recipe_.text}};
    return s;
  }

  void save(int64_t step) {
    try {
      save_checkpoint(options_.folder, train_state(step));
      failed_saves_ = 0;
    } catch (const Error& e) {
      if (e.code() != ExitCode::kNoResources || ++failed_saves_ == kMostFailedSaves) throw;
      observer_.note(fmt::format("checkpoint not saved, training goes on: {}", e.what()));
      return;
    }
    prune_checkpoints(options_.folder, recipe_.checkpoint.keep, best_step_);
  }

  const Recipe& recipe_;
  const TrainingOptions& options_;
  RunObserver& observer_;
  std::optional<FolderLock> lock_;
  Context ctx_;
  TokenizerFiles files_;
  Tokenizer tokenizer_;
  bool cut_;
  Data data_;
  Packer packer_;
  std::optional<Model> base_;
  std::unique_ptr<Trainer> trainer_;
  StepBatch batch_;
  TrainingFlops flops_, mtp_flops_;  // of steps without and with the MTP loss
  Roofs roofs_;
  RunFacts facts_;
  MetricsLog* metrics_ = nullptr;
  int64_t tokens_ = 0;
  double validation_ = 0;
  std::optional<int64_t> best_step_;
  double best_score_ = 0;  // of best_step_
  int failed_saves_ = 0;
};

}  // namespace

RunResult run_training(const Recipe& recipe, const TrainingOptions& options,
                       RunObserver& observer) {
  return Run(recipe, options, observer).run();
}

}  // namespace fathom
