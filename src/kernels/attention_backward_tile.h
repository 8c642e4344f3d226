// Between attention_backward.cc and attention_backward.simd.cc. A tile is up to kTileBlock
// consecutive tokens of one query head, so its keys are whole blocks and one on the diagonal, which
// has as many keys as the tile has tokens.
#pragma once

#include "kernels/attention_tile.h"

namespace fathom {

inline constexpr int64_t kBlockPairs = kTileBlock * kTileBlock;

// First half, one tile: P and dS against all its keys, and the tile's dq.
struct BackwardTile {
  AttentionPart key, key_rope, value;
  const int64_t* block_rows;
  AttentionPart q, dout;  // the tile's tokens of its head
  int64_t index, tokens;  // the tile is tokens [index * kTileBlock, + tokens)
  float scale;
  float* block;        // [kTileBlock, kTileBlock] scratch
  float* transposed;   // [max(q.dim, dout.dim), kTileBlock] scratch
  float* probability;  // [index + 1 blocks, keys, tokens]: P, each block kTileBlock squared
  // the same: dS. Neither is written where no token of a group of 16 sees the key.
  float* dscore;
  // [kTileBlock, dq_stride]: dims of key, then from the next multiple of 16 those of key_rope
  float* dq;
  int64_t dq_stride;
};

// Second half: sums[key, i] += sum over a tile's tokens of weights[key, token] * rows[token, i],
// for one block of keys.
struct BackwardSum {
  const float* weights;  // [keys, tokens]: a block of probability or dscore
  int64_t keys, tokens;
  bool diagonal;
  AttentionPart rows;  // dout or the dims of q that belong to the part
  float* block;        // [kTileBlock, kTileBlock] scratch
  float* sums;         // [kTileBlock, stride]
  int64_t stride;
};

}  // namespace fathom
