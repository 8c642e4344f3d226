#include "train/balance.h"

#include <algorithm>
#include <numeric>

#include "base/check.h"

namespace fathom {

void update_router_bias(const ParameterTable& table, std::span<const int64_t> expert_tokens,
                        double rate, std::span<float> master) {
  size_t first = 0;
  for (const Parameter& p : table.parameters) {
    if (p.kind != ParameterKind::kBuffer) continue;
    const auto experts = static_cast<size_t>(p.count);
    FATHOM_CHECK(first + experts <= expert_tokens.size(), first, expert_tokens.size());
    const auto counts = expert_tokens.subspan(first, experts);
    const int64_t total = std::accumulate(counts.begin(), counts.end(), int64_t{0});
    for (size_t e = 0; e < experts; ++e) {
      float& bias = master[static_cast<size_t>(p.offset) + e];
      const int64_t above = counts[e] * p.count - total;  // of the mean, exactly
      if (above > 0) bias -= static_cast<float>(rate);
      if (above < 0) bias += static_cast<float>(rate);
    }
    first += experts;
  }
}

std::vector<double> load_max_over_mean(std::span<const int64_t> expert_tokens,
                                       int64_t n_routed_experts) {
  std::vector<double> loads;
  const auto experts = static_cast<size_t>(n_routed_experts);
  for (size_t first = 0; experts > 0 && first < expert_tokens.size(); first += experts) {
    const auto counts = expert_tokens.subspan(first, experts);
    const auto total =
        static_cast<double>(std::accumulate(counts.begin(), counts.end(), int64_t{0}));
    const auto most = static_cast<double>(*std::max_element(counts.begin(), counts.end()));
    loads.push_back(total == 0 ? 0 : most * static_cast<double>(n_routed_experts) / total);
  }
  return loads;
}

}  // namespace fathom
