// One answer: a prompt through the engine, tokens to text, text split into thought and answer.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cli/models.h"
#include "cli/output.h"
#include "engine/engine.h"
#include "model/expert_cache.h"
#include "text/thinking_parser.h"

namespace fathom {

struct GenerationRequest {
  std::vector<int32_t> prompt;
  int64_t max_tokens = 0;  // 0 = what the context leaves
  SamplingParams sampling;
  std::vector<std::string> stops;  // looked for in the answer, not in the thought
  std::optional<ThinkingMarks> marks;
  int64_t opening = -1;  // Request's
};

struct Generation {
  std::string thought, answer;
  FinishReason finish = FinishReason::kNone;  // kCancelled: Ctrl-C
  int64_t prompt_tokens = 0, tokens = 0, thought_tokens = 0;
  int64_t room = 0;                   // tokens that the context leaves to the answer
  int64_t prompt_done = 0;            // computed or found, all of it unless interrupted
  int64_t drafted = 0, accepted = 0;  // draft tokens, see EngineStats
  ExpertCacheStats experts;           // of this answer, if experts are streamed
  PrefixReuse reuse;                  // what of the prompt the cache still held
  double prefill_seconds = 0, decode_seconds = 0, thought_seconds = 0;
  std::vector<TokenEvent> events;  // with log-probabilities only
};

// Called with each part of the text as it comes. With Ctrl-C the answer so far is the result. An
// answer ends where the context does, whatever max_tokens allows.
// Throws Error: prompt too long for the context (names both numbers), exit code 4 if the numbers
// diverged.
Generation generate(Engine& engine, const OpenedModel& opened, GenerationRequest request,
                    const OutputOptions& output,
                    const std::function<void(const OutputPart&)>& on_part);

std::string_view finish_name(const Generation& generation);  // "stop", "length", "interrupted"
std::string rate_line(const Generation& generation);

// Shows parts to a person: answers on stdout, thoughts dimmed and marked on stderr if that is a
// terminal.
class PartPrinter {
 public:
  PartPrinter(const OutputOptions& output, bool hide_thinking);
  void show(const OutputPart& part);
  // Ends an open thought and the last line of the answer.
  void finish();

 private:
  void end_thought();
  bool show_thoughts_, safe_output_;
  Grey grey_;
  bool in_thought_ = false, wrote_answer_ = false, ends_line_ = false, skip_blank_ = false;
  double thought_begin_ = 0;
};

}  // namespace fathom
