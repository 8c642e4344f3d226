#include "model/weight_tiles.h"

#include "kernels/gemm.h"
#include "model/tensor_walk.h"

namespace fathom {
namespace {

// Made in one loop: so many that threads touch huge pages of their own, but progress is seen.
constexpr uint64_t kBytesAtOnce = 128 << 20;

// The row of `whole` at which `part` begins; -1 if its bytes are others.
int64_t row_of(const WeightView& whole, const WeightView& part) {
  const std::less<const std::byte*> before;
  if (whole.dtype != part.dtype || whole.cols != part.cols || before(part.data, whole.data) ||
      !before(part.data, whole.row(whole.rows)))
    return -1;
  return (part.data - whole.data) / row_bytes(whole.dtype, whole.cols);
}

// Calls back for the weights that linear layers multiply with and that have tiles of their own,
// those of one shape and type together; others lie within another's and get their place there. A
// visitor of tensor_walk.h.
using EachGroup = std::function<void(std::span<WeightView>)>;
class Weights {
 public:
  Weights(const ModelWeights& all, const ModelConfig& config, EachGroup each)
      : all_(all), config_(config), each_(std::move(each)) {}

  void matrix(const std::string&, Linear& w, int64_t, int64_t, ParameterKind) {
    // the embedding is looked up by rows, unless it is the head as well
    if (&w != &all_.embed_tokens || config_.tie_word_embeddings) each_({&w.weight, 1});
  }
  void experts(const std::string&, const std::string&, Experts& w, int64_t, int64_t) {
    each_(w.weight);
  }
  void vector(const std::string&, std::span<const float>&, const std::vector<int64_t>&,
              ParameterKind) {}
  void kv_b(const std::string&, int64_t, MlaWeights& w) {
    const WeightView& whole = w.kv_b_proj.weight;
    each_({&w.kv_b_proj.weight, 1});
    each_(w.absorbed.k_up_transposed);
    if (!w.absorbed.v_up.empty() && row_of(whole, w.absorbed.v_up[0]) < 0)
      return each_(w.absorbed.v_up);
    for (WeightView& view : w.absorbed.v_up) {
      // of the same bytes, and so of the same tiles where it begins with one
      const int64_t row = row_of(whole, view);
      if (row % 16 == 0) {
        view.tiles = whole.slice(row, view.rows).tiles;
      } else {
        each_({&view, 1});
      }
    }
  }
  bool has_mtp(int64_t) const { return all_.mtp.has_value(); }
  void mtp_norm(const std::string&, std::span<const float>&, int64_t, std::span<const float>) {}
  void mtp_copies(const std::string&) {}

 private:
  const ModelWeights& all_;
  const ModelConfig& config_;
  EachGroup each_;
};

void for_each_group(ModelWeights& w, const ModelConfig& config, EachGroup each) {
  Weights weights(w, config, std::move(each));
  for_each_tensor(w, config, weights);
}

}  // namespace

uint64_t bytes_of_tiles(ModelWeights& w, const ModelConfig& config) {
  uint64_t bytes = 0;
  for_each_group(w, config, [&](std::span<WeightView> group) {
    for (const WeightView& view : group) bytes += static_cast<uint64_t>(bytes_of_tiles(view));
  });
  return bytes;
}

void make_tiles(Context& ctx, ModelWeights& w, const ModelConfig& config,
                const std::function<void(uint64_t)>& progress) {
  const uint64_t bytes = bytes_of_tiles(w, config);
  if (bytes == 0) return;
  Arena memory;
  memory.reserve(bytes);
  uint64_t done = 0;
  std::byte* next = memory.allocate(bytes);
  for_each_group(w, config, [&](std::span<WeightView> group) {
    while (!group.empty()) {
      const auto each = static_cast<uint64_t>(bytes_of_tiles(group[0]));
      if (each == 0) return;
      const size_t count = std::min(group.size(), std::max<size_t>(1, kBytesAtOnce / each));
      make_tiles(ctx, group.first(count), next + done);
      group = group.subspan(count);
      done += count * each;
      if (progress) progress(done);
    }
  });
  // all or nothing
  for_each_group(w, config, [&](std::span<WeightView> group) {
    for (WeightView& view : group) {
      if (bytes_of_tiles(view) == 0) continue;
      view.tiles = next;
      next += bytes_of_tiles(view);
    }
  });
  w.tiles = std::move(memory);
}

}  // namespace fathom
