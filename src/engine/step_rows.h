// The rows of one step, each in its form of MLA, and the rule that says which form that is.
//
// Fast mode: rows of a request's opening, all before the first answer, are expanded up to a
// multiple of EngineOptions::expand_by (kExpandedRows as a rule); the rest of the opening and all
// that follows is absorbed. Expanding all keys before them pays for about as many rows and more, so
// short prompts, generation and a conversation's later turns are left as they are. The last two
// rows of the opening are always absorbed: a repeated request finds all others in the cache, and
// must not expand thousands of keys for these.
//
// So the form of a row is a function of the request alone, never of chunks, neighbours, the cache,
// preemption or drafts: a row that was generated has the same form when it comes back as history.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/limits.h"
#include "model/batch.h"

namespace fathom {

inline constexpr int64_t kExpandedRows = 256;

// Rows before this position are expanded; expand_by: EngineOptions'.
inline int64_t expanded_end(int64_t opening, int64_t expand_by) {
  if (expand_by == 0) return 0;
  return std::max<int64_t>(0, std::min(opening - opening % expand_by, opening - 2));
}

// What a cached row is known by: its token, and its form where that is not the engine's own.
inline constexpr int32_t kExpandedName = int32_t{1} << 30;
static_assert(Limits{}.vocabulary <= kExpandedName);
inline int32_t row_name(int32_t token, bool expanded) {
  return expanded ? token | kExpandedName : token;
}

struct StepRows {
  std::vector<SequenceRows> sequences;
  std::vector<MlaForm> forms;

  void clear() {
    sequences.clear();
    forms.clear();
  }
  // For `count` sequences that decode, or the rows on both sides of a border.
  void reserve(int64_t count) {
    sequences.reserve(static_cast<size_t>(2 * count));
    forms.reserve(static_cast<size_t>(2 * count));
  }
  // Rows of one sequence: those before position `border` are expanded, the others in `form`.
  void add(const SequenceRows& rows, int64_t border, MlaForm form) {
    const int64_t before = std::clamp<int64_t>(border - rows.position, 0, rows.rows);
    if (before > 0) add({before, rows.position, rows.block_rows}, MlaForm::kExpanded);
    if (before < rows.rows)
      add({rows.rows - before, rows.position + before, rows.block_rows}, form);
  }

 private:
  void add(const SequenceRows& rows, MlaForm form) {
    sequences.push_back(rows);
    forms.push_back(form);
  }
};

}  // namespace fathom
