#include "engine/kv_cache.h"

#include <sys/mman.h>

#include <cstring>

#include "base/check.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/memory.h"
#include "kernels/cached_rows.h"

namespace fathom {

void KvCache::Unmap::operator()(std::byte* memory) const { munmap(memory, bytes); }

int64_t KvCache::bytes_per_token(const ModelConfig& config, int64_t cache_layers, DType dtype) {
  return cache_layers * cached_row_bytes(dtype, config.cache_width());
}

bool takes_cache_dtype(const ModelConfig& config, DType dtype) {
  if (dtype == DType::kI8) return config.is_mla() || config.head_dim % kInt8Block == 0;
  return dtype == DType::kF32 || dtype == DType::kBF16;
}

void check_cache_dtype(const ModelConfig& config, DType dtype) {
  if (takes_cache_dtype(config, dtype)) return;
  if (dtype != DType::kI8)
    fail("cache: type: found {}, expected F32, BF16 or I8", dtype_name(dtype));
  fail("cache: type I8: found head_dim {}, expected a multiple of {}", config.head_dim, kInt8Block);
}

KvCache::KvCache(const Model& model, DType dtype, int64_t tokens) {
  check_cache_dtype(model.config(), dtype);
  FATHOM_CHECK(tokens >= 1, tokens);
  const int64_t token_bytes = bytes_per_token(model.config(), model.cache_layers(), dtype);
  const auto rows = Checked(static_cast<uint64_t>(tokens)).align_up(kKeyBlock).value();
  const auto bytes =
      rows ? (Checked(*rows) * Checked(static_cast<uint64_t>(token_bytes))).value() : std::nullopt;
  const auto available = available_memory();
  if (!bytes || *bytes > INT64_MAX || (available && *bytes > *available)) {
    fail_resource("cache: {} tokens of {} bytes ({}): found {} bytes available, expected {}",
                  tokens, token_bytes, dtype_name(dtype),
                  available ? fmt::to_string(*available) : "an unknown number of",
                  bytes ? fmt::format("at least {}", *bytes) : "more than 64 bits count");
  }
  void* memory = mmap(nullptr, *bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED)
    fail_resource("cache: {} tokens: found no {} bytes of address space", tokens, *bytes);
  // spares decode a TLB miss per row; a refusal is harmless
  madvise(memory, *bytes, MADV_HUGEPAGE);
  memory_ = {static_cast<std::byte*>(memory), Unmap{*bytes}};

  view_.dtype = dtype;
  view_.row_width = model.config().cache_width();
  const int64_t layer_bytes =
      static_cast<int64_t>(*rows) * cached_row_bytes(dtype, view_.row_width);
  for (int64_t layer = 0; layer < model.cache_layers(); ++layer) {
    view_.layers.push_back(memory_.get() + layer * layer_bytes);
  }
  pool_ = BlockPool(static_cast<int64_t>(*rows) / kKeyBlock);
}

bool KvCache::reserve(std::vector<int64_t>& block_rows, int64_t tokens) {
  const int64_t wanted = (tokens + kKeyBlock - 1) / kKeyBlock;
  if (wanted - std::ssize(block_rows) > pool_.available()) return false;
  block_rows.reserve(static_cast<size_t>(wanted));
  while (std::ssize(block_rows) < wanted) block_rows.push_back(pool_.take() * kKeyBlock);
  return true;
}

void KvCache::release(std::vector<int64_t>& block_rows) {
  for (size_t i = block_rows.size(); i-- > 0;) pool_.release(block_rows[i] / kKeyBlock);
  block_rows.clear();
}

void KvCache::copy_rows(int64_t from_block_row, int64_t to_block_row, int64_t rows) {
  const int64_t bytes = cached_row_bytes(view_.dtype, view_.row_width);
  for (std::byte* layer : view_.layers) {
    std::memcpy(layer + to_block_row * bytes, layer + from_block_row * bytes,
                static_cast<size_t>(rows * bytes));
  }
}

}  // namespace fathom
