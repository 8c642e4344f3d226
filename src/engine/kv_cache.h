// The cache: blocks of kKeyBlock token rows for every layer, handed out to sequences. MLA rows are
// [latent | rotated key] (V2 §2.1.2), GQA rows [k | v].
//
// Each layer is one piece [blocks * kKeyBlock, row_width]; block b is rows [b * kKeyBlock, (b + 1)
// * kKeyBlock) of all of them. The memory is reserved at once and taken page by page as rows are
// first written:
// a cache nobody fills costs nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "model/batch.h"
#include "model/model.h"

namespace fathom {

class KvCache {
 public:
  // Room for `tokens` token rows (rounded up to blocks). Throws (exit code 3) with the figures if
  // memory does not suffice. dtype: F32 or BF16. REQUIRES: tokens >= 1.
  KvCache(const Model& model, DType dtype, int64_t tokens);

  static int64_t bytes_per_token(const ModelConfig& config, int64_t cache_layers, DType dtype);

  const KvCacheView& view() const { return view_; }
  int64_t free_blocks() const { return static_cast<int64_t>(free_.size()); }
  int64_t total_blocks() const { return total_blocks_; }
  // Appends blocks to block_rows until it covers `tokens` positions; false (and nothing taken) if
  // too few are free.
  bool reserve(std::vector<int64_t>& block_rows, int64_t tokens);
  // Returns all blocks and empties block_rows.
  void release(std::vector<int64_t>& block_rows);

 private:
  struct Unmap {
    size_t bytes;
    void operator()(std::byte* memory) const;
  };
  KvCacheView view_;
  std::unique_ptr<std::byte, Unmap> memory_;
  int64_t total_blocks_ = 0;
  std::vector<int64_t> free_;  // first rows; the next one to hand out is last
};

}  // namespace fathom
