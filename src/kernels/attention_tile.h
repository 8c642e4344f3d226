// Between attention.cc and what computes a tile, attention.simd.cc and attention_int8.simd.cc. A
// tile is up to kTileQueries query rows, (token, head) pairs that read the same kv head; a segment
// is kTileSegment keys. One call computes one tile over one segment.
#pragma once

#include <stdint.h>

namespace fathom {

inline constexpr int64_t kTileQueries = 128;
// keys, also the dims converted at a time: 16 KiB of f32 that stay in L1
inline constexpr int64_t kTileBlock = 64;
inline constexpr int64_t kTileSegment = 256;  // keys

struct AttentionPart {
  const void* data;  // row 0 of this tile's kv head
  bool is_bf16;
  int64_t row_stride;
  int64_t dim;
  const void* scales = nullptr;  // of an int8 cache, rows row_stride bytes apart
};

struct CachedPart;  // attention.h
struct AttentionKeys;
AttentionPart attention_part(const CachedPart& part, int64_t kv_head);
// Parts that are not all I8 are read as floats, past the end of a row of I8: none may be.
void expect_no_int8(const AttentionKeys& keys);

// How the two products are computed. An element is an f32; in split form a bf16 widened, the odd of
// each pair before the even one; in native form a pair of bf16.
// kInt8: attention_int8.simd.cc.
enum class AttentionForm { kF32, kSplitBf16, kNativeBf16, kInt8 };

struct AttentionTile {
  AttentionForm form;
  AttentionPart key, key_rope, value;
  const int64_t* block_rows;  // of the segment's blocks
  // Row r is token r / heads of the tile; it sees the first visible + r / heads keys of the segment
  // (none if negative).
  int64_t rows, heads, visible;
  int64_t beside;  // keys whose scores share a vector: lane r * beside + i is row r, key i of them
  int64_t lanes;   // rows rounded up to 16
  const float* q;  // [lanes / 16, elements of key.dim, then of key_rope.dim, 16]
  float scale;
  float* block;        // [kTileBlock, kTileBlock] scratch
  float* scores;       // [lanes / 16, kTileSegment, 16] scratch
  float* weights;      // kInt8: scratch, int8_scratch_floats()
  int64_t out_stride;  // value.dim rounded up to 16
  float* out;          // [rows, out_stride]: sum of e^(s - max) * value
  float* max;          // [lanes]
  float* sum;          // [lanes]
};

// Few rows, as of one token and few heads that share keys, would leave most lanes of a score empty.
// In split form only, which brings keys into a block anyway: native form and int8 read them where
// they lie, and F32 is for training, whole sequences.
inline int64_t keys_beside(AttentionForm form, int64_t rows) {
  return form != AttentionForm::kSplitBf16 || rows > 8 ? 1 : rows > 4 ? 2 : 4;
}

// What kInt8 takes, in blocks of kTileBlock dims: queries and scratch.
inline int64_t int8_query_floats(int64_t lanes, int64_t blocks) {
  return lanes * blocks * (kTileBlock + 2);
}
inline int64_t int8_scratch_floats(int64_t lanes, int64_t value_blocks) {
  return lanes * (kTileBlock + 2) + value_blocks * kTileBlock;
}

// q of a tile's rows as AttentionTile has it; lanes without a row are 0. Row r begins at
// q + r / heads * token_stride + r % heads * (key_dim + rope_dim).
struct QueryTile {
  AttentionForm form;
  const float* q;
  int64_t token_stride, rows, heads, beside, key_dim, rope_dim;
  float* out;
};

}  // namespace fathom
