// Routed experts of a model that is larger than memory: a bounded store of them, read from the
// model's files as the router asks.
//
// Everything a token always needs stays as it is, mapped (weights.h). Experts get slots of one
// size in memory of the cache's own, filled by large direct reads (base/direct_file.h) from several
// threads at once; which expert leaves is expert_slots.h's choice. As soon as a layer's router has
// chosen, all its missing experts are asked for, before the first is multiplied and before the
// shared experts are.
//
// Why not leave it to the page cache, which would be less to write: a page fault reads little
// (128 KiB with the usual read-ahead), one at a time for each thread, so a disk is used at a
// fraction of its rate; what leaves is chosen by the system, which knows no experts, and takes
// weights that every token needs; a failed read is a signal, not an error; and hits cannot be
// counted. What the system could do better, it still does: the mapped rest can be dropped and read
// again, so a plan that was too narrow costs time and not the process. Measured in docs/log.md.
//
// The bytes that are multiplied are the file's either way: results are bit-equal to those of a
// model that fits.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "formats/checkpoint.h"
#include "model/config.h"
#include "model/linear.h"

namespace fathom {

// What the files say of routed experts, those of multi-token prediction included.
struct ExpertLayout {
  int64_t experts = 0;       // over all layers
  uint64_t bytes = 0;        // of all
  uint64_t slot_bytes = 0;   // memory one takes in the cache
  uint64_t token_bytes = 0;  // of those one token runs through (without multi-token prediction)
  int32_t least_slots = 0;   // below that the cache cannot work
};
// Absent without routed experts, and where the files hold them in a way the cache cannot read:
// missing, or at addresses that their type cannot be used at.
std::optional<ExpertLayout> expert_layout(const Checkpoint& checkpoint, const ModelConfig& config);

// Bytes a second that expert after expert gives when read as the cache reads, in random order, for
// about `seconds`. Throws as reads do.
double measure_expert_reads(const Checkpoint& checkpoint, const ModelConfig& config,
                            double seconds);

struct ExpertCacheStats {
  int64_t hits = 0, misses = 0;  // experts asked for, each once per layer and step
  uint64_t read_bytes = 0;       // from the files
  double wait_seconds = 0;       // that the computation waited for them
  double hit_rate() const {
    return hits + misses > 0 ? static_cast<double>(hits) / static_cast<double>(hits + misses) : 0;
  }
  ExpertCacheStats operator-(const ExpertCacheStats& o) const {
    return {hits - o.hits, misses - o.misses, read_bytes - o.read_bytes,
            wait_seconds - o.wait_seconds};
  }
};

// Rows of one layer, sorted by expert, as far as their experts are there.
struct ExpertWave {
  int64_t row = 0, rows = 0;         // [row, row + rows) of the sorted rows
  std::span<const int64_t> offsets;  // [n_routed_experts + 1], from 0: of these rows
  const Experts *gate_proj = nullptr, *up_proj = nullptr, *down_proj = nullptr;
};

class ExpertCache {
 public:
  // Takes at most `bytes`. REQUIRES: expert_layout() of the same and
  // bytes >= least_slots * slot_bytes. Throws (exit code 3) if the system does not give them.
  ExpertCache(const Checkpoint& checkpoint, const ModelConfig& config, uint64_t bytes);
  ~ExpertCache();
  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;

  // Starts to read what the rows of a layer need: layer in [0, num_hidden_layers], the last one
  // being multi-token prediction; offsets [n_routed_experts + 1] as sort_by_expert() makes them.
  // The weights are those of the mapping: their shapes and types are taken over.
  void begin(int64_t layer, std::span<const int64_t> offsets, const Experts& gate_proj,
             const Experts& up_proj, const Experts& down_proj);
  // The next rows, when their experts are there; absent after the last. All that are asked for
  // come as one wave if slots suffice and they are few; else waves, one being read while the one
  // before is multiplied. A wave's weights are valid until the next call. Throws the error of a
  // read; after that begin() may be called again.
  // begin() and next(): one thread. They allocate nothing after the first step.
  std::optional<ExpertWave> next();

  ExpertCacheStats stats() const;
  int32_t slots() const;
  uint64_t bytes() const;  // held

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace fathom
