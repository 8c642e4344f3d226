// Importance matrices: how large the inputs of each linear layer are, column by column, on a
// calibration text. An error in a weight costs in proportion to the square of what it is multiplied
// by, so quantisers weigh errors with the mean square of the column's input (kernels/quantizer.h).
//
// Files are GGUF as llama.cpp writes them: of tensor T the sums of squares "T.in_sum2" [parts,
// cols] and the rows counted "T.counts" [parts, 1], one part per expert or head.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "model/model.h"
#include "train/quantize.h"

namespace fathom {

// While it lives, watches the linear layers that run on ctx and sums what goes into those of the
// model. Expects one caller thread, as the forward pass does. REQUIRES: model and ctx outlive it.
class ImportanceRecorder {
 public:
  ImportanceRecorder(Context& ctx, const Model& model);
  ~ImportanceRecorder();
  ImportanceRecorder(const ImportanceRecorder&) = delete;
  ImportanceRecorder& operator=(const ImportanceRecorder&) = delete;

  // Tensors that have seen at least one row, and parts (experts) of those that have seen none.
  int64_t tensors() const;
  int64_t unseen_parts() const;
  // dataset: name of the text. windows of window_tokens were run. Throws Error, with kDiverged if a
  // sum is not finite.
  void write(const std::filesystem::path& out, const std::string& dataset, int64_t windows,
             int64_t window_tokens) const;

 private:
  struct Sums {
    int64_t parts = 0, cols = 0;
    std::vector<double> squares;  // [parts, cols]
    std::vector<int64_t> rows;    // [parts]
    bool seen() const;
  };
  void add(const WeightView& weight, ConstRows x);

  Context& ctx_;
  const std::string model_;                                      // its path, for messages
  std::map<std::string, Sums> sums_;                             // by GGUF name
  std::map<const std::byte*, std::pair<Sums*, int64_t>> place_;  // of a weight's data
};

// Mean squares, of parts that no row went to 0. Throws Error naming file and tensor.
Importance read_imatrix(const std::filesystem::path& path);

}  // namespace fathom
