// What the tests of attention and of its gradient share: the forms this family needs, and a cache
// of keys and values.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "kernels/attention.h"
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
inline const std::vector<Form> kForms = {kGqa, kMha, kExpanded, kAbsorbed, kManyHeads};

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

  std::vector<int64_t> block_rows_;
  std::vector<float> key_, rope_, value_;
};

inline float scale_of(const Form& form) {
  return 2.0f / std::sqrt(static_cast<float>(form.key_dim + form.rope_dim));
}

}  // namespace fathom::reference
