#include "cli/bench_cost.h"

#include <algorithm>
#include <cmath>

#include "engine/kv_cache.h"
#include "kernels/gemm.h"

namespace fathom {
namespace {

void add_mlp(const MlpWeights& mlp, double rows, Cost& cost) {
  for (const Linear* w : {&mlp.gate_proj, &mlp.up_proj, &mlp.down_proj})
    cost.add_weight(w->weight, rows);
}

// key_rows: rows whose keys and values go into the cache, `shape.rows` run through the rest.
void add_block(const BlockWeights& block, const ModelConfig& config, const StepShape& shape,
               double key_rows, DType cache_dtype, Cost& cost) {
  const double rows = shape.rows, absorbed = rows - shape.expanded_rows;
  if (block.mla) {
    const MlaWeights& w = *block.mla;
    for (const Linear* v : {&w.q_proj, &w.q_a_proj, &w.q_b_proj, &w.o_proj})
      cost.add_weight(v->weight, rows);
    cost.add_weight(w.kv_a_proj_with_mqa.weight, key_rows);
    WeightView kv_b = w.kv_b_proj.weight;  // mla.cc rounds it where expanded keys are bf16
    if (kv_b.dtype == DType::kF32 && cache_dtype != DType::kF32) kv_b.dtype = DType::kBF16;
    if (shape.expanded_rows > 0) cost.add_weight(kv_b, shape.expanded_keys);
    for (const auto* part : {&w.absorbed.k_up_transposed, &w.absorbed.v_up}) {
      for (const WeightView& v : *part) cost.add_weight(v, absorbed, absorbed > 0 ? 1 : 0);
    }
  } else {
    for (const Linear* v : {&block.gqa->q_proj, &block.gqa->o_proj})
      cost.add_weight(v->weight, rows);
    for (const Linear* v : {&block.gqa->k_proj, &block.gqa->v_proj})
      cost.add_weight(v->weight, key_rows);
  }
  if (block.mlp) add_mlp(*block.mlp, rows, cost);
  if (!block.moe) return;
  const MoeWeights& moe = *block.moe;
  if (moe.shared_experts) add_mlp(*moe.shared_experts, rows, cost);
  // Rows choose experts about evenly: of E experts, 1 - (1 - k/E)^rows are read; each row pays for
  // k.
  const double chosen = static_cast<double>(config.router.num_experts_per_tok) /
                        static_cast<double>(config.n_routed_experts);
  const double read = 1 - std::pow(1 - chosen, rows);
  for (const auto* part : {&moe.gate_proj, &moe.up_proj, &moe.down_proj}) {
    for (const WeightView& expert : part->weight)
      cost.add_weight(expert, rows * chosen / read, read);
  }
}

}  // namespace

void Cost::add_weight(const WeightView& w, double rows, double share) {
  if (w.empty()) return;
  bytes += share * static_cast<double>(
                       w.rows * row_bytes(w.dtype, w.cols) +
                       (w.block_scales != nullptr ? (w.rows + 127) / 128 * w.scale_cols * 4 : 0));
  const double flops = share * 2 * rows * static_cast<double>(w.rows * w.cols);
  const bool blocks = dtype_info(w.dtype).block_elements > 1;
  (blocks ? int8_ops : rounds_x_to_bf16(w.dtype) ? bf16_flops : f32_flops) += flops;
}

double Cost::arithmetic_seconds(const Roofs& roofs) const {
  // without an instruction for them, bytes are multiplied no faster than f32
  const double int8 = std::max(roofs.int8_ops, roofs.f32_flops);
  return f32_flops / roofs.f32_flops + bf16_flops / roofs.bf16_flops + int8_ops / int8;
}

double Cost::shortest_seconds(const Roofs& roofs) const {
  return std::max(arithmetic_seconds(roofs), memory_seconds(roofs));
}

StepShape prefill_step(double context, double rows, double expanded) {
  const double all = rows * (context + (rows + 1) / 2),
               pairs = expanded * (context + (expanded + 1) / 2);
  return {rows, all - pairs, context, 1, expanded, pairs, expanded > 0 ? context + expanded : 0};
}

StepShape decode_step(double sequences, double context) {
  return {sequences, sequences * (context + 1), sequences * context, sequences};
}

Cost step_cost(const Model& model, const StepShape& shape, DType cache_dtype) {
  const ModelConfig& c = model.config();
  Cost cost;
  // Only rows with logits run through the last layer; they see all keys, and end an opening.
  StepShape last = shape;
  if (shape.logit_rows < shape.rows)
    last = {shape.logit_rows, shape.logit_rows * (shape.cache_rows + shape.rows)};
  const std::vector<BlockWeights>& layers = model.weights().layers;
  for (const BlockWeights& block : layers)
    add_block(block, c, &block == &layers.back() ? last : shape, shape.rows, cache_dtype, cost);
  cost.add_weight(model.weights().lm_head.weight, shape.logit_rows);
  const auto heads = static_cast<double>(c.num_attention_heads),
             whole = static_cast<double>(c.num_hidden_layers - 1);
  const auto per_pair =
      static_cast<double>(c.is_mla() ? 2 * c.kv_lora_rank + c.qk_rope_head_dim : 2 * c.head_dim);
  (cache_dtype == DType::kI8     ? cost.int8_ops
   : cache_dtype == DType::kBF16 ? cost.bf16_flops
                                 : cost.f32_flops) +=
      2 * (whole * shape.pairs + last.pairs) * per_pair * heads;
  (cache_dtype == DType::kF32 ? cost.f32_flops : cost.bf16_flops) +=
      2 * whole * shape.expanded_pairs * static_cast<double>(c.qk_head_dim() + c.v_head_dim) *
      heads;
  cost.bytes += shape.cache_rows *
                static_cast<double>(KvCache::bytes_per_token(c, c.num_hidden_layers, cache_dtype));
  return cost;
}

}  // namespace fathom
