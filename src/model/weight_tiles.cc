#include "model/weight_tiles.h"

#include "kernels/gemm.h"
#include "model/tensor_walk.h"

namespace fathom {
namespace {

// The row of `whole` at which `part` begins; -1 if its bytes are others.
int64_t row_of(const WeightView& whole, const WeightView& part) {
  const std::less<const std::byte*> before;
  if (whole.dtype != part.dtype || whole.cols != part.cols || before(part.data, whole.data) ||
      !before(part.data, whole.row(whole.rows)))
    return -1;
  return (part.data - whole.data) / row_bytes(whole.dtype, whole.cols);
}

// Calls back for each weight that linear layers multiply with and that has tiles of its own; those
// within another's get their place there. A visitor of tensor_walk.h.
class Weights {
 public:
  Weights(const ModelWeights& all, const ModelConfig& config, std::function<void(WeightView&)> each)
      : all_(all), config_(config), each_(std::move(each)) {}

  void matrix(const std::string&, Linear& w, int64_t, int64_t, ParameterKind) {
    // the embedding is looked up by rows, unless it is the head as well
    if (&w != &all_.embed_tokens || config_.tie_word_embeddings) each_(w.weight);
  }
  void experts(const std::string&, const std::string&, Experts& w, int64_t, int64_t) {
    for (WeightView& view : w.weight) each_(view);
  }
  void vector(const std::string&, std::span<const float>&, const std::vector<int64_t>&,
              ParameterKind) {}
  void kv_b(const std::string&, int64_t, MlaWeights& w) {
    const WeightView& whole = w.kv_b_proj.weight;
    each_(w.kv_b_proj.weight);
    for (WeightView& view : w.absorbed.k_up_transposed) each_(view);
    for (WeightView& view : w.absorbed.v_up) {
      // of the same bytes, and so of the same tiles where it begins with one
      const int64_t row = row_of(whole, view);
      if (row % 16 == 0) {
        view.tiles = whole.slice(row, view.rows).tiles;
      } else {
        each_(view);
      }
    }
  }
  bool has_mtp(int64_t) const { return all_.mtp.has_value(); }
  void mtp_norm(const std::string&, std::span<const float>&, int64_t, std::span<const float>) {}
  void mtp_copies(const std::string&) {}

 private:
  const ModelWeights& all_;
  const ModelConfig& config_;
  std::function<void(WeightView&)> each_;
};

void for_each_weight(ModelWeights& w, const ModelConfig& config,
                     std::function<void(WeightView&)> each) {
  Weights weights(w, config, std::move(each));
  for_each_tensor(w, config, weights);
}

uint64_t aligned_bytes(const WeightView& w) {
  return static_cast<uint64_t>(bytes_of_tiles(w) + 63) / 64 * 64;
}

}  // namespace

uint64_t bytes_of_tiles(ModelWeights& w, const ModelConfig& config) {
  uint64_t bytes = 0;
  for_each_weight(w, config, [&](WeightView& view) { bytes += aligned_bytes(view); });
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
  for_each_weight(w, config, [&](WeightView& view) {
    if (bytes_of_tiles(view) == 0) return;
    make_tiles(ctx, view, next);
    next += aligned_bytes(view);
    done += aligned_bytes(view);
    if (progress) progress(done);
  });
  // all or nothing
  next -= done;
  for_each_weight(w, config, [&](WeightView& view) {
    if (bytes_of_tiles(view) == 0) return;
    view.tiles = next;
    next += aligned_bytes(view);
  });
  w.tiles = std::move(memory);
}

}  // namespace fathom
