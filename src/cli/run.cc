#include "cli/run.h"

#include <unistd.h>

#include <charconv>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/affinity.h"
#include "base/error.h"
#include "base/file.h"
#include "cli/chat.h"
#include "cli/generation.h"
#include "cli/ids.h"
#include "cli/interrupt.h"
#include "cli/streaming.h"
#include "train/tasks.h"

namespace fathom {
namespace {

constexpr int64_t kDefaultContext = 8192;

OpenOptions open_options(const RunOptions& options, Context& ctx) {
  OpenOptions open;
  open.tiles = options.mapped ? nullptr : &ctx;
  open.context_tokens = options.context_tokens > 0 ? options.context_tokens : kDefaultContext;
  open.cache_dtype = parse_cache_dtype(options.cache);
  open.template_name = options.template_name;
  open.ignore_memory = options.ignore_memory;
  open.memory_gib = options.memory_gib;
  return open;
}

Speculation speculation(const RunOptions& options, const OpenedModel& opened) {
  const Model& model = opened.model;
  constexpr std::pair<std::string_view, Speculation> kNames[] = {{"auto", Speculation::kAuto},
                                                                 {"mtp", Speculation::kMtp},
                                                                 {"lookup", Speculation::kLookup},
                                                                 {"both", Speculation::kBoth},
                                                                 {"off", Speculation::kOff}};
  const auto* found = std::find_if(std::begin(kNames), std::end(kNames),
                                   [&](const auto& one) { return one.first == options.speculate; });
  if (found == std::end(kNames))
    fail("--speculate: found {}, expected auto, mtp, lookup, both or off",
         quoted(options.speculate));
  const bool mtp = found->second == Speculation::kMtp || found->second == Speculation::kBoth;
  if (mtp && !model.has_mtp())
    fail("--speculate: {}: this model has no layer for multi-token prediction (lookup needs none)",
         options.speculate);
  // rows of wrong drafts would read experts from disk
  if (found->second == Speculation::kAuto && opened.streaming) return Speculation::kOff;
  return found->second;
}

EngineOptions engine_options(const RunOptions& options, const OpenedModel& opened) {
  const int64_t longest = opened.model.config().max_position_embeddings;
  if (options.context_tokens > longest) {
    fail("--ctx: found {}, expected at most {} (max_position_embeddings of this model)",
         options.context_tokens, longest);
  }
  EngineOptions engine;
  engine.context_tokens =
      options.context_tokens > 0 ? options.context_tokens : std::min(longest, kDefaultContext);
  engine.max_sequences = 1;
  engine.long_chunk = opened.long_chunk;
  engine.cache_dtype = parse_cache_dtype(options.cache).value_or(default_cache_dtype(opened.model));
  engine.expand_by = parse_mla(options.mla);
  engine.speculation = speculation(options, opened);
  engine.draft_tokens = options.draft_tokens;
  return engine;
}

// Rows of another build may be other bits: the program's own file names it.
PrefixStoreOptions store_options(const RunOptions& options, const Model& model) {
  const FileDigest program = digest_file("/proc/self/exe");
  return {options.prefix_folder,
          static_cast<uint64_t>(options.prefix_gib * static_cast<double>(uint64_t{1} << 30)),
          model_fingerprint(model),
          {program.hash, program.bytes}};
}

// What --think asks for, checked against what the format can do.
bool thinking_wanted(const RunOptions& options, const OpenedModel& opened) {
  if (options.think.empty()) return true;
  if (options.think != "on" && options.think != "off")
    fail("--think: found {}, expected on or off", quoted(options.think));
  const bool wanted = options.think == "on";
  if (!opened.format || options.raw)
    fail("--think: this model has no chat format with thoughts (--raw or a base model)");
  if (thinking_marks(*opened.format, {.thinking = wanted}).has_value() != wanted) {
    fail("--think: {}: the format {} {}", options.think, chat_format_name(*opened.format),
         wanted ? "has no thoughts" : "always thinks");
  }
  return wanted;
}

std::pair<int32_t, float> parse_bias(const std::string& text) {
  const size_t equals = text.find('=');
  const char* end = text.data() + text.size();
  int32_t id = 0;
  double bias = 0;
  const auto id_end = std::from_chars(text.data(), text.data() + std::min(equals, text.size()), id);
  const auto bias_end =
      equals == text.npos ? id_end : std::from_chars(text.data() + equals + 1, end, bias);
  if (equals == text.npos || id_end.ec != std::errc{} || id_end.ptr != text.data() + equals ||
      bias_end.ec != std::errc{} || bias_end.ptr != end) {
    fail("--logit-bias: found {}, expected ID=BIAS as in 42=-5.5", quoted(text));
  }
  return {id, static_cast<float>(bias)};
}

nlohmann::ordered_json logprobs_json(const Tokenizer& tokenizer, const Generation& generation) {
  const auto one = [&](int32_t token, float logprob) {
    return nlohmann::ordered_json{
        {"id", token}, {"piece", std::string(tokenizer.token_bytes(token))}, {"logprob", logprob}};
  };
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const TokenEvent& event : generation.events) {
    list.push_back(one(event.token, event.logprob));
    for (const TokenLogprob& top : event.top_logprobs)
      list.back()["top"].push_back(one(top.token, top.logprob));
  }
  return list;
}

void print_result(const Session& session, const Generation& g) {
  nlohmann::ordered_json j = {{"answer", g.answer}};
  if (!g.thought.empty()) j["thought"] = g.thought;
  j["finish"] = finish_name(g);
  j["prompt_tokens"] = g.prompt_tokens;
  j["prompt_done"] = g.prompt_done;
  j["cached_tokens"] = g.reuse.cached_tokens;
  j["tokens"] = g.tokens;
  j["thought_tokens"] = g.thought_tokens;
  j["drafted_tokens"] = g.drafted;
  j["accepted_tokens"] = g.accepted;
  j["prefill_seconds"] = g.prefill_seconds;
  j["decode_seconds"] = g.decode_seconds;
  if (session.opened.streaming) {
    j["streaming"] = stream_json(*session.opened.streaming);
    j["streaming"]["hits"] = g.experts.hits;
    j["streaming"]["misses"] = g.experts.misses;
    j["streaming"]["hit_rate"] = g.experts.hit_rate();
    j["streaming"]["read_bytes"] = g.experts.read_bytes;
    j["streaming"]["wait_seconds"] = g.experts.wait_seconds;
  }
  j["seed"] = session.sampling.seed;
  j["model"] = session.opened.name;
  if (!g.events.empty()) j["logprobs"] = logprobs_json(session.opened.tokenizer, g);
  print_json(j);
}

void note_logprobs(const Tokenizer& tokenizer, const Generation& g) {
  for (const TokenEvent& event : g.events) {
    std::string line =
        fmt::format("{:>8.4f}  {}", event.logprob, quoted(tokenizer.token_bytes(event.token)));
    for (const TokenLogprob& top : event.top_logprobs)
      line += fmt::format("  {:.4f} {}", top.logprob, quoted(tokenizer.token_bytes(top.token)));
    note("{}", line);
  }
}

void note_session(Session& s) {
  if (s.options.output.quiet) return;
  const SamplingParams& p = s.sampling;
  if (is_terminal(STDERR_FILENO) || s.options.output.verbose) note("{}", s.opened.name);
  if (s.options.output.verbose) {
    note("context {} tokens, cache {} {}, {} threads, {}", s.engine.options().context_tokens,
         dtype_name(s.engine.options().cache_dtype),
         bytes_text(static_cast<uint64_t>(
             s.engine.options().context_tokens *
             KvCache::bytes_per_token(s.opened.model.config(), s.opened.model.cache_layers(),
                                      s.engine.options().cache_dtype))),
         s.ctx.pool().threads(), isa_name(s.ctx.isa()));
    note("temperature {}, top-p {}, top-k {}, min-p {} ({}), seed {}", p.temperature, p.top_p,
         p.top_k, p.min_p, s.opened.advice.source, p.seed);
  }
  if (!s.opened.format && !s.options.raw)
    note("note: a base model without a chat format: it continues your text");
}

GenerationRequest request_for_prompt(const Session& session, const std::string& prompt) {
  const RunOptions& options = session.options;
  std::vector<ChatMessage> messages;
  if (!options.system.empty())
    messages.push_back({ChatMessage::Role::kSystem, options.system, "", {}});
  messages.push_back({ChatMessage::Role::kUser, prompt, "", {}});
  return request_for(session, messages);
}

int answer_once(Session& session, const std::string& prompt) {
  const RunOptions& options = session.options;
  PartPrinter printer(options.output, options.hide_thinking);
  const auto on_part = [&](const OutputPart& part) {
    if (!options.json) printer.show(part);
  };
  InterruptScope scope;
  const Generation generation = generate(
      session.engine, session.opened, request_for_prompt(session, prompt), options.output, on_part);
  if (options.json) {
    print_result(session, generation);
  } else {
    printer.finish();
    if (!options.output.quiet) note_logprobs(session.opened.tokenizer, generation);
  }
  if (!options.output.quiet) {
    const Grey grey(use_color(STDERR_FILENO, options.output));
    note("{}{}{}", grey.begin, rate_line(generation), grey.end);
  }
  keep_computed(session);
  return generation.finish == FinishReason::kCancelled ? 130 : 0;
}

// Samples until the task's verifier accepts an answer, and shows that one with its verdict; else
// the last, and why it is wrong (1).
int answer_checked(Session& session, const std::string& prompt) {
  const RunOptions& options = session.options;
  const auto task = make_task(options.check);
  const auto problem = task->read(prompt);
  if (!problem) {
    fail("--check {}: {}: no problem of this task, expected one such as {}", options.check,
         quoted(prompt), quoted(task->problem(0, 0, Split::kTest).question));
  }
  // the likeliest answer is always the same
  const int tries = session.sampling.temperature == 0 ? 1 : options.tries;
  InterruptScope scope;
  for (int attempt = 1;; ++attempt) {
    GenerationRequest request = request_for_prompt(session, prompt);
    request.sampling.choice = static_cast<uint64_t>(attempt);
    std::vector<OutputPart> parts;
    const Generation g =
        generate(session.engine, session.opened, std::move(request), options.output,
                 [&](const OutputPart& part) { parts.push_back(part); });
    if (g.finish == FinishReason::kCancelled) {
      keep_computed(session);
      return 130;
    }
    const Verdict verdict = task->verify(*problem, answer_of(g.answer));
    if (!verdict.correct() && attempt < tries) continue;
    PartPrinter printer(options.output, options.hide_thinking);
    for (const OutputPart& part : parts) printer.show(part);
    printer.finish();
    note("checked by the {} verifier: {}{}{}, answer {} of at most {}", options.check,
         verdict_name(verdict.kind), verdict.reason.empty() ? "" : ": ", verdict.reason, attempt,
         tries);
    keep_computed(session);
    return verdict.correct() ? 0 : 1;
  }
}

// -p or the word, then --file, then what stdin holds, parted by blank lines; absent if there is
// nothing to wait for but a person.
std::optional<std::string> gather_prompt(const RunOptions& options,
                                         std::optional<std::string> prompt) {
  const auto append = [&](const std::string& text) {
    prompt = prompt && !prompt->empty() ? *prompt + "\n\n" + text : text;
  };
  if (!options.file.empty()) append(read_text_file(options.file));
  if (!is_terminal(STDIN_FILENO) && options.file != "-") {
    const std::string piped = read_stdin();
    if (!piped.empty() || !prompt) append(piped);
  }
  return prompt;
}

}  // namespace

ModelAndPrompt split_words(const RunOptions& options) {
  std::vector<std::string> words = options.words;
  ModelAndPrompt result{options.model, std::nullopt};
  if (!options.prompt.empty()) result.prompt = options.prompt;
  if (result.model.empty() && !words.empty()) {
    std::error_code error;
    const bool is_prompt = words.size() == 1 && !result.prompt &&
                           words[0].find(' ') != std::string::npos &&
                           !std::filesystem::exists(words[0], error);
    if (!is_prompt) {
      result.model = words[0];
      words.erase(words.begin());
    }
  }
  if (words.size() + (result.prompt ? 1 : 0) > 1)
    fail("{}: a second prompt (put the prompt into quotes)", quoted(words.back()));
  if (!words.empty()) result.prompt = words[0];
  return result;
}

SamplingParams sampling_params(const SamplingFlags& flags, const SamplingParams& advice,
                               int64_t vocab_size) {
  SamplingParams p = advice;
  p.temperature = flags.temperature.value_or(p.temperature);
  p.top_p = flags.top_p.value_or(p.top_p);
  p.top_k = flags.top_k.value_or(p.top_k);
  p.min_p = flags.min_p.value_or(p.min_p);
  p.repetition_penalty = flags.repeat_penalty.value_or(p.repetition_penalty);
  p.presence_penalty = flags.presence_penalty.value_or(p.presence_penalty);
  p.frequency_penalty = flags.frequency_penalty.value_or(p.frequency_penalty);
  for (const std::string& bias : flags.logit_bias) p.logit_bias.push_back(parse_bias(bias));
  p.seed = flags.seed;
  p.top_logprobs = flags.logprobs;
  validate_sampling(p, vocab_size);
  return p;
}

Session::Session(const RunOptions& options_, const std::filesystem::path& path)
    : options(options_),
      ctx(thread_count(options.threads)),
      opened(open_model(path, open_options(options, ctx), options.output)),
      engine(opened.model, ctx, engine_options(options, opened)),
      sampling(sampling_params(options.sampling, opened.advice.params,
                               opened.model.config().vocab_size)),
      thinking(thinking_wanted(options, opened)) {
  // Files with a template that we do not know are a chat model of unknown manners, not a base
  // model.
  if (!options.raw && !opened.format && !opened.tokenizer.chat_template_source().empty())
    detect_chat_format(opened.tokenizer);
  if (!options.system.empty() && (options.raw || !opened.format))
    fail("--system: this model has no chat format for it (--raw or a base model)");
  if (!options.prefix_folder.empty()) {
    store.emplace(store_options(options, opened.model), ctx, engine.options().form,
                  engine.cache().view());
    engine.use_store(&*store);
  }
  if (options.pin) pin_threads(ctx.pool());
}

void keep_computed(Session& session) {
  if (!session.store) return;
  const std::string before = session.noted_problem;
  session.engine.save_to_store();
  session.noted_problem = session.store->last_problem();
  if (session.noted_problem == before || session.options.output.quiet) return;
  note("note: {}: {}",
       session.store->stats().failed ? "the prefix cache is no longer written"
                                     : "a file of the prefix cache is not used",
       session.noted_problem);
}

std::vector<int32_t> encode_messages(const Session& session,
                                     std::span<const ChatMessage> messages) {
  const OpenedModel& opened = session.opened;
  if (opened.format && !session.options.raw)
    return encode_chat(
        opened.tokenizer, *opened.format, messages,
        {.add_generation_prompt = messages.back().role != ChatMessage::Role::kAssistant,
         .thinking = session.thinking});
  std::vector<int32_t> ids;
  if (opened.tokenizer.add_bos() && opened.tokenizer.bos_id())
    ids.push_back(*opened.tokenizer.bos_id());
  const std::vector<int32_t> text = opened.tokenizer.encode(messages.back().content, false);
  ids.insert(ids.end(), text.begin(), text.end());
  return ids;
}

GenerationRequest request_for(const Session& session, std::span<const ChatMessage> messages) {
  const RunOptions& options = session.options;
  const OpenedModel& opened = session.opened;
  return {.prompt = encode_messages(session, messages),
          .max_tokens = options.max_tokens,
          .sampling = session.sampling,
          .stops = options.stops,
          .marks = session_marks(session),
          .opening = opened.format && !options.raw
                         ? opening_tokens(opened.tokenizer, *opened.format, messages,
                                          {.thinking = session.thinking})
                         : -1};
}

std::optional<ThinkingMarks> session_marks(const Session& session) {
  if (!session.opened.format || session.options.raw) return std::nullopt;
  return thinking_marks(*session.opened.format, {.thinking = session.thinking});
}

int run_run(const RunOptions& options) {
  const ModelAndPrompt wanted = split_words(options);
  if (options.context_tokens < 0)
    fail("--ctx: found {}, expected 0 or more", options.context_tokens);
  if (options.max_tokens < 0)
    fail("--max-tokens: found {}, expected 0 or more", options.max_tokens);
  const bool chat = !wanted.prompt && options.file.empty() && is_terminal(STDIN_FILENO) &&
                    is_terminal(STDOUT_FILENO) && !options.json;
  if (!options.check.empty() && (chat || options.json))
    fail("--check: expected a prompt to answer, and no --json");
  const bool nothing_named =
      wanted.model.empty() && std::getenv("FATHOM_MODEL") == nullptr && find_models().empty();
  const auto bundled = nothing_named ? bundled_model() : std::nullopt;
  const std::filesystem::path path = bundled ? *bundled : resolve_model(wanted.model);
  std::optional<std::string> prompt;
  if (!chat) {
    prompt = gather_prompt(options, wanted.prompt);
    if (!prompt) prompt = read_stdin();  // a person types it, and the answer goes elsewhere
    if (prompt->empty())
      fail("prompt: empty, expected some text (as an argument, with -p, -f or on stdin)");
  }
  Session session(options, path);
  note_session(session);
  if (!options.check.empty()) return answer_checked(session, *prompt);
  return chat ? run_chat(session) : answer_once(session, *prompt);
}

}  // namespace fathom
