#include "model/parameters.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "base/random.h"
#include "kernels/quantize.h"
#include "model/tensor_walk.h"

namespace fathom {
namespace {

int64_t ceil_to(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

std::string expert_name(const std::string& mlp, int64_t e, const std::string& part) {
  return fmt::format("{}.experts.{}.{}.weight", mlp, e, part);
}

// A visitor of tensor_walk.h that brings every tensor down to one call per name,
// one(name, shape, kind) -> place, and puts that place into the tensor. `Place` says how.
template <class T, class Place>
class Walker {
 public:
  Walker(const ModelConfig& config, Place& place) : config_(config), place_(place) {}

  void matrix(const std::string& name, typename T::Matrix& w, int64_t rows, int64_t cols,
              ParameterKind kind) {
    place_.matrix(name, {rows, cols}, kind, w.weight);
  }
  void experts(const std::string& mlp, const std::string& part, typename T::Experts& w,
               int64_t rows, int64_t cols) {
    w.weight.resize(static_cast<size_t>(config_.n_routed_experts));
    for (size_t e = 0; e < w.weight.size(); ++e) {
      place_.matrix(expert_name(mlp, static_cast<int64_t>(e), part), {rows, cols},
                    ParameterKind::kMatrix, w.weight[e]);
    }
  }
  void vector(const std::string& name, typename T::Vector& w, std::vector<int64_t> shape,
              ParameterKind kind) {
    place_.vector(name, std::move(shape), kind, w);
  }
  void kv_b(const std::string& attn, int64_t, MlaTensors<T>& w) {
    const ModelConfig& c = config_;
    matrix(attn + ".kv_b_proj.weight", w.kv_b_proj,
           c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank,
           ParameterKind::kMatrix);
  }
  bool has_mtp(int64_t) const { return true; }
  void mtp_norm(const std::string& name, typename T::Vector& w, int64_t count, typename T::Vector) {
    vector(name, w, {count}, ParameterKind::kVector);
  }
  void mtp_copies(const std::string&) {}

 private:
  const ModelConfig& config_;
  Place& place_;
};

struct ListPlace {
  ParameterTable table;

  void matrix(const std::string& name, std::vector<int64_t> shape, ParameterKind kind, Rows&) {
    append_parameter(table, name, std::move(shape), kind);
  }
  void vector(const std::string& name, std::vector<int64_t> shape, ParameterKind kind,
              std::span<float>&) {
    append_parameter(table, name, std::move(shape), kind);
  }
};

// Hands out the table's parameters in its own order, which is that of the walk.
class InOrder {
 public:
  explicit InOrder(const ParameterTable& table) : table_(table) {}

 protected:
  const Parameter& next(const std::string& name) {
    FATHOM_CHECK(index_ < table_.parameters.size());
    const Parameter& parameter = table_.parameters[index_++];
    FATHOM_CHECK(parameter.name == name, parameter.name, name);
    return parameter;
  }

 private:
  const ParameterTable& table_;
  size_t index_ = 0;
};

class WeightPlace : public InOrder {
 public:
  WeightPlace(const ParameterTable& table, std::span<const float> master,
              std::span<const bf16> compute)
      : InOrder(table), master_(master), compute_(compute) {
    FATHOM_CHECK(static_cast<int64_t>(master.size()) == table.total, table.total);
  }
  void matrix(const std::string& name, std::vector<int64_t>, ParameterKind, WeightView& view) {
    view = matrix_view(next(name), master_, compute_);
  }
  void vector(const std::string& name, std::vector<int64_t>, ParameterKind,
              std::span<const float>& view) {
    const Parameter& p = next(name);
    view = master_.subspan(static_cast<size_t>(p.offset), static_cast<size_t>(p.count));
  }

 private:
  std::span<const float> master_;
  std::span<const bf16> compute_;
};

class GradientPlace : public InOrder {
 public:
  GradientPlace(const ParameterTable& table, std::span<float> gradients)
      : InOrder(table), gradients_(gradients) {
    FATHOM_CHECK(static_cast<int64_t>(gradients.size()) == table.total, table.total);
  }
  void matrix(const std::string& name, std::vector<int64_t> shape, ParameterKind, Rows& view) {
    view = {gradients_.data() + next(name).offset, shape[0], shape[1], shape[1]};
  }
  void vector(const std::string& name, std::vector<int64_t>, ParameterKind,
              std::span<float>& view) {
    const Parameter& p = next(name);
    view = gradients_.subspan(static_cast<size_t>(p.offset), static_cast<size_t>(p.count));
  }

 private:
  std::span<float> gradients_;
};

// Visits the tensors of a loaded model and copies them, widened, to their places.
class CopyPlace : public InOrder {
 public:
  CopyPlace(const ParameterTable& table, std::span<float> master)
      : InOrder(table), master_(master) {}
  void matrix(const std::string& name, std::vector<int64_t>, ParameterKind,
              const WeightView& view) {
    float* const values = master_.data() + next(name).offset;
    for (int64_t r = 0; r < view.rows; ++r) {
      dequantize_weight(Isa::kPortable, view, r, 0, view.cols, values + r * view.cols);
    }
  }
  void vector(const std::string& name, std::vector<int64_t>, ParameterKind,
              std::span<const float> view) {
    std::copy(view.begin(), view.end(), master_.begin() + next(name).offset);
  }

 private:
  std::span<float> master_;
};

}  // namespace

void append_parameter(ParameterTable& table, std::string name, std::vector<int64_t> shape,
                      ParameterKind kind) {
  int64_t count = 1;
  for (const int64_t d : shape) count *= d;
  table.parameters.push_back({std::move(name), std::move(shape), kind, table.total, count});
  table.total += ceil_to(count, kParameterAlign);
}

bool name_contains(const std::string& name, const std::string& part) {
  return part == "all" || name.find(part) != std::string::npos;
}

WeightView matrix_view(const Parameter& p, std::span<const float> master,
                       std::span<const bf16> compute) {
  const auto offset = static_cast<size_t>(p.offset);
  const bool narrow = !compute.empty();
  return {.dtype = narrow ? DType::kBF16 : DType::kF32,
          .rows = p.shape[0],
          .cols = p.shape[1],
          .data = narrow ? std::as_bytes(compute).data() + offset * sizeof(bf16)
                         : std::as_bytes(master).data() + offset * sizeof(float)};
}

ParameterTable parameter_table(const ModelConfig& config) {
  ListPlace place;
  Walker<AsGradients, ListPlace> walker(config, place);
  ModelGradients unused;
  for_each_tensor(unused, config, walker);
  return std::move(place.table);
}

int64_t first_mtp_offset(const ModelConfig& config, const ParameterTable& table) {
  const std::string layer = fmt::format("model.layers.{}.", config.num_hidden_layers);
  for (const Parameter& p : table.parameters) {
    if (p.name.find(layer) != std::string::npos) return p.offset;
  }
  return table.total;
}

ModelWeights map_weights(const ModelConfig& config, const ParameterTable& table,
                         std::span<const float> master, std::span<const bf16> compute) {
  WeightPlace place(table, master, compute);
  Walker<AsWeights, WeightPlace> walker(config, place);
  ModelWeights weights;
  for_each_tensor(weights, config, walker);
  return weights;
}

ModelGradients map_gradients(const ModelConfig& config, const ParameterTable& table,
                             std::span<float> gradients) {
  GradientPlace place(table, gradients);
  Walker<AsGradients, GradientPlace> walker(config, place);
  ModelGradients mapped;
  for_each_tensor(mapped, config, walker);
  return mapped;
}

void initialise(const ParameterTable& table, double initializer_range, uint64_t seed,
                std::span<float> master) {
  std::fill(master.begin(), master.end(), 0.0f);
  for (const Parameter& p : table.parameters) {
    float* const values = master.data() + p.offset;
    if (p.kind == ParameterKind::kVector) {
      std::fill_n(values, p.count, p.name.ends_with(".bias") ? 0.0f : 1.0f);
    } else if (p.kind != ParameterKind::kBuffer) {
      uint64_t name_key = 0;
      for (const char letter : p.name) {
        name_key = mix_bits(name_key ^ static_cast<unsigned char>(letter));
      }
      const RandomKey key{.seed = seed, .purpose = RandomPurpose::kInit, .sequence = name_key};
      for (int64_t i = 0; i < p.count; ++i) {
        values[i] =
            static_cast<float>(initializer_range * random_normal(key, static_cast<uint64_t>(i)));
      }
    }
  }
}

void expect_declared_mtp(const ModelConfig& config, const ModelTensors<AsWeights>& weights) {
  if (config.num_nextn_predict_layers > 0 && !weights.mtp) {
    fail(
        "model: tensor model.layers.{}.eh_proj.weight: missing, expected the MTP layer that "
        "num_nextn_predict_layers declares (set it to 0 to train without one)",
        config.num_hidden_layers);
  }
}

void copy_weights(const ModelConfig& config, const ParameterTable& table,
                  const ModelTensors<AsWeights>& weights, std::span<float> master) {
  expect_declared_mtp(config, weights);
  ModelTensors<AsWeights> views = weights;
  CopyPlace place(table, master);
  Walker<AsWeights, CopyPlace> walker(config, place);
  for_each_tensor(views, config, walker);
}

}  // namespace fathom
