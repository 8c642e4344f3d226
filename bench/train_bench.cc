// Whole training steps, the optimiser included: tokens/s, GFLOP/s (train/flops.h says what counts),
// the share of the bf16 roof, and the most memory the process held.
//
//   train_bench [threads] [nano|wide|lora ...]
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "kernels/roofline.h"
#include "model/parameters.h"
#include "train/flops.h"
#include "train/trainer.h"

namespace fathom {
namespace {

struct Shape {
  std::string name;
  ModelConfig config;
  int64_t documents, length;
  bool lora = false;
};

ModelConfig deepseek(int64_t vocab, int64_t hidden, int64_t layers, int64_t heads,
                     int64_t experts) {
  ModelConfig c;
  c.architecture = Architecture::kDeepseekV3;
  c.vocab_size = vocab;
  c.hidden_size = hidden;
  c.num_hidden_layers = layers;
  c.num_attention_heads = c.num_key_value_heads = heads;
  c.max_position_embeddings = 4096;
  c.n_routed_experts = experts;
  c.n_shared_experts = 1;
  c.first_k_dense_replace = 1;
  c.router = {.n_routed_experts = static_cast<int>(experts),
              .num_experts_per_tok = 4,
              .norm_topk_prob = true};
  c.num_nextn_predict_layers = 1;
  return c;
}

Shape nano() {
  ModelConfig c = deepseek(128, 256, 6, 8, 16);
  c.q_lora_rank = 96, c.kv_lora_rank = 64;
  c.qk_nope_head_dim = 24, c.qk_rope_head_dim = 8, c.v_head_dim = 32;
  c.intermediate_size = 640, c.moe_intermediate_size = 128;
  return {"nano", c, 64, 128};
}

Shape wide() {
  ModelConfig c = deepseek(4096, 1024, 8, 16, 16);
  c.q_lora_rank = 384, c.kv_lora_rank = 256;
  c.qk_nope_head_dim = 48, c.qk_rope_head_dim = 16, c.v_head_dim = 64;
  c.intermediate_size = 2560, c.moe_intermediate_size = 512;
  return {"wide", c, 8, 512};
}

// QLoRA's little sister: rank 16 beside every linear layer of a frozen bf16 model.
Shape lora() {
  ModelConfig c;
  c.architecture = Architecture::kQwen2;
  c.vocab_size = 151936;
  c.hidden_size = 1536;
  c.num_hidden_layers = 28;
  c.num_attention_heads = 12;
  c.num_key_value_heads = 2;
  c.head_dim = 128;
  c.intermediate_size = 8960;
  c.attention_bias = true;
  c.tie_word_embeddings = true;
  c.max_position_embeddings = 4096;
  return {"lora", c, 2, 512, true};
}

// The most memory held since the last call, in bytes.
double peak_memory() {
  std::ifstream status("/proc/self/status");
  double kilobytes = 0;
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) kilobytes = std::atof(line.c_str() + 6);
  }
  std::ofstream("/proc/self/clear_refs") << "5";
  return kilobytes * 1024;
}

// A frozen model of random bf16 matrices; pages of the f32 array that only hold matrices are never
// touched.
struct Base {
  explicit Base(const ModelConfig& c)
      : table(parameter_table(c)),
        master(static_cast<float*>(std::calloc(static_cast<size_t>(table.total), sizeof(float))),
               &std::free),
        compute(static_cast<size_t>(table.total)) {
    for (size_t i = 0; i < compute.size(); ++i)
      compute[i] = f32_to_bf16(
          0.04f * (static_cast<float>((i * 2654435761u) >> 8 & 0xffff) / 65536.0f - 0.5f));
    for (const Parameter& p : table.parameters) {
      if (p.kind == ParameterKind::kVector) std::fill_n(master.get() + p.offset, p.count, 1.0f);
    }
    model.emplace(c, map_weights(c, table, {master.get(), compute.size()}, compute));
  }
  ParameterTable table;
  std::unique_ptr<float[], void (*)(void*)> master;
  std::vector<bf16> compute;
  std::optional<Model> model;
};

void run(const Shape& shape, int threads, const Roofs& roofs) {
  const ModelConfig& c = shape.config;
  peak_memory();
  Context ctx(threads);
  TrainerOptions options;
  std::optional<Base> base;
  std::unique_ptr<Trainer> trainer;
  if (shape.lora) {
    base.emplace(c);
    options.lora = LoraOptions{.rank = 16, .alpha = 32, .targets = {"all"}};
    trainer = std::make_unique<Trainer>(ctx, *base->model, options, 1);
  } else {
    trainer = std::make_unique<Trainer>(ctx, c, options, 1);
  }
  const int64_t tokens = shape.documents * shape.length;
  std::vector<int32_t> ids(static_cast<size_t>(tokens)), targets(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] =
        static_cast<int32_t>(random_bits({.seed = 1}, i) % static_cast<uint64_t>(c.vocab_size));
    targets[i] =
        static_cast<int32_t>(random_bits({.seed = 2}, i) % static_cast<uint64_t>(c.vocab_size));
  }
  const std::vector<int64_t> lengths(static_cast<size_t>(shape.documents), shape.length);
  const TrainBatch batch{ids, lengths, targets};
  const bool mtp = c.num_nextn_predict_layers > 0;
  const StepSettings settings{.lr = 1e-4,
                              .mtp_loss_weight = mtp ? 0.3 : 0,
                              .balance_alpha = {.sequence = mtp ? 1e-4 : 0},
                              .bias_update_rate = 1e-3};
  std::vector<double> seconds;
  trainer->step({&batch, 1}, settings);  // finds out how much scratch it needs
  for (const double begin = seconds_now(); seconds.size() < 3 || seconds_now() - begin < 5;) {
    const double start = seconds_now();
    trainer->step({&batch, 1}, settings);
    seconds.push_back(seconds_now() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const double flops =
      static_cast<double>(tokens) *
      training_flops(c, trainer->table(), mtp).per_token(static_cast<double>(shape.length));
  fmt::print(
      "{:6} {:7.1f} M trained, {} x {} tokens: {:6.0f} tokens/s (best {:.0f})  {:5.0f} GFLOP/s "
      "{:5.1f} % of bf16   at most {:.2f} GB\n",
      shape.name, static_cast<double>(parameter_count(trainer->table())) / 1e6, shape.documents,
      shape.length, static_cast<double>(tokens) / median,
      static_cast<double>(tokens) / seconds.front(), flops / median / 1e9,
      100 * flops / median / roofs.bf16_flops, peak_memory() / 1e9);
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  using namespace fathom;
  const int threads = argc > 1 ? std::atoi(argv[1]) : available_cores();
  Context ctx(threads);
  const Roofs roofs = measure_roofs(ctx, 1);
  fmt::print("{} threads, roofs: f32 {:.0f}, bf16 {:.0f} GFLOP/s\n", threads, roofs.f32_flops / 1e9,
             roofs.bf16_flops / 1e9);
  for (const Shape& shape : {nano(), wide(), lora()}) {
    bool wanted = argc <= 2;
    for (int i = 2; i < argc; ++i) wanted = wanted || shape.name == argv[i];
    if (wanted) run(shape, threads, roofs);
  }
}
