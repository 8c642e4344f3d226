// A training run from a recipe, start to end: pre-training and supervised fine-tuning are this loop
// over other data.
//
//   model and tokenizer (new, or from a checkpoint), data, trainer; then for each step: pack a
//   batch, Trainer::step(), write
//   the metrics; now and then a validation loss, the task's score, a checkpoint. At the end
//   RUN/model: the model as a folder
//   that any engine loads.
//
// The same recipe gives the same bits with any number of threads, and however often the run was
// stopped and resumed.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "train/evaluation.h"
#include "train/recipe.h"

namespace fathom {

struct TrainingOptions {
  std::filesystem::path folder;
  bool resume = false;        // go on from the newest good checkpoint; without one, start
  std::string command;        // how the run was started, for its record
  std::string machine;        // in words, for its record
  bool measure_roofs = true;  // takes a third of a second; without it shares of the roof are 0
};

struct RunFacts {
  std::string model;  // "DeepseekV3ForCausalLM, 11.9 M parameters, 4.6 M active"
  int64_t steps = 0, first_step = 0;
  int64_t parameters = 0;
  uint64_t frozen_bytes = 0;           // with LoRA: the base's files, all of which a step reads
  uint64_t state_bytes = 0;            // arrays of the trainer
  uint64_t step_bytes = 0;             // of a step at most (step_memory.h)
  double bf16_roof = 0, f32_roof = 0;  // FLOP/s of this machine
};

struct StepLine {
  int64_t step = 0, steps = 0;  // step counts from 1
  double loss = 0, cross_entropy = 0, mtp_cross_entropy = 0, balance = 0, lr = 0, gradient_norm = 0;
  int64_t tokens = 0;  // of the whole run so far
  double seconds = 0;  // of this step
  double tokens_per_second = 0, flops = 0, share_of_roof = 0;
  double load_worst = 0;  // of all MoE layers: the fullest expert's tokens over the mean
  bool skipped = false;
};

// Who watches. Called from the thread that runs.
class RunObserver {
 public:
  virtual ~RunObserver() = default;
  virtual void started(const RunFacts&) {}
  virtual void step(const StepLine&) {}
  virtual void validated(int64_t /*step*/, double /*cross_entropy*/) {}
  virtual void evaluated(int64_t /*step*/, const std::string& /*task*/, const EvaluationResult&) {}
  // Without a task: a validation document's beginning and how the model goes on with it.
  virtual void sampled(int64_t /*step*/, const std::string& /*prompt*/,
                       const std::string& /*completion*/) {}
  virtual void note(const std::string&) {}  // a warning or something worth a line
  virtual bool stop_requested() { return false; }
};

struct RunResult {
  int64_t steps = 0;
  bool finished = false;  // false: stopped by the observer; a checkpoint was saved
  double validation = 0;  // last validation loss
};

// Throws Error: bad recipe, data or checkpoint (2), no memory or disk (3), diverged (4: five
// gradients in a row not finite).
RunResult run_training(const Recipe& recipe, const TrainingOptions& options, RunObserver& observer);
}  // namespace fathom
