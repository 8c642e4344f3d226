#include "cli/generation.h"

#include <unistd.h>

#include "base/check.h"
#include "base/clock.h"
#include "base/error.h"
#include "cli/interrupt.h"
#include "cli/progress.h"
#include "text/detokenizer.h"
#include "text/stop_strings.h"

namespace fathom {
namespace {

// Where tokens become text: detokenizer, thinking parser, stop strings (of the answer only).
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, const GenerationRequest& request, Generation& result,
             const std::function<void(const OutputPart&)>& on_part)
      : detokenizer_(tokenizer),
        thinking_(request.marks),
        stops_(request.stops),
        result_(result),
        on_part_(on_part) {}

  void push(int32_t token) { take(thinking_.push(detokenizer_.push(token))); }
  void finish() {
    take(thinking_.push(detokenizer_.finish()));
    take(thinking_.finish());
    emit({false, stops_.finish()});
  }
  bool stopped() const { return stops_.stopped(); }
  bool in_thought() const { return thinking_.in_thought(); }

 private:
  void take(const std::vector<OutputPart>& parts) {
    for (const OutputPart& part : parts)
      emit(part.thought ? part : OutputPart{false, stops_.push(part.text)});
  }
  void emit(const OutputPart& part) {
    if (part.text.empty()) return;
    (part.thought ? result_.thought : result_.answer) += part.text;
    on_part_(part);
  }

  Detokenizer detokenizer_;
  ThinkingParser thinking_;
  StopStrings stops_;
  Generation& result_;
  const std::function<void(const OutputPart&)>& on_part_;
};

// A request whose caller gives up must not run on in front of the next one.
class Running {
 public:
  Running(Engine& engine, uint64_t id) : engine_(engine), id_(id) {}
  ~Running() { engine_.cancel(id_); }  // of one that has ended: nothing
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

 private:
  Engine& engine_;
  uint64_t id_;
};

bool is_stop_token(const std::vector<int32_t>& stop_ids, int32_t token) {
  return std::find(stop_ids.begin(), stop_ids.end(), token) != stop_ids.end();
}

}  // namespace

Generation generate(Engine& engine, const OpenedModel& opened, GenerationRequest request,
                    const OutputOptions& output,
                    const std::function<void(const OutputPart&)>& on_part) {
  const int64_t context = engine.options().context_tokens;
  Generation result;
  result.prompt_tokens = std::ssize(request.prompt);
  if (result.prompt_tokens >= context) {
    const int64_t longest = opened.model.config().max_position_embeddings;
    fail("prompt: {} tokens, expected less than the context of {} ({})", result.prompt_tokens,
         context,
         context < longest ? fmt::format("use a larger --ctx; the model's own is {}", longest)
                           : "the model's own");
  }
  const int64_t room = result.room = context - result.prompt_tokens;
  const ExpertCache* const cache = opened.model.expert_cache();
  const ExpertCacheStats read_before = cache != nullptr ? cache->stats() : ExpertCacheStats{};
  const bool keep_events = request.sampling.top_logprobs >= 0;
  TextStream text(opened.tokenizer, request, result, on_part);
  const uint64_t id = engine.submit(
      {.prompt = std::move(request.prompt),
       .max_tokens = request.max_tokens > 0 ? std::min(request.max_tokens, room) : room,
       .stop_ids = opened.stop_ids,
       .sampling = request.sampling,
       .opening = request.opening});
  const Running running(engine, id);
  const double begin = seconds_now();
  // Prompt rows that are done: computed, or found in the cache.
  const auto done_rows = [&] {
    return engine.stats().prefill_tokens + engine.stats().cached_tokens;
  };
  const int64_t done_before = done_rows();
  const EngineStats before = engine.stats();
  std::optional<Progress> bar(std::in_place, output, "prompt", Progress::Unit::kTokens,
                              static_cast<uint64_t>(result.prompt_tokens));
  double first_token = 0, last_step = begin;
  bool cancelled = false;
  struct GivenUp {};  // the step under way, by Ctrl-C
  const Engine::PromptWatcher watcher = [&](int64_t rows) {
    if (bar) bar->at(static_cast<uint64_t>(done_rows() - done_before + rows));
    if (!cancelled && interrupted()) throw GivenUp();
  };
  std::vector<TokenEvent> events;
  while (result.finish == FinishReason::kNone) {
    if (!cancelled && (interrupted() || text.stopped())) {
      cancelled = true;
      engine.cancel(id);
    }
    events.clear();
    try {
      FATHOM_CHECK(engine.step(events, watcher));
    } catch (const GivenUp&) {
      continue;
    }
    if (!cancelled) last_step = seconds_now();  // an interrupted prompt is timed up to here
    if (bar) bar->at(static_cast<uint64_t>(done_rows() - done_before));
    for (TokenEvent& event : events) {
      if (event.request != id) continue;
      result.reuse = event.reuse;
      // What a step brings behind a stop string is no part of the answer.
      const bool behind = cancelled || text.stopped();
      result.finish = behind && event.finish == FinishReason::kNumericalError
                          ? FinishReason::kCancelled
                          : event.finish;
      if (event.token < 0 || behind) continue;
      bar.reset();
      const double now = seconds_now();
      if (first_token == 0) first_token = now;
      ++result.tokens;
      if (text.in_thought()) {
        ++result.thought_tokens;
        result.thought_seconds = now - first_token;
      }
      const bool ends =
          event.finish == FinishReason::kStop && is_stop_token(opened.stop_ids, event.token);
      if (!ends) text.push(event.token);
      if (keep_events) result.events.push_back(std::move(event));
    }
  }
  bar.reset();
  result.prompt_done = first_token > 0 ? result.prompt_tokens
                                       : std::min(done_rows() - done_before, result.prompt_tokens);
  const double end = seconds_now();
  if (cache != nullptr) result.experts = cache->stats() - read_before;
  result.drafted = engine.stats().drafted - before.drafted;
  result.accepted = engine.stats().accepted - before.accepted;
  result.prefill_seconds = (first_token > 0 ? first_token : last_step) - begin;
  result.decode_seconds = first_token > 0 ? end - first_token : 0;
  if (text.stopped()) result.finish = FinishReason::kStop;
  text.finish();
  if (result.finish == FinishReason::kNumericalError) {
    throw Error(ExitCode::kDiverged,
                "the model's logits are not finite: the weights or the file are damaged (try "
                "`fathom show --check-finite`)");
  }
  return result;
}

std::string_view finish_name(const Generation& generation) {
  switch (generation.finish) {
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "interrupted";
    default:
      return "stop";
  }
}

std::string rate_line(const Generation& g) {
  const auto rate = [](double tokens, double seconds) {
    return seconds > 0 ? fmt::format("{:.1f} tok/s", tokens / seconds) : "- tok/s";
  };
  // The first token falls out of the prefill; the others took decode_seconds.
  const double decoded = static_cast<double>(std::max<int64_t>(0, g.tokens - 1));
  const int64_t cached = g.reuse.cached_tokens;
  const ExpertCacheStats& e = g.experts;
  const std::string streamed =
      e.hits + e.misses == 0
          ? ""
          : fmt::format("; {:.0f} % of the experts were in memory, {:.2f} GB read from disk",
                        100 * e.hit_rate(), static_cast<double>(e.read_bytes) * 1e-9);
  const char* const ending = g.finish == FinishReason::kCancelled ? "; interrupted"
                             : g.finish != FinishReason::kLength  ? ""
                             : g.tokens == g.room ? "; stopped as the context is full"
                                                  : "; stopped at the token limit";
  return fmt::format(
      "prompt {}{} tokens{}, {}; generated {} tokens, {}{}{}{}",
      g.prompt_done < g.prompt_tokens ? fmt::format("{} of ", g.prompt_done) : "", g.prompt_tokens,
      cached > 0 ? fmt::format(" ({} cached)", cached) : "",
      rate(static_cast<double>(g.prompt_done - cached), g.prefill_seconds), g.tokens,
      rate(decoded, decoded > 0 ? g.decode_seconds : 0),
      g.drafted > 0 ? fmt::format(" ({} of {} drafts right)", g.accepted, g.drafted) : "", streamed,
      ending);
}

PartPrinter::PartPrinter(const OutputOptions& output, bool hide_thinking)
    : show_thoughts_(!hide_thinking && !output.quiet && is_terminal(STDERR_FILENO)),
      safe_output_(is_terminal(STDOUT_FILENO)),
      grey_(use_color(STDERR_FILENO, output)) {}

void PartPrinter::show(const OutputPart& part) {
  if (part.thought) {
    skip_blank_ = true;
    if (!show_thoughts_) return;
    if (!in_thought_) {
      write_stderr(fmt::format("{}⟨thinking⟩\n", grey_.begin));
      in_thought_ = true;
      thought_begin_ = seconds_now();
    }
    write_stderr(without_controls(part.text));
    return;
  }
  std::string_view text = part.text;
  if (in_thought_) end_thought();
  if (skip_blank_) {  // the blank lines between thought and answer
    text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
    skip_blank_ = text.empty();
  }
  if (text.empty()) return;
  wrote_answer_ = true;
  ends_line_ = text.back() == '\n';
  write_stdout(safe_output_ ? without_controls(text) : std::string(text));
}

void PartPrinter::end_thought() {
  in_thought_ = false;
  write_stderr(fmt::format("\n⟨end of thought, {}⟩{}\n\n",
                           duration_text(seconds_now() - thought_begin_), grey_.end));
}

void PartPrinter::finish() {
  if (in_thought_) end_thought();
  if (wrote_answer_ && !ends_line_) write_stdout("\n");
}

}  // namespace fathom
