#include "train/imatrix.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "formats/gguf.h"
#include "formats/gguf_writer.h"

namespace fathom {
namespace {

constexpr std::string_view kSquares = ".in_sum2", kCounts = ".counts";

void put_floats(GgufWriter& writer, const std::string& name, std::vector<int64_t> shape,
                std::vector<float> values) {
  writer.tensor(name, std::move(shape), DType::kF32,
                [values = std::move(values)](const GgufWriter::Put& put) {
                  put(std::as_bytes(std::span(values)));
                });
}

std::vector<float> floats_of(const TensorInfo& tensor, const std::string& place) {
  if (tensor.dtype != DType::kF32)
    fail("{}: tensor {}: type {}, expected F32", place, quoted(tensor.name),
         dtype_name(tensor.dtype));
  std::vector<float> values(tensor.bytes / sizeof(float));
  std::memcpy(values.data(), tensor.data, tensor.bytes);
  for (size_t i = 0; i < values.size(); ++i) {
    if (!(values[i] >= 0) || std::isinf(values[i]))
      fail("{}: tensor {}: element {}: found {}, expected a finite value of at least 0", place,
           quoted(tensor.name), i, values[i]);
  }
  return values;
}

}  // namespace

bool ImportanceRecorder::Sums::seen() const {
  return std::any_of(rows.begin(), rows.end(), [](int64_t n) { return n > 0; });
}

ImportanceRecorder::ImportanceRecorder(Context& ctx, const Model& model)
    : ctx_(ctx), model_(model.checkpoint().path().string()) {
  for (const GgufTensor& t : gguf_tensors(model, model.has_mtp())) {
    // A tied head is the embedding under that name; only the head multiplies.
    if (!t.is_matrix()) continue;
    Sums& sums = sums_[t.name];
    sums.parts = std::ssize(t.parts), sums.cols = t.cols();
    sums.squares.resize(static_cast<size_t>(sums.parts * sums.cols));
    sums.rows.resize(static_cast<size_t>(sums.parts));
    for (int64_t part = 0; part < sums.parts; ++part)
      place_[t.parts[static_cast<size_t>(part)].data] = {&sums, part};
  }
  ctx.observe_inputs([this](const WeightView& weight, ConstRows x) { add(weight, x); });
}

ImportanceRecorder::~ImportanceRecorder() { ctx_.observe_inputs(nullptr); }

void ImportanceRecorder::add(const WeightView& weight, ConstRows x) {
  const auto found = place_.find(weight.data);
  if (found == place_.end()) return;
  const auto [sums, part] = found->second;
  double* squares = sums->squares.data() + part * sums->cols;
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t c = 0; c < x.cols; ++c) {
      const double value = x.row(r)[c];
      squares[c] += value * value;
    }
  }
  sums->rows[static_cast<size_t>(part)] += x.rows;
}

int64_t ImportanceRecorder::tensors() const {
  return std::count_if(sums_.begin(), sums_.end(), [](const auto& s) { return s.second.seen(); });
}

int64_t ImportanceRecorder::unseen_parts() const {
  int64_t count = 0;
  for (const auto& [name, sums] : sums_) {
    if (sums.seen()) count += std::count(sums.rows.begin(), sums.rows.end(), 0);
  }
  return count;
}

void ImportanceRecorder::write(const std::filesystem::path& out, const std::string& dataset,
                               int64_t windows, int64_t window_tokens) const {
  GgufWriter writer;
  writer.key("general.type", "imatrix");
  writer.key("imatrix.datasets", std::vector<std::string>{dataset});
  writer.key("imatrix.chunk_count", static_cast<uint32_t>(windows));
  writer.key("imatrix.chunk_size", static_cast<uint32_t>(window_tokens));
  for (const auto& [name, sums] : sums_) {
    if (!sums.seen()) continue;
    std::vector<float> squares(sums.squares.begin(), sums.squares.end());
    const auto bad =
        std::find_if(squares.begin(), squares.end(), [](float x) { return !std::isfinite(x); });
    if (bad != squares.end()) {
      throw Error(ExitCode::kDiverged,
                  fmt::format("{}: what goes into {}: column {}: sum of squares {}, expected a "
                              "finite one (the weights or the file are damaged; try `fathom show "
                              "--check-finite`)",
                              model_, quoted(name), (bad - squares.begin()) % sums.cols, *bad));
    }
    put_floats(writer, name + std::string(kSquares), {sums.parts, sums.cols}, std::move(squares));
    std::vector<float> rows;
    for (const int64_t n : sums.rows) rows.push_back(static_cast<float>(n));
    put_floats(writer, name + std::string(kCounts), {sums.parts, 1}, std::move(rows));
  }
  writer.write(out);
}

Importance read_imatrix(const std::filesystem::path& path) {
  const Gguf gguf = Gguf::open(path);
  const std::string* type = gguf.optional_string("general.type");
  if (type == nullptr || *type != "imatrix")
    fail(
        "{}: key 'general.type': expected 'imatrix' (a file that fathom imatrix or llama.cpp made)",
        gguf.path());
  Importance importance;
  for (const TensorInfo& t : gguf.tensors()) {
    if (!t.name.ends_with(kSquares)) continue;
    const std::string name = t.name.substr(0, t.name.size() - kSquares.size());
    const TensorInfo* counts_tensor = gguf.find(name + std::string(kCounts));
    if (counts_tensor == nullptr)
      fail("{}: tensor {}: missing", gguf.path(), quoted(name + std::string(kCounts)));
    std::vector<float> values = floats_of(t, gguf.path());
    const std::vector<float> counts = floats_of(*counts_tensor, gguf.path());
    if (counts.empty() || values.size() % counts.size() != 0)
      fail("{}: tensor {}: {} values for {} counts, expected a multiple", gguf.path(),
           quoted(t.name), values.size(), counts.size());
    const size_t cols = values.size() / counts.size();
    for (size_t i = 0; i < values.size(); ++i) {
      const float count = counts[i / cols];
      values[i] = count > 0 ? values[i] / count : 0.0f;
    }
    importance.emplace(name, std::move(values));
  }
  if (importance.empty()) fail("{}: no tensor ends in {}", gguf.path(), kSquares);
  return importance;
}

}  // namespace fathom
