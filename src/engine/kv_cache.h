// The cache: blocks of kKeyBlock token rows for every layer, handed out to sequences. MLA rows are
// [latent | rotated key] (V2 §2.1.2), GQA rows [k | v].
//
// Each layer is one piece [blocks * kKeyBlock, row_width]; block b is the kKeyBlock rows from
// b * kKeyBlock on, of all of them. The memory is reserved at once and taken page by page as rows
// are first written: a cache nobody fills costs nothing. Who owns which block, and which content is
// kept for later, is the BlockPool's business.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/block_pool.h"
#include "model/batch.h"
#include "model/model.h"

namespace fathom {

// Types that a cache of the model may have: F32, BF16 and, where no block of kInt8Block values
// straddles heads, I8.
bool takes_cache_dtype(const ModelConfig& config, DType dtype);
void check_cache_dtype(const ModelConfig& config, DType dtype);  // throws (exit code 2)

class KvCache {
 public:
  // Room for `tokens` token rows (rounded up to blocks). Throws (exit code 3) with the figures if
  // memory does not suffice; check_cache_dtype(). REQUIRES: tokens >= 1.
  KvCache(const Model& model, DType dtype, int64_t tokens);

  static int64_t bytes_per_token(const ModelConfig& config, int64_t cache_layers, DType dtype);

  const KvCacheView& view() const { return view_; }
  BlockPool& pool() { return pool_; }
  const BlockPool& pool() const { return pool_; }

  // Appends blocks to block_rows (their first rows) until it covers `tokens` positions; false (and
  // nothing taken) if too few are to be had. Throws std::bad_alloc only before anything is taken.
  bool reserve(std::vector<int64_t>& block_rows, int64_t tokens);
  // Gives all blocks back, deepest first, and empties block_rows.
  void release(std::vector<int64_t>& block_rows);
  // The first `rows` rows of one block, of all layers, into another.
  void copy_rows(int64_t from_block_row, int64_t to_block_row, int64_t rows);

 private:
  struct Unmap {
    size_t bytes;
    void operator()(std::byte* memory) const;
  };
  KvCacheView view_;
  std::unique_ptr<std::byte, Unmap> memory_;
  BlockPool pool_{0};
};

}  // namespace fathom
