#include "train/optimizer.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "kernels/adamw.h"
#include "train/muon.h"

namespace fathom {
namespace {

// Finds each parameter's group, and knows afterwards which parts of names were of no use.
class Groups {
 public:
  explicit Groups(const std::vector<ParameterGroup>& groups) : groups_(groups) {
    for (const ParameterGroup& group : groups) used_.emplace_back(group.match.size(), false);
  }

  // The first group that matches; a default one if none does.
  ParameterGroup of(const Parameter& p) {
    for (size_t g = 0; g < groups_.size(); ++g) {
      bool matches = false;
      for (size_t i = 0; i < groups_[g].match.size(); ++i) {
        if (name_contains(p.name, groups_[g].match[i])) used_[g][i] = matches = true;
      }
      if (matches) return groups_[g];
    }
    return {};
  }

  void expect_all_used() const {
    for (size_t g = 0; g < groups_.size(); ++g) {
      for (size_t i = 0; i < groups_[g].match.size(); ++i) {
        if (used_[g][i]) continue;
        fail(
            "optimizer.groups: match {}: no parameter of this model that an earlier group leaves, "
            "expected a part of a "
            "name such as 'mlp.experts'",
            quoted(groups_[g].match[i]));
      }
    }
  }

 private:
  const std::vector<ParameterGroup>& groups_;
  std::vector<std::vector<bool>> used_;
};

}  // namespace

Optimizer::Optimizer(const ParameterTable& table, const OptimizerOptions& options,
                     int64_t first_mtp)
    : options_(options),
      m_(static_cast<size_t>(table.total)),
      v_(static_cast<size_t>(table.total)) {
  Groups groups(options.groups);
  for (size_t i = 0; i < table.parameters.size(); ++i) {
    const Parameter& p = table.parameters[i];
    if (p.kind == ParameterKind::kBuffer) continue;
    const ParameterGroup group = groups.of(p);
    const double decay =
        group.weight_decay.value_or(p.kind == ParameterKind::kVector ? 0 : options.weight_decay);
    if (options.kind == OptimizerKind::kMuon && p.kind == ParameterKind::kMatrix) {
      (p.count <= kSmallMatrix ? small_ : ranges_)
          .push_back({p.offset, p.count, group.lr_scale, decay, p.shape[0]});
      continue;
    }
    const int64_t end =
        i + 1 < table.parameters.size() ? table.parameters[i + 1].offset : table.total;
    // The gap behind a parameter is 0 in every array and stays 0.
    const bool new_part = p.offset == first_mtp;  // a border that step() may stop at
    Range* const last = ranges_.empty() ? nullptr : &ranges_.back();
    if (last != nullptr && !new_part && last->muon_rows == 0 && last->lr_scale == group.lr_scale &&
        last->weight_decay == decay && last->offset + last->count == p.offset) {
      last->count = end - last->offset;
    } else {
      ranges_.push_back({p.offset, end - p.offset, group.lr_scale, decay, 0});
    }
  }
  groups.expect_all_used();
}

Optimizer::Result Optimizer::step(Context& ctx, double lr, int64_t end, std::span<float> master,
                                  std::span<float> gradients, std::span<bf16> compute) {
  double squares = 0;
  for (const std::vector<Range>* ranges : {&ranges_, &small_}) {
    for (const Range& r : *ranges) {
      if (r.offset >= end) break;
      squares += sum_of_squares(
          ctx, gradients.subspan(static_cast<size_t>(r.offset), static_cast<size_t>(r.count)));
    }
  }
  Result result{std::sqrt(squares), !std::isfinite(squares)};
  if (result.skipped) {
    std::fill(gradients.begin(), gradients.end(), 0.0f);
    return result;
  }
  ++steps_;
  const double coefficient =
      options_.clip > 0 ? std::min(1.0, options_.clip / (result.gradient_norm + 1e-6)) : 1.0;
  const auto update_range = [&](Context& context, const Range& r) {
    if (r.offset >= end) return;
    const auto at = static_cast<size_t>(r.offset), count = static_cast<size_t>(r.count);
    update(context, r, lr, static_cast<float>(coefficient), master.subspan(at, count),
           gradients.subspan(at, count), compute.empty() ? compute : compute.subspan(at, count));
  };
  for (const Range& r : ranges_) update_range(ctx, r);
  ctx.pool().run(std::ssize(small_), [&](int64_t item, int worker) {
    update_range(ctx.serial(worker), small_[static_cast<size_t>(item)]);
  });
  return result;
}

void Optimizer::update(Context& ctx, const Range& r, double lr, float gradient_scale,
                       std::span<float> w, std::span<float> gradient, std::span<bf16> compute) {
  const auto at = static_cast<size_t>(r.offset), count = static_cast<size_t>(r.count);
  if (r.muon_rows > 0) {
    const int64_t cols = r.count / r.muon_rows;
    const MuonStep step{.lr = static_cast<float>(lr * r.lr_scale),
                        .momentum = static_cast<float>(options_.muon_momentum),
                        .weight_decay = static_cast<float>(r.weight_decay),
                        .gradient_scale = gradient_scale};
    return muon(ctx, step, {w.data(), r.muon_rows, cols, cols}, gradient,
                std::span(m_).subspan(at, count), compute);
  }
  const auto t = static_cast<double>(steps_);
  const AdamWStep step{.lr = static_cast<float>(lr * r.lr_scale),
                       .beta1 = static_cast<float>(options_.beta1),
                       .beta2 = static_cast<float>(options_.beta2),
                       .eps = static_cast<float>(options_.eps),
                       .weight_decay = static_cast<float>(r.weight_decay),
                       .bias1 = static_cast<float>(1 - std::pow(options_.beta1, t)),
                       .bias2 = static_cast<float>(1 - std::pow(options_.beta2, t)),
                       .gradient_scale = gradient_scale};
  adamw(ctx, step, w, gradient, std::span(m_).subspan(at, count), std::span(v_).subspan(at, count),
        compute);
}

}  // namespace fathom
