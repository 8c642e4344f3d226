// A request under way. Internal to the engine.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "kernels/attention.h"

namespace fathom {

struct Engine::Sequence {
  Sequence(uint64_t id_, Request request_, int64_t expand_by)
      : id(id_),
        request(std::move(request_)),
        prompt_tokens(std::ssize(request.prompt)),
        scope(hash_chained({}, std::as_bytes(std::span(request.cache_scope)))),
        sampler(request.sampling, request.prompt, request.max_tokens),
        tokens(std::move(request.prompt)),
        names(tokens),
        expanded_end(fathom::expanded_end(request.opening, expand_by)) {
    for (auto name = names.begin(); name < names.begin() + expanded_end; ++name)
      *name = row_name(*name, true);
  }

  int64_t size() const { return std::ssize(tokens); }
  int64_t generated() const { return size() - prompt_tokens; }
  bool prefilling() const { return computed < prefill_end; }
  // Blocks it will ever need: the last token of the answer is never fed back, so it needs no row.
  int64_t most_blocks() const {
    return (prompt_tokens + request.max_tokens - 1 + kKeyBlock - 1) / kKeyBlock;
  }
  bool still_grows() const { return std::ssize(block_rows) < most_blocks(); }
  // Full blocks that it may find instead of computing them: its last token must be computed.
  int64_t findable_blocks() const { return (size() - 1) / kKeyBlock; }
  std::span<const int32_t> block_names(int64_t block) const {
    return std::span(names).subspan(static_cast<size_t>(block * kKeyBlock), kKeyBlock);
  }
  // Those behind the first `found` blocks.
  std::span<const int32_t> findable_names(int64_t found) const {
    return std::span(names)
        .first(static_cast<size_t>(size() - 1))
        .subspan(static_cast<size_t>(found * kKeyBlock));
  }
  const Hash128& hash_before(int64_t block) const {
    return block == 0 ? scope : hashes[static_cast<size_t>(block - 1)];
  }
  int64_t block_before(int64_t block) const {
    return block == 0 ? BlockPool::kNone : block_rows[static_cast<size_t>(block - 1)] / kKeyBlock;
  }
  // Why the answer ends with its last token, if it does.
  FinishReason finish_of_last() const {
    const std::vector<int32_t>& stops = request.stop_ids;
    if (std::find(stops.begin(), stops.end(), tokens.back()) != stops.end())
      return FinishReason::kStop;
    return generated() == request.max_tokens ? FinishReason::kLength : FinishReason::kNone;
  }
  // Rows in the cache after the step under way: those of rejected drafts do not count.
  int64_t computed_then() const { return computed + rows - rejected; }
  // Room for all it will ever hold, and the names of the full blocks so far.
  void prepare(int64_t draft_tokens, int64_t kept_states) {
    tokens.reserve(static_cast<size_t>(prompt_tokens + request.max_tokens));
    names.reserve(tokens.capacity());
    hashes.reserve(static_cast<size_t>(most_blocks()));
    block_rows.reserve(static_cast<size_t>(most_blocks()));
    drafts.reserve(static_cast<size_t>(draft_tokens));
    guesses.tokens.reserve(static_cast<size_t>(draft_tokens));
    next_guesses.tokens.reserve(static_cast<size_t>(draft_tokens));
    states.reserve(static_cast<size_t>(kept_states));
    extend_hashes(size() - 1);
  }
  void extend_hashes(int64_t end) {
    for (int64_t block = std::ssize(hashes); (block + 1) * kKeyBlock <= end; ++block)
      hashes.push_back(hash_chained(hash_before(block), std::as_bytes(block_names(block))));
  }

  // A token of the answer, whose row is never an expanded one.
  void push_generated(int32_t token) {
    tokens.push_back(token);
    names.push_back(token);
  }
  void pop_generated() {
    tokens.pop_back();
    names.pop_back();
  }

  uint64_t id;
  Request request;  // without the prompt, which moves into `tokens`
  int64_t prompt_tokens;
  Hash128 scope;
  Sampler sampler;
  std::vector<int32_t> tokens;  // prompt and answer so far
  std::vector<int32_t> names;   // row_name() of each: what the cache knows its row by
  int64_t expanded_end;         // rows before are expanded, if it is fast mode
  std::vector<Hash128> hashes;  // of the full blocks
  std::vector<int64_t> block_rows;
  int64_t computed = 0;     // rows in the cache
  int64_t complete = 0;     // of these, with the MTP layer's row, if that drafts
  int64_t published = 0;    // blocks that can be found
  int64_t prefill_end = 0;  // tokens when it started; rows before are its prompt, or computed again
  PrefixReuse reuse;        // of its first start
  bool cancelled = false;

  Guesses guesses;              // at what follows `tokens`
  std::vector<int32_t> drafts;  // the first of them, for the next step
  std::vector<float> states;    // [computed - complete, hidden_size], what the MTP layer reads
  DraftPace pace;

  // The step under way, from plan() on.
  int64_t rows = 0, size_before = 0, rejected = 0;
  int64_t logit_row = 0;
  bool completes = false;  // the MTP layer's rows, too
  FinishReason finish = FinishReason::kNone;
  Guesses next_guesses;
  bool mtp_guesses = false;
  int64_t next_drafts = 0;  // of next_guesses
};

}  // namespace fathom
