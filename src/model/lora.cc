#include "model/lora.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/check.h"
#include "base/error.h"
#include "base/random.h"
#include "kernels/quantize.h"
#include "model/tensor_walk.h"

namespace fathom {
namespace {

// of an adapter's name, before the layer's
constexpr std::string_view kPrefix = "base_model.model.";

// "model.layers.0.mlp.down_proj.weight" -> "model.layers.0.mlp.down_proj"
std::string layer_of(const std::string& name) { return name.substr(0, name.rfind(".weight")); }

class Targets {
 public:
  explicit Targets(const LoraOptions& options)
      : options_(options), used_(options.targets.size(), false) {}

  bool contains(const std::string& layer) {
    bool chosen = false;
    for (size_t i = 0; i < used_.size(); ++i) {
      if (name_contains(layer, options_.targets[i])) used_[i] = chosen = true;
    }
    return chosen;
  }
  void expect_all_used() const {
    for (size_t i = 0; i < used_.size(); ++i) {
      if (!used_[i]) {
        fail(
            "lora: target {}: no linear layer of this model, expected a part of a name such as "
            "'self_attn.o_proj'",
            quoted(options_.targets[i]));
      }
    }
  }

 private:
  const LoraOptions& options_;
  std::vector<bool> used_;
};

// A visitor of tensor_walk.h: place.pair(layer, rows, cols, a, b) for each chosen layer.
template <class T, class Place>
class LoraWalker {
 public:
  LoraWalker(const ModelConfig& config, const LoraOptions& options, Place& place)
      : config_(config), options_(options), targets_(options), place_(place) {}

  void matrix(const std::string& name, typename T::Matrix& w, int64_t rows, int64_t cols,
              ParameterKind kind) {
    const std::string layer = layer_of(name);
    if (kind != ParameterKind::kMatrix || !targets_.contains(layer)) return;
    place_.pair(layer, rows, cols, w.lora_a, w.lora_b);
    set_scale(w);
  }
  void experts(const std::string& mlp, const std::string& part, typename T::Experts& w,
               int64_t rows, int64_t cols) {
    for (int64_t e = 0; e < config_.n_routed_experts; ++e) {
      const std::string layer = fmt::format("{}.experts.{}.{}", mlp, e, part);
      const bool chosen = targets_.contains(layer);
      if (e == 0 && !chosen) return;  // all experts of a layer, or none
      const auto count = static_cast<size_t>(config_.n_routed_experts);
      w.lora_a.resize(count), w.lora_b.resize(count);
      place_.pair(layer, rows, cols, w.lora_a[static_cast<size_t>(e)],
                  w.lora_b[static_cast<size_t>(e)]);
    }
    set_scale(w);
  }
  void vector(const std::string&, typename T::Vector&, const std::vector<int64_t>&, ParameterKind) {
  }
  void kv_b(const std::string& attn, int64_t, MlaTensors<T>& w) {
    const ModelConfig& c = config_;
    matrix(attn + ".kv_b_proj.weight", w.kv_b_proj,
           c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank,
           ParameterKind::kMatrix);
  }
  bool has_mtp(int64_t) const { return true; }
  void mtp_norm(const std::string&, typename T::Vector&, int64_t, typename T::Vector) {}
  void mtp_copies(const std::string&) {}
  void expect_all_used() const { targets_.expect_all_used(); }

 private:
  void set_scale(LinearGradient&) {}
  void set_scale(ExpertsGradient&) {}
  template <class Weights>
  void set_scale(Weights& w) {
    w.lora_scale = lora_scale(options_);
  }

  const ModelConfig& config_;
  const LoraOptions& options_;
  Targets targets_;
  Place& place_;
};

struct ListPairs {
  int64_t rank;
  ParameterTable table;

  void pair(const std::string& layer, int64_t rows, int64_t cols, Rows&, Rows&) {
    const std::string name = std::string(kPrefix) + layer;
    append_parameter(table, name + ".lora_A.weight", {rank, cols}, ParameterKind::kMatrix);
    append_parameter(table, name + ".lora_B.weight", {rows, rank}, ParameterKind::kMatrix);
  }
};

// Hands out the parameters in the table's order, which is the walk's.
template <class View, class MakeView>
struct MapPairs {
  const ParameterTable& table;
  MakeView make;
  size_t index = 0;

  void pair(const std::string&, int64_t, int64_t, View& a, View& b) {
    a = make(table.parameters[index++]);
    b = make(table.parameters[index++]);
  }
};

}  // namespace

ParameterTable lora_table(const ModelConfig& config, const LoraOptions& options) {
  ListPairs place{options.rank, {}};
  LoraWalker<AsGradients, ListPairs> walker(config, options, place);
  ModelGradients unused;
  for_each_tensor(unused, config, walker);
  walker.expect_all_used();
  return std::move(place.table);
}

std::string adapter_config_json(const LoraOptions& options, const ParameterTable& table,
                                const std::string& base) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  constexpr std::string_view kSuffix = ".lora_A.weight";
  for (const Parameter& p : table.parameters) {
    if (p.name.ends_with(kSuffix))
      layers.push_back(
          p.name.substr(kPrefix.size(), p.name.size() - kPrefix.size() - kSuffix.size()));
  }
  const nlohmann::ordered_json config = {
      {"peft_type", "LORA"},     {"task_type", "CAUSAL_LM"},    {"base_model_name_or_path", base},
      {"r", options.rank},       {"lora_alpha", options.alpha}, {"lora_dropout", 0.0},
      {"bias", "none"},          {"fan_in_fan_out", false},     {"inference_mode", true},
      {"target_modules", layers}};
  return config.dump(2) + "\n";
}

void initialise_lora(const ParameterTable& table, uint64_t seed, std::span<float> master) {
  std::fill(master.begin(), master.end(), 0.0f);
  uint64_t sequence = 0;
  for (const Parameter& p : table.parameters) {
    ++sequence;
    if (!p.name.ends_with(".lora_A.weight")) continue;
    const double deviation = 1 / std::sqrt(static_cast<double>(p.shape[1]));
    const RandomKey key{.seed = seed, .purpose = RandomPurpose::kInit, .sequence = sequence};
    for (int64_t i = 0; i < p.count; ++i) {
      master[static_cast<size_t>(p.offset + i)] =
          static_cast<float>(deviation * random_normal(key, static_cast<uint64_t>(i)));
    }
  }
}

void attach_lora(const ModelConfig& config, const LoraOptions& options, const ParameterTable& table,
                 std::span<const float> master, std::span<const bf16> compute,
                 ModelTensors<AsWeights>& weights) {
  const auto make = [&](const Parameter& p) { return matrix_view(p, master, compute); };
  MapPairs<WeightView, decltype(make)> place{table, make};
  LoraWalker<AsWeights, decltype(place)> walker(config, options, place);
  for_each_tensor(weights, config, walker);
}

ModelGradients map_lora_gradients(const ModelConfig& config, const LoraOptions& options,
                                  const ParameterTable& table, std::span<float> gradients) {
  const auto make = [&](const Parameter& p) {
    return Rows{gradients.data() + p.offset, p.shape[0], p.shape[1], p.shape[1]};
  };
  MapPairs<Rows, decltype(make)> place{table, make};
  LoraWalker<AsGradients, decltype(place)> walker(config, options, place);
  ModelGradients mapped;
  for_each_tensor(mapped, config, walker);
  return mapped;
}

void merge_lora(const Linear& w, int64_t begin, int64_t count, float* out) {
  const int64_t rank = w.lora_a.rows, cols = w.weight.cols;
  std::vector<float> a(static_cast<size_t>(rank * cols)), b(static_cast<size_t>(rank));
  for (int64_t i = 0; i < rank; ++i) {
    dequantize_weight(Isa::kPortable, w.lora_a, i, 0, cols, a.data() + i * cols);
  }
  std::vector<double> sum(static_cast<size_t>(cols));
  for (int64_t r = begin; r < begin + count; ++r, out += cols) {
    dequantize_weight(Isa::kPortable, w.weight, r, 0, cols, out);
    if (rank == 0) continue;
    dequantize_weight(Isa::kPortable, w.lora_b, r, 0, rank, b.data());
    std::fill(sum.begin(), sum.end(), 0.0);
    for (int64_t i = 0; i < rank; ++i) {
      const double factor = b[static_cast<size_t>(i)];
      for (int64_t k = 0; k < cols; ++k)
        sum[static_cast<size_t>(k)] += factor * a[static_cast<size_t>(i * cols + k)];
    }
    for (int64_t k = 0; k < cols; ++k) {
      out[k] = static_cast<float>(out[k] + double{w.lora_scale} * sum[static_cast<size_t>(k)]);
    }
  }
}

// A visitor of tensor_walk.h.
class MergedWeights::Collector {
 public:
  explicit Collector(std::vector<Source>& sources) : sources_(sources) {}

  void matrix(const std::string&, Linear& w, int64_t, int64_t, ParameterKind) {
    sources_.push_back({w, {}});
  }
  void experts(const std::string&, const std::string&, Experts& w, int64_t, int64_t) {
    for (size_t e = 0; e < w.weight.size(); ++e) {
      Linear& expert = sources_.emplace_back().matrix;
      expert.weight = w.weight[e];
      if (w.lora_a.empty()) continue;
      expert.lora_a = w.lora_a[e], expert.lora_b = w.lora_b[e], expert.lora_scale = w.lora_scale;
    }
  }
  void vector(const std::string&, std::span<const float>& w, const std::vector<int64_t>&,
              ParameterKind) {
    sources_.push_back({{}, w});
  }
  void kv_b(const std::string&, int64_t, MlaWeights& w) { sources_.push_back({w.kv_b_proj, {}}); }
  bool has_mtp(int64_t) const { return true; }
  void mtp_norm(const std::string&, std::span<const float>& w, int64_t, std::span<const float>) {
    sources_.push_back({{}, w});
  }
  void mtp_copies(const std::string&) {}

 private:
  std::vector<Source>& sources_;
};

MergedWeights::MergedWeights(const ModelConfig& config, const ParameterTable& full,
                             const ModelTensors<AsWeights>& base, const LoraOptions& options,
                             const ParameterTable& table, std::span<const float> master)
    : full_(full) {
  expect_declared_mtp(config, base);
  ModelTensors<AsWeights> views = base;
  attach_lora(config, options, table, master, {}, views);
  Collector collector(sources_);
  for_each_tensor(views, config, collector);
  FATHOM_CHECK(sources_.size() == full.parameters.size(), sources_.size());
}

void MergedWeights::read(const Parameter& p, int64_t begin, std::span<float> out) const {
  const Source& source = sources_[static_cast<size_t>(&p - full_.parameters.data())];
  if (source.matrix.weight.empty()) {
    const auto part = source.vector.subspan(static_cast<size_t>(begin), out.size());
    std::copy(part.begin(), part.end(), out.begin());
    return;
  }
  const int64_t cols = source.matrix.weight.cols, end = begin + std::ssize(out),
                first = begin / cols, last = (end + cols - 1) / cols;
  std::vector<float> rows(static_cast<size_t>((last - first) * cols));
  merge_lora(source.matrix, first, last - first, rows.data());
  std::copy_n(rows.begin() + (begin - first * cols), out.size(), out.begin());
}

}  // namespace fathom
