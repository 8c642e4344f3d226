// `fathom run [MODEL] [PROMPT]`: chat in the terminal, or the answer to a pipe.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cli/generation.h"
#include "cli/models.h"
#include "cli/output.h"
#include "engine/engine.h"

namespace fathom {

// What the command line says about sampling; the rest is the model's own advice (cli/models.h).
struct SamplingFlags {
  std::optional<double> temperature, top_p, min_p, repeat_penalty, presence_penalty,
      frequency_penalty;
  std::optional<int> top_k;
  std::vector<std::string> logit_bias;  // "ID=BIAS"
  uint64_t seed = 0;
  int logprobs = -1;
};

struct RunOptions {
  OutputOptions output;
  std::vector<std::string> words;  // positional: MODEL, PROMPT
  std::string model, prompt, file, system;
  int64_t context_tokens = 0;  // 0 = min(max_position_embeddings, 8192)
  int64_t max_tokens = 0;      // 0 = what the context leaves
  int threads = 0;
  SamplingFlags sampling;
  std::vector<std::string> stops;
  std::string template_name;
  std::string think;  // "", "on" or "off"
  bool hide_thinking = false;
  bool raw = false;  // no template: continue the text
  std::string cache;
  std::string mla = "fast";  // parse_mla()
  bool ignore_memory = false;
  bool mapped = false;    // no tiles (OpenOptions::tiles)
  double memory_gib = 0;  // use at most that much; 0 = what is available
  bool no_history = false;
  std::string prefix_folder;       // computed prompts are kept there; "" = in memory only
  double prefix_gib = 4;           // at most
  std::string speculate = "auto";  // "auto", "mtp", "lookup", "both" or "off"
  int64_t draft_tokens = 0;        // per step at most; 0 = EngineOptions' own choice
  bool json = false;
  std::string check;  // a task whose verifier judges the answer (train/tasks.h)
  int tries = 16;     // samples until it accepts one
};

int run_run(const RunOptions& options);

// A model ready to answer, with the settings of its session.
struct Session {
  Session(const RunOptions& options, const std::filesystem::path& path);

  const RunOptions& options;
  Context ctx;
  OpenedModel opened;
  std::optional<PrefixStore> store;  // outlives the engine
  Engine engine;
  std::string noted_problem;  // of the store
  SamplingParams sampling;
  bool thinking = true;
};

// Keeps what the answer has computed for the next start, if the user wants that; notes the last
// problem of the store, if it is a new one. Call it when the answer is out: it waits for the disk.
void keep_computed(Session& session);

// The ids of a conversation; of a base model (or with --raw) the text of the last message,
// continued.
std::vector<int32_t> encode_messages(const Session& session, std::span<const ChatMessage> messages);
// What is asked of the engine for them, with the session's settings.
GenerationRequest request_for(const Session& session, std::span<const ChatMessage> messages);
std::optional<ThinkingMarks> session_marks(const Session& session);

SamplingParams sampling_params(const SamplingFlags& flags, const SamplingParams& advice,
                               int64_t vocab_size);
// MODEL and PROMPT among the words: one word alone is the model unless -m names it, or unless it
// has blanks and no such model exists.
struct ModelAndPrompt {
  std::string model;
  std::optional<std::string> prompt;
};
ModelAndPrompt split_words(const RunOptions& options);

}  // namespace fathom
