// Checkpoints of a training run: RUN/step-00001200/, each a Hugging Face folder that any engine
// loads, with what training needs to go on beside it.
//
//   config.json, generation_config.json, tokenizer.json, tokenizer_config.json, recipe.toml
//   model.safetensors       matrices and embeddings in BF16 (F32 if trained in f32), all else F32; DeepSeek's own names, the
//                           MTP layer as V3 stores it, with its copies of embedding and head
//   optimizer.safetensors   master, first_moment, second_moment: the flat F32 arrays of model/parameters.h
//   state.json              counters and data position, the trainer's own
//   manifest.json           sizes and hashes (base/hash.h) of all the others, taken while they were written; written last
//
// A checkpoint counts only if its manifest verifies. It is written as step-N.tmp and renamed when
// all of it is on the disk, so a run killed at any moment finds the one before. Old ones are
// deleted after that, and never below two good ones. Files of any size are written in pieces: no
// second copy of the weights in memory.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "model/parameters.h"

namespace fathom {

struct TrainState {
  int64_t step = 0;
  const ParameterTable* table = nullptr;
  std::span<const float> master, first_moment, second_moment;
  // Instead of `master`, what is made as it is written: elements [begin, begin + out.size()) of a
  // parameter of the table.
  std::function<void(const Parameter& p, int64_t begin, std::span<float> out)> make = nullptr;
  const ModelConfig* config = nullptr;
  bool f32 = false;  // store matrices as F32
  // the table is LoRA's: adapter_model.safetensors instead of model.safetensors
  bool adapter = false;
  std::string state_json;                                       // one object
  std::vector<std::pair<std::string, std::string>> side_files;  // name, contents
};

// Throws: exit code 3 if the disk is full or fails, 4 if a weight is not finite as it would be
// stored, which BF16 rounding can do to the largest floats (nothing is written then). When it
// throws, the checkpoints that were there are there, and no step-N.tmp; only if the last sync alone
// failed, the new one is there too. A good checkpoint of this step is left as it is.
void save_checkpoint(const std::filesystem::path& run, const TrainState& state);

// Deletes all but the last `keep` (at least 2) and `best`, good ones only counted; and leftovers of
// killed saves.
void prune_checkpoints(const std::filesystem::path& run, int64_t keep, std::optional<int64_t> best);

struct FoundCheckpoint {
  std::filesystem::path folder;
  int64_t step = 0;
  std::string state_json;
  std::vector<std::string> damaged;  // newer ones that do not verify, and why
};
// The newest good one; absent if there are none at all. Throws if there are some and none is good,
// or the folder cannot be listed:
// a run must not begin anew on top of one that could not be read.
std::optional<FoundCheckpoint> find_checkpoint(const std::filesystem::path& run);

// What a run is made of must be what the checkpoint was made of: config.json and the side files of
// `state` (tokenizer, recipe, and whatever else the trainer lists there) to the byte. Throws naming
// the first file that differs and where. The arrays are not read.
void expect_same_run(const FoundCheckpoint& found, const TrainState& state);

// Fills the arrays. Throws if the checkpoint is of another model: names, shapes and their order are
// compared with its weights' file.
void load_optimizer(const std::filesystem::path& checkpoint, const ParameterTable& table,
                    std::span<float> master, std::span<float> first_moment,
                    std::span<float> second_moment);

// What the tensors of a checkpoint of this table take on the disk, V3's copies of embedding and
// head included.
uint64_t checkpoint_bytes(const ParameterTable& table, bool f32);

// The model alone, as a Hugging Face folder (model.safetensors, config.json and the side files):
// what to publish.
void write_model_folder(const std::filesystem::path& folder, const TrainState& state);

}  // namespace fathom
