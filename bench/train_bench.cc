// Training steps of whole models: tokens/s, GFLOP/s (train/flops.h says what counts) and the share of the bf16 roof, and the
// memory they take.
//
//   train_bench [threads] [nano|wide ...]
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "kernels/roofline.h"
#include "model/gradient.h"
#include "model/parameters.h"
#include "train/flops.h"

namespace fathom {
namespace {

struct Shape {
  std::string name;
  ModelConfig config;
  int64_t documents, length;
};

ModelConfig deepseek(int64_t vocab, int64_t hidden, int64_t layers, int64_t heads, int64_t experts) {
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
  c.router = {.n_routed_experts = static_cast<int>(experts), .num_experts_per_tok = 4,
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

void run(const Shape& shape, int threads, const Roofs& roofs) {
  const ModelConfig& c = shape.config;
  Context ctx(threads);
  const ParameterTable table = parameter_table(c);
  const auto total = static_cast<size_t>(table.total);
  std::vector<float> master(total), gradients(total);
  std::vector<bf16> compute(total);
  initialise(table, 0.02, 1, master);
  for (size_t i = 0; i < total; ++i) compute[i] = f32_to_bf16(master[i]);
  const Model model(c, map_weights(c, table, master, compute));
  const ModelGradients views = map_gradients(c, table, gradients);

  const int64_t tokens = shape.documents * shape.length;
  std::vector<int32_t> ids(static_cast<size_t>(tokens)), targets(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(random_bits({.seed = 1}, i) % static_cast<uint64_t>(c.vocab_size));
    targets[i] = static_cast<int32_t>(random_bits({.seed = 2}, i) % static_cast<uint64_t>(c.vocab_size));
  }
  const std::vector<int64_t> lengths(static_cast<size_t>(shape.documents), shape.length);
  const TrainBatch batch{ids, lengths, targets};
  const Objective objective{.targets = tokens,
                            .mtp_targets = mtp_target_count(batch),
                            .documents = shape.documents,
                            .mtp_loss_weight = 0.3,
                            .sequence_balance_alpha = 1e-4};
  StepLosses losses;
  losses.expert_tokens.resize(static_cast<size_t>(moe_layers(model) * c.n_routed_experts));
  std::vector<double> seconds;
  for (const double begin = seconds_now(); seconds.size() < 3 || seconds_now() - begin < 5;) {
    const double start = seconds_now();
    add_gradients(ctx, model, batch, objective, &views, losses);
    seconds.push_back(seconds_now() - start);
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const double flops = static_cast<double>(tokens) *
                       training_flops(c, table, true).per_token(static_cast<double>(shape.length));
  fmt::print("{:12} {:5.1f} M parameters, {} x {} tokens: {:6.0f} tokens/s (best {:.0f})  {:5.0f} GFLOP/s "
             "{:5.1f} % of bf16   step memory {:.2f} GB\n",
             shape.name, static_cast<double>(table.total) / 1e6, shape.documents, shape.length,
             static_cast<double>(tokens) / median, static_cast<double>(tokens) / seconds.front(),
             flops / median / 1e9, 100 * flops / median / roofs.bf16_flops,
             static_cast<double>(ctx.scratch().reserved_bytes()) / 1e9);
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
  for (const Shape& shape : {nano(), wide()}) {
    bool wanted = argc <= 2;
    for (int i = 2; i < argc; ++i) wanted = wanted || shape.name == argv[i];
    if (wanted) run(shape, threads, roofs);
  }
}
