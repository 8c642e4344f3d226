// Low-rank adapters (LoRA, arXiv 2106.09685): the base model is frozen, in any type that computes
// (bf16, or 8- and 4-bit blocks as QLoRA has it), and each chosen linear layer learns B A of rank
// `rank` beside it (linear.h).
#pragma once

#include <string>
#include <vector>

#include "model/parameters.h"

namespace fathom {

struct LoraOptions {
  int64_t rank = 16;
  double alpha = 32;
  // A layer is chosen if its name without ".weight" contains one of these ("q_proj", "mlp.experts",
  // "layers.0."); "all" chooses every linear layer. Embedding, head and router never are.
  std::vector<std::string> targets;
};

inline float lora_scale(const LoraOptions& options) {
  return static_cast<float>(options.alpha / static_cast<double>(options.rank));
}

// The adapters' parameters, named as PEFT names them:
// base_model.model.{layer}.lora_A.weight [rank, in], ...lora_B.weight [out, rank].
// Throws if a target matches nothing, naming it.
ParameterTable lora_table(const ModelConfig& config, const LoraOptions& options);

// The same as PEFT's adapter_config.json, with each adapted layer by its full name.
std::string adapter_config_json(const LoraOptions& options, const ParameterTable& table,
                                const std::string& base);

// A normal with standard deviation 1 / sqrt(in), B 0: the adapted model starts as the base.
void initialise_lora(const ParameterTable& table, uint64_t seed, std::span<float> master);

// Views of the adapters in `compute` (bf16), or in `master` if that is empty, put into `weights`.
void attach_lora(const ModelConfig& config, const LoraOptions& options, const ParameterTable& table,
                 std::span<const float> master, std::span<const bf16> compute,
                 ModelTensors<AsWeights>& weights);
ModelGradients map_lora_gradients(const ModelConfig& config, const LoraOptions& options,
                                  const ParameterTable& table, std::span<float> gradients);

// Rows [begin, begin + count) of W + lora_scale B A in f32, each element one chain of sums in
// double, rounded once: what the adapter and its base compute together. Without LoRA, of W.
// out: [count, cols].
void merge_lora(const Linear& w, int64_t begin, int64_t count, float* out);

// The whole model with its adapters merged, as the numbers of `full` (parameter_table()): what to
// publish of a LoRA run. Made piece by piece as they are read, for a base may be all that fits into
// memory. Arguments outlive it.
class MergedWeights {
 public:
  MergedWeights(const ModelConfig& config, const ParameterTable& full,
                const ModelTensors<AsWeights>& base, const LoraOptions& options,
                const ParameterTable& table, std::span<const float> master);
  // Elements [begin, begin + out.size()) of a parameter of `full`.
  void read(const Parameter& p, int64_t begin, std::span<float> out) const;

 private:
  struct Source {  // one of the two
    Linear matrix;
    std::span<const float> vector;
  };
  class Collector;

  const ParameterTable& full_;
  std::vector<Source> sources_;  // of the parameters, in their order
};

}  // namespace fathom
