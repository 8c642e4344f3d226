// One update of all parameters from their gradients: clip by the global norm, then AdamW; or, for
// the matrices of the layers, Muon (muon.h). Embedding, head, router, norms and biases are AdamW's
// always.
//
//   coefficient = min(1, clip / (norm + 1e-6)),  norm = sqrt of the sum of all gradients' squares
//
// A gradient whose norm is not finite changes nothing: the step is skipped and counted
// (robustness: five in a row end the run).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model/parameters.h"
#include "tensor/context.h"

namespace fathom {

enum class OptimizerKind { kAdamW, kMuon };

// Parameters that are treated in their own way.
struct ParameterGroup {
  std::vector<std::string> match;                     // parts of names, or "all" (name_contains())
  double lr_scale = 1;                                // of the schedule's learning rate
  std::optional<double> weight_decay = std::nullopt;  // absent: as without the group
};

struct OptimizerOptions {
  OptimizerKind kind = OptimizerKind::kAdamW;
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double muon_momentum = 0.95;
  double weight_decay = 0.1;  // of matrices, router and embeddings; norms and biases have none
  double clip = 1.0;          // 0 = off
  std::vector<ParameterGroup> groups = {};  // the first that matches a parameter has it
};

// Elements of a matrix whose products have too few parts for many threads: Muon takes those up to
// here side by side, one thread each.
inline constexpr int64_t kSmallMatrix = 1 << 18;

class Optimizer {
 public:
  // Moments start at 0; their memory is state_bytes(table). first_mtp: offset of the first
  // parameter of the MTP layer, or table.total. Throws if a part of a name in options.groups is in
  // none.
  Optimizer(const ParameterTable& table, const OptimizerOptions& options, int64_t first_mtp);

  struct Result {
    double gradient_norm = 0;  // before clipping
    bool skipped = false;
  };
  // All arrays have the table's layout; compute may be empty. gradients become 0, also of a skipped
  // step. Parameters from offset `end` on are left alone, decay included: the loss did not reach
  // them (an MTP layer that is not trained; it is last in the table). Uses ctx.scratch();
  // allocates nothing.
  Result step(Context& ctx, double lr, int64_t end, std::span<float> master,
              std::span<float> gradients, std::span<bf16> compute);

  // What a checkpoint keeps. Of Muon's matrices the first is the momentum, the second stays 0.
  std::span<float> first_moment() { return m_; }
  std::span<float> second_moment() { return v_; }
  int64_t steps() const { return steps_; }  // taken, without the skipped ones
  void set_steps(int64_t steps) { steps_ = steps; }

  static int64_t state_bytes(const ParameterTable& table) { return table.total * 8; }

 private:
  // Neighbouring parameters that are treated alike, or one matrix of Muon's.
  struct Range {
    int64_t offset, count;
    double lr_scale, weight_decay;
    int64_t muon_rows;  // 0 = AdamW
  };
  void update(Context& ctx, const Range& range, double lr, float gradient_scale, std::span<float> w,
              std::span<float> gradient, std::span<bf16> compute);

  OptimizerOptions options_;
  std::vector<Range> ranges_;
  std::vector<Range> small_;  // Muon's, one thread each
  std::vector<float> m_, v_;
  int64_t steps_ = 0;
};

}  // namespace fathom
