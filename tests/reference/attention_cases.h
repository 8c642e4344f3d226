// What the tests of attention and of its gradient share: the forms this family needs, and a cache
// of keys and values.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/attention.h"
#include "kernels/cached_rows.h"
#include "tests/reference/test_rows.h"

namespace fathom::reference {

struct Form {
  std::string name;
  int64_t heads, kv_heads, key_dim, rope_dim, value_dim;
  bool absorbed;  // the value is the beginning of the key row
  int64_t width() const { return heads * (key_dim + rope_dim); }
};

inline const Form kGqa{"GQA", 6, 2, 20, 0, 20, false};
inline const Form kMha{"MHA", 3, 3, 16, 0, 24, false};
inline const Form kExpanded{"MLA expanded", 4, 4, 24, 8, 12, false};
inline const Form kAbsorbed{"MLA absorbed", 4, 1, 40, 0, 32, true};
inline const Form kManyHeads{"more heads than a tile", 80, 1, 12, 0, 8, true};
// Whole vectors of query rows, several at a time, and dims that fill no pair, vector or chunk.
inline const Form kOddDims{"MLA absorbed, odd", 40, 1, 101, 33, 35, true};
inline const Form kOddFew{"MLA absorbed, odd, few heads", 4, 1, 101, 33, 35, true};
inline const std::vector<Form> kForms = {kGqa,       kMha,     kExpanded, kAbsorbed,
                                         kManyHeads, kOddDims, kOddFew};

// With head dims that an int8 cache takes; the last blocks are partly filled.
inline const std::vector<Form> kInt8Forms = {{"GQA", 6, 2, 64, 0, 64, false},
                                             {"GQA, wider keys", 4, 2, 128, 0, 64, false},
                                             {"two parts", 3, 3, 64, 12, 128, false},
                                             {"MLA absorbed", 16, 1, 73, 0, 64, true},
                                             {"MLA absorbed, odd", 4, 1, 70, 0, 50, true},
                                             {"latent of 40", 3, 1, 52, 0, 40, true},
                                             {"more heads than a tile", 140, 1, 72, 0, 20, true}};

// A cache of `keys` keys in blocks that lie backwards and with holes; every byte that is no key is
// NaN.
class Cache {
 public:
  Cache(const Form& form, DType dtype, int64_t keys) {
    const int64_t blocks = (keys + kKeyBlock - 1) / kKeyBlock;
    for (int64_t b = 0; b < blocks; ++b) block_rows_.push_back((2 * (blocks - b) - 1) * kKeyBlock);
    const int64_t rows = 2 * blocks * kKeyBlock;
    view.key = add_part(key_, dtype, rows, keys, form.kv_heads, form.key_dim, 1);
    if (form.rope_dim > 0) view.key_rope = add_part(rope_, dtype, rows, keys, 1, form.rope_dim, 2);
    view.value = form.absorbed
                     ? view.key
                     : add_part(value_, dtype, rows, keys, form.kv_heads, form.value_dim, 3);
    view.value.dim = form.value_dim;
    view.block_rows = block_rows_;
  }
  Cache(const Cache&) = delete;
  Cache& operator=(const Cache&) = delete;

  void set(const CachedPart& part, int64_t key, int64_t kv_head, int64_t i, float x) {
    const int64_t row = block_rows_[static_cast<size_t>(key / kKeyBlock)] + key % kKeyBlock;
    if (part.dtype == DType::kI8) {
      auto* at = const_cast<std::byte*>(part.data) + row * part.row_stride;
      const int64_t width = int8_width(part);
      std::vector<float> values(static_cast<size_t>(width));
      load_cached_row(Isa::kPortable, part.dtype, at, width, 0, width, values.data());
      values[static_cast<size_t>(kv_head * part.head_stride + i)] = x;
      return store_cached_row(Isa::kPortable, part.dtype, values.data(), width, at);
    }
    const int64_t index = row * part.row_stride + kv_head * part.head_stride + i;
    std::byte* data = const_cast<std::byte*>(part.data);
    const bf16 half = f32_to_bf16(x);
    if (part.dtype == DType::kBF16) {
      std::memcpy(data + index * 2, &half, 2);
    } else {
      std::memcpy(data + index * 4, &x, 4);
    }
  }

  AttentionKeys view;

 private:
  CachedPart add_part(std::vector<float>& memory, DType dtype, int64_t rows, int64_t keys,
                      int64_t heads, int64_t dim, uint64_t stream) {
    if (dtype == DType::kI8) return add_int8_part(memory, rows, keys, heads, dim, stream);
    const int64_t stride = heads * dim + 5;
    memory.assign(static_cast<size_t>(rows * stride), std::numeric_limits<float>::quiet_NaN());
    // NaN as bf16 too
    if (dtype == DType::kBF16) std::memset(memory.data(), 0xff, memory.size() * 4);
    const CachedPart part{dtype, reinterpret_cast<const std::byte*>(memory.data()), stride,
                          heads > 1 ? dim : 0, dim};
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t i = 0; i < heads * dim; ++i) {
        set(part, j, i / dim, i % dim, noise(stream, j * heads * dim + i));
      }
    }
    return part;
  }

  CachedPart add_int8_part(std::vector<float>& memory, int64_t rows, int64_t keys, int64_t heads,
                           int64_t dim, uint64_t stream) {
    const int64_t width = heads * dim, stride = cached_row_bytes(DType::kI8, width);
    memory.resize(static_cast<size_t>(rows * stride / 4 + 1));
    std::memset(memory.data(), 0xff, memory.size() * 4);  // scales are NaN
    auto* base = reinterpret_cast<std::byte*>(memory.data());
    std::vector<float> values(static_cast<size_t>(width));
    for (int64_t j = 0; j < keys; ++j) {
      for (int64_t i = 0; i < width; ++i)
        values[static_cast<size_t>(i)] = noise(stream, j * width + i);
      const int64_t row = block_rows_[static_cast<size_t>(j / kKeyBlock)] + j % kKeyBlock;
      store_cached_row(Isa::kPortable, DType::kI8, values.data(), width, base + row * stride);
    }
    return cached_part(DType::kI8, base, width, 0, heads > 1 ? dim : 0, dim);
  }
  // Codes, zeros and a scale for each 64 of them.
  static int64_t int8_width(const CachedPart& part) {
    int64_t width = part.scales - part.data;
    while (cached_row_bytes(DType::kI8, width) > part.row_stride) --width;
    return width;
  }

  std::vector<int64_t> block_rows_;
  std::vector<float> key_, rope_, value_;
};

inline float scale_of(const Form& form) {
  return 2.0f / std::sqrt(static_cast<float>(form.key_dim + form.rope_dim));
}

}  // namespace fathom::reference
