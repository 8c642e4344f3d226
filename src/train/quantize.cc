#include "train/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/check.h"
#include "base/error.h"
#include "kernels/quantize.h"
#include "kernels/quantizer.h"

namespace fathom {
namespace {

constexpr int64_t kSlabValues = 4 << 20;

// Slab by slab through one tensor.
class TensorWriter {
 public:
  TensorWriter(Context& ctx, const GgufSource& source, const GgufTensor& tensor,
               const float* importance, StoredTensor& report)
      : ctx_(ctx),
        source_(source),
        tensor_(tensor),
        importance_(importance),
        report_(report),
        type_(report.type.type),
        cols_(tensor.cols()),
        buffers_(static_cast<size_t>(ctx.pool().threads())) {}

  // progress(bytes of this tensor so far)
  void write(const GgufWriter::Put& put, const std::function<void(uint64_t)>& progress) {
    const int64_t rows = tensor_.rows(), slab_rows = std::max<int64_t>(1, kSlabValues / cols_);
    uint64_t done = 0;
    for (int64_t begin = 0; begin < rows; begin += slab_rows) {
      const int64_t count = std::min(slab_rows, rows - begin);
      slab_.resize(static_cast<size_t>(count * row_bytes(type_, cols_)));
      if (dtype_info(type_).computable) {
        quantize(begin, count);
      } else {
        copy(begin, count);  // integers
      }
      put(slab_);
      progress(done += slab_.size());
    }
  }

 private:
  struct RowResult {
    double error = 0, norm = 0;
    int64_t bad = -1;  // column of the first value that cannot be stored
  };

  std::byte* slab_row(int64_t i) { return slab_.data() + i * row_bytes(type_, cols_); }

  // That of the matrix row r lies in.
  const float* importance_of(int64_t r) const {
    if (importance_ == nullptr) return nullptr;
    return importance_ + r / tensor_.shape[tensor_.shape.size() - 2] * cols_;
  }

  void copy(int64_t begin, int64_t count) {
    const auto bytes = static_cast<size_t>(row_bytes(type_, cols_));
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(slab_row(i), tensor_.stored_row(begin + i), bytes);
  }

  void quantize(int64_t begin, int64_t count) {
    results_.assign(static_cast<size_t>(count), {});
    const int64_t rows_per_item = std::max<int64_t>(1, 16384 / cols_);
    ctx_.pool().run((count + rows_per_item - 1) / rows_per_item, [&](int64_t item, int worker) {
      const int64_t first = item * rows_per_item, end = std::min(first + rows_per_item, count);
      for (int64_t i = first; i < end; ++i)
        results_[static_cast<size_t>(i)] =
            quantize_one(begin + i, slab_row(i), buffers_[static_cast<size_t>(worker)]);
    });
    for (int64_t i = 0; i < count; ++i) {
      const RowResult& r = results_[static_cast<size_t>(i)];
      if (r.bad >= 0) fail_value(begin + i, r.bad);
      report_.error += r.error;
      report_.norm += r.norm;
    }
  }

  RowResult quantize_one(int64_t r, std::byte* out, std::vector<float>& buffer) {
    buffer.resize(static_cast<size_t>(2 * cols_));
    float* x = buffer.data();
    float* y = x + cols_;
    RowResult result;
    tensor_.read_row(ctx_.isa(), r, x);
    const float limit = largest_magnitude(type_);
    for (int64_t c = 0; c < cols_; ++c) {
      if (!(std::abs(x[c]) <= limit)) {
        result.bad = c;
        return result;
      }
    }
    if (type_ == tensor_.dtype()) {
      std::memcpy(out, tensor_.stored_row(r), static_cast<size_t>(row_bytes(type_, cols_)));
    } else {
      quantize_row(ctx_.isa(), type_, x, importance_of(r), cols_, out);
    }
    dequantize_row(ctx_.isa(), type_, out, cols_, y);
    for (int64_t c = 0; c < cols_; ++c) {
      const double value = x[c], left = value - static_cast<double>(y[c]);
      result.error += left * left;
      result.norm += value * value;
    }
    return result;
  }

  [[noreturn]] void fail_value(int64_t r, int64_t c) {
    std::vector<float> row(static_cast<size_t>(cols_));
    tensor_.read_row(ctx_.isa(), r, row.data());
    fail("{}: tensor {}: row {}, column {}: found {}, expected a finite value of at most {} ({})",
         source_.path(), quoted(tensor_.name), r, c, row[static_cast<size_t>(c)],
         largest_magnitude(type_), dtype_name(type_));
  }

  Context& ctx_;
  const GgufSource& source_;
  const GgufTensor& tensor_;
  const float* importance_;
  StoredTensor& report_;
  DType type_;
  int64_t cols_;
  std::vector<std::vector<float>> buffers_;  // per worker
  std::vector<std::byte> slab_;
  std::vector<RowResult> results_;
};

uint64_t stored_bytes(const GgufTensor& t, DType type) {
  return static_cast<uint64_t>(t.rows() * row_bytes(type, t.cols()));
}

// Of this tensor, checked; null if there is none or it would do nothing.
const float* find_importance(const Importance* importance, const GgufSource& source,
                             const GgufTensor& t) {
  if (importance == nullptr || !t.is_matrix()) return nullptr;
  const auto found = importance->find(t.name);
  if (found == importance->end()) return nullptr;
  const int64_t expected = t.rows() / t.shape[t.shape.size() - 2] * t.cols();
  if (std::ssize(found->second) != expected) {
    fail("{}: tensor {}: importance of {} columns, expected {} (made with another model?)",
         source.path(), quoted(t.name), found->second.size(), expected);
  }
  return found->second.data();
}

void expect_room(const std::filesystem::path& out, uint64_t bytes) {
  std::error_code error;
  const std::filesystem::path folder = out.parent_path().empty() ? "." : out.parent_path();
  const auto space = std::filesystem::space(folder, error);
  if (!error && space.available < bytes)
    fail_resource("{}: {} bytes free on its disk, expected {} for the file", out.string(),
                  space.available, bytes);
}

}  // namespace

uint64_t quantized_bytes(const GgufSource& source, std::span<const TypeChoice> types) {
  uint64_t bytes = 0;
  for (size_t i = 0; i < types.size(); ++i)
    bytes += stored_bytes(source.tensors()[i], types[i].type);
  return bytes;
}

std::vector<StoredTensor> write_gguf(Context& ctx, const GgufSource& source,
                                     const std::filesystem::path& out,
                                     const QuantizeOptions& options) {
  const std::vector<GgufTensor>& tensors = source.tensors();
  FATHOM_CHECK(options.types.size() == tensors.size(), options.types.size(), tensors.size());
  GgufWriter writer;
  source.put_metadata(writer);
  writer.key("general.file_type", options.file_type);
  writer.key("general.quantization_version", uint32_t{2});
  std::vector<StoredTensor> reports(tensors.size());
  uint64_t done = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const GgufTensor& t = tensors[i];
    const float* importance = find_importance(options.importance, source, t);
    StoredTensor& report = reports[i];
    report = {.name = t.name,
              .type = options.types[i],
              .from = t.dtype(),
              .weighted = importance != nullptr,
              .values = static_cast<uint64_t>(t.rows() * t.cols()),
              .bytes = stored_bytes(t, options.types[i].type)};
    writer.tensor(
        t.name, t.shape, report.type.type,
        [&ctx, &source, &t, importance, &report, &options, &done](const auto& put) {
          const uint64_t before = done;
          TensorWriter(ctx, source, t, importance, report).write(put, [&](uint64_t bytes) {
            options.progress(done = before + bytes);
          });
        });
  }
  expect_room(out, writer.file_bytes());
  writer.write(out);
  return reports;
}

}  // namespace fathom
