// A model timed through the engine: load, prefill, generation of one sequence and of several.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <set>

#include "base/check.h"
#include "base/checked.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/file.h"
#include "base/random.h"
#include "cli/bench_parts.h"
#include "cli/models.h"
#include "cli/progress.h"
#include "cli/streaming.h"
#include "engine/engine.h"

namespace fathom {
namespace {

constexpr int64_t kLadder[] = {0, 256, 1024, 4096, 16384, 32768};
constexpr double kFillSeconds = 60;  // the longest prefill that nobody asked for
const int64_t kChunk = EngineOptions{}.prefill_chunk;

// As the kernel does it: it tells only those who could also write.
bool tells_residency(const MappedFile& file) {
  struct stat info {};
  return ::faccessat(AT_FDCWD, file.path().c_str(), W_OK, AT_EACCESS) == 0 ||
         (::stat(file.path().c_str(), &info) == 0 && info.st_uid == ::geteuid());
}

class ModelBench {
 public:
  ModelBench(const BenchOptions& options, std::filesystem::path path, Context& ctx, BenchLog& log)
      : options_(options), path_(std::move(path)), ctx_(ctx), log_(log) {}

  BenchedModel run() {
    load();
    if (!options_.wants("prefill") && !options_.wants("decode") && !options_.wants("batch"))
      return described_;
    plan();
    if (options_.wants("prefill") || options_.wants("decode")) contexts();
    if (options_.wants("batch")) batches();
    described_.cache_bytes = static_cast<uint64_t>(most_rows_) * described_.cache_bytes_per_token;
    return described_;
  }

 private:
  const Model& model() const { return opened_->model; }
  int64_t longest() const { return model().config().max_position_embeddings; }

  // Opened again and again; the last one stays.
  void load() {
    OpenOptions open;
    open.tiles = &ctx_;
    open.context_tokens = 1;  // the engine checks what its cache takes
    open.cache_dtype = parse_cache_dtype(options_.cache);
    open.stream = false;  // it would be the disk that is timed, against the roofs of memory
    const bool timed = options_.wants("load");
    BenchLine first, again;
    first.in_page_cache = share_in_page_cache(Checkpoint::open(path_));
    if (timed) log_.start();
    first.run_seconds.push_back(open_once(open));
    first.work = "first";
    if (timed) {
      log_.head(fmt::format("{}, {}", opened_->name, bytes_text(opened_->sizes.bytes)), false);
      add_load(std::move(first));
    }
    constexpr double kSlow = 5;
    if (timed) log_.start();
    for (int i = 0; timed && i < options_.repeat; ++i) {
      if (i > 0 && again.run_seconds.back() > kSlow) break;
      opened_.reset();
      if (i == 0) again.in_page_cache = share_in_page_cache(Checkpoint::open(path_));
      again.run_seconds.push_back(open_once(open));
    }
    again.work = "again";
    if (timed) add_load(std::move(again));
    described_.name = opened_->name;
    described_.file_bytes = opened_->sizes.bytes;
    engine_options_.cache_dtype = open.cache_dtype.value_or(default_cache_dtype(model()));
    described_.cache_dtype = dtype_name(engine_options_.cache_dtype);
    engine_options_.expand_by = model().config().is_mla() ? parse_mla(options_.mla) : 0;
    described_.cache_bytes_per_token = static_cast<uint64_t>(KvCache::bytes_per_token(
        model().config(), model().cache_layers(), engine_options_.cache_dtype));
    if (!timed)
      log_.head(fmt::format("{}, {}", opened_->name, bytes_text(opened_->sizes.bytes)), false);
  }
  // To the first token of a prompt of one; its time.
  double open_once(const OpenOptions& open) {
    const double begin = seconds_now();
    opened_.emplace(open_model(path_, open, options_.output));
    EngineOptions small;
    small.context_tokens = 2;
    Engine engine(model(), ctx_, small);
    engine.submit(request(0, 1, 1));
    std::vector<TokenEvent> events;
    while (events.empty()) step(engine, events);
    return seconds_now() - begin;
  }
  void add_load(BenchLine line) {
    line.group = BenchGroup::kLoad;
    line.cost.bytes = static_cast<double>(opened_->sizes.bytes);
    log_.add(std::move(line));
  }

  // Which contexts and batches fit, and an engine with room for them.
  void plan() {
    const bool ladder = options_.contexts.empty();
    const int64_t widest = *std::max_element(options_.prefill.begin(), options_.prefill.end());
    // The prompt of a decode line has at least one token.
    const auto tokens_at = [&](int64_t context) {
      return std::max<int64_t>(1, context) + options_.generate + 1;
    };
    for (const int64_t n : ladder ? std::vector<int64_t>(std::begin(kLadder), std::end(kLadder))
                                  : options_.contexts) {
      if (tokens_at(n) <= longest())
        contexts_.push_back(n);
      else if (!ladder)
        left_out("--at", n, tokens_at(n));
    }
    std::sort(contexts_.begin(), contexts_.end());
    batch_context_ = options_.batch_context >= 0
                         ? std::max<int64_t>(1, options_.batch_context)
                         : std::min<int64_t>(128, std::max<int64_t>(1, longest() / 2));
    int64_t needed = 2, rows = 2;
    for (const int64_t n : contexts_)
      needed = std::max({needed, tokens_at(n), std::min(longest(), n + widest + 1)});
    for (const int64_t n : options_.prefill) needed = std::max(needed, std::min(longest(), n + 1));
    if (options_.wants("batch")) {
      for (const int64_t n : options_.batch) {
        const int64_t tokens = batch_tokens(n);
        if (tokens > longest()) {
          left_out("--batch", n, tokens);
          continue;
        }
        batches_.push_back(n);
        needed = std::max(needed, tokens);
        // whole blocks, one more for each that still grows
        rows = std::max(rows, n * ((tokens + kKeyBlock - 1) / kKeyBlock + 1) * kKeyBlock);
        engine_options_.max_sequences = std::max(engine_options_.max_sequences, n);
      }
    }
    engine_options_.context_tokens = needed;
    engine_options_.cache_tokens = std::max(needed, rows);
    const MemoryState memory = usable_memory(0);
    // with what loading has taken of it already
    const uint64_t whole = memory.available == 0
                               ? 0
                               : memory.available + opened_->tile_bytes +
                                     rebuilt_bytes(model().checkpoint(), model().config());
    MemoryNeeds needs =
        plan_memory(model().checkpoint(), model().config(), opened_->sizes,
                    engine_options_.cache_tokens, engine_options_.cache_dtype, whole, false)
            .needs;
    engine_options_.long_chunk = needs.chunk;
    needs.weights -= std::min(needs.weights, opened_->tile_bytes);  // taken from what is available
    expect_room(needs, engine_options_.cache_tokens, memory);
    engine_.emplace(model(), ctx_, engine_options_);
  }
  // Of each sequence: those that start first go on while the others' prompts are computed.
  int64_t batch_tokens(int64_t sequences) const {
    return batch_context_ + options_.generate + sequences * batch_context_ / kChunk + 8;
  }
  void left_out(std::string_view flag, int64_t n, int64_t tokens) const {
    if (!options_.output.quiet)
      note("note: {} {}: left out: takes {} tokens, the model's context is {}", flag, n, tokens,
           longest());
  }

  // `stream`: requests of one stream begin alike, others differ.
  std::vector<int32_t> tokens(uint64_t stream, int64_t count) const {
    const RandomKey key{1 + stream, RandomPurpose::kTest, 0};
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i)
      ids.push_back(static_cast<int32_t>(random_bits(key, static_cast<uint64_t>(i)) %
                                         static_cast<uint64_t>(model().config().vocab_size)));
    return ids;
  }
  Request request(uint64_t stream, int64_t prompt_tokens, int64_t max_tokens) const {
    Request request;
    request.prompt = tokens(stream, prompt_tokens);
    request.max_tokens = max_tokens;  // no stop ids: it runs to the end
    return request;
  }

  static double step(Engine& engine, std::vector<TokenEvent>& events) {
    check_interrupt();
    events.clear();
    const double begin = seconds_now();
    FATHOM_CHECK(engine.step(events, [](int64_t) { check_interrupt(); }));
    const double seconds = seconds_now() - begin;
    for (const TokenEvent& event : events) {
      if (event.finish == FinishReason::kNumericalError)
        throw Error(ExitCode::kDiverged, "bench: logits are not finite");
    }
    return seconds;
  }

  // Computes one prompt and one token; the rows it had to compute and their time.
  struct Filled {
    int64_t rows = 0;
    double seconds = 0;
  };
  Filled prefill(Request prompt) {
    const int64_t before = engine_->stats().prefill_tokens;
    const auto total = std::ssize(prompt.prompt);
    Progress progress(options_.output, fmt::format("prefill {}", total), Progress::Unit::kTokens,
                      static_cast<uint64_t>(total));
    engine_->submit(std::move(prompt));
    Filled filled;
    std::vector<TokenEvent> events;
    while (!engine_->idle()) {
      filled.seconds += step(*engine_, events);
      filled.rows = engine_->stats().prefill_tokens - before;
      progress.at(static_cast<uint64_t>(std::min(filled.rows, total)));
    }
    return filled;
  }

  void contexts() {
    const bool ladder = options_.contexts.empty();
    const int64_t widest = *std::max_element(options_.prefill.begin(), options_.prefill.end());
    double rate = 0;  // tokens/s of the last prefill
    int64_t reached = 0;
    for (const int64_t context : contexts_) {
      if (ladder && rate > 0 && static_cast<double>(context - reached) > kFillSeconds * rate) {
        if (!options_.output.quiet)
          note("note: contexts from {0} on: left out: their prefill takes long; ask with --at {0}",
               context);
        break;
      }
      if (context > 0) {  // what the lines below find in the cache
        const Filled filled = prefill(request(0, context, 1));
        if (filled.rows > kKeyBlock) rate = static_cast<double>(filled.rows) / filled.seconds;
      }
      for (const int64_t n : options_.prefill) {
        if (options_.wants("prefill") && (context == contexts_.front() || n == widest))
          prefill_line(context, n);
      }
      if (options_.wants("decode")) decode_line(BenchGroup::kDecode, 1, context);
      reached = context;
    }
  }

  // `rows` new tokens behind `context` cached ones.
  void prefill_line(int64_t context, int64_t rows) {
    if (context + rows + 1 > longest()) {
      if (!options_.contexts.empty() || context == 0)
        left_out("--prefill", rows, context + rows + 1);
      return;
    }
    BenchLine line;
    line.group = BenchGroup::kPrefill;
    line.work = fmt::format("prefill {}", rows);
    line.context = context;
    int64_t computed = 0;
    log_.start();
    for (int i = 0; i < options_.repeat; ++i) {
      Request prompt = request(0, context, 1);
      const std::vector<int32_t> fresh = tokens(++streams_, rows);
      prompt.prompt.insert(prompt.prompt.end(), fresh.begin(), fresh.end());
      // Nothing of it may be found where there is nothing before it.
      if (context == 0) prompt.cache_scope = std::to_string(streams_);
      const Filled filled = prefill(std::move(prompt));
      line.run_seconds.push_back(filled.seconds);
      computed = std::max(computed, filled.rows);
    }
    line.tokens = static_cast<double>(computed);
    const int64_t before = context + rows - computed;
    const int64_t expanded = expanded_end(context + rows, engine_options_.expand_by) - before;
    line.cost = step_cost(model(),
                          prefill_step(static_cast<double>(before), static_cast<double>(computed),
                                       static_cast<double>(std::max<int64_t>(0, expanded))),
                          engine_options_.cache_dtype);
    log_.add(std::move(line));
  }

  // Steps that give each of `sequences` a token and compute no prompt.
  void decode_line(BenchGroup group, int64_t sequences, int64_t context) {
    const bool batch = group == BenchGroup::kBatch;
    const int64_t prompt = std::max<int64_t>(1, context);
    const int64_t answer = batch ? batch_tokens(sequences) - prompt : options_.generate + 1;
    const std::string name =
        batch ? fmt::format("{} sequence{}", sequences, sequences == 1 ? "" : "s") : "decode";
    BenchLine line{.group = group, .work = name, .context = context, .sequences = sequences};
    line.tokens = static_cast<double>(sequences);
    for (int64_t i = 0; i < sequences; ++i)
      engine_->submit(request(static_cast<uint64_t>(i), prompt, answer));
    std::optional<Progress> progress;
    progress.emplace(options_.output, name, Progress::Unit::kTokens,
                     static_cast<uint64_t>(sequences * prompt));
    const int64_t filled_before = engine_->stats().prefill_tokens;
    std::set<uint64_t> started;
    std::vector<TokenEvent> events;
    int64_t generated = 0;
    double rows = 0;  // in the cache as a timed step begins, of all sequences; summed over steps
    while (std::ssize(line.run_seconds) < options_.generate) {
      const bool timed = std::ssize(started) == sequences;
      if (timed && line.run_seconds.empty()) {
        progress.reset();
        log_.start();
      }
      const int64_t filled = engine_->stats().prefill_tokens;
      const double seconds = step(*engine_, events);
      if (timed) {
        FATHOM_CHECK(std::ssize(events) == sequences && engine_->stats().prefill_tokens == filled);
        line.run_seconds.push_back(seconds);
        rows += static_cast<double>(sequences * (prompt - 1) + generated);
      } else {
        progress->at(static_cast<uint64_t>(engine_->stats().prefill_tokens - filled_before));
        for (const TokenEvent& event : events) started.insert(event.request);
      }
      generated += std::ssize(events);
    }
    for (const uint64_t id : started) engine_->cancel(id);
    while (!engine_->idle()) step(*engine_, events);
    rows /= static_cast<double>(options_.generate);
    most_rows_ = std::max(most_rows_, rows);
    line.cost = step_cost(model(), decode_step(line.tokens, rows / line.tokens),
                          engine_options_.cache_dtype);
    log_.add(std::move(line));
  }

  void batches() {
    for (const int64_t n : batches_) decode_line(BenchGroup::kBatch, n, batch_context_);
  }

  const BenchOptions& options_;
  std::filesystem::path path_;
  Context& ctx_;
  BenchLog& log_;
  std::optional<OpenedModel> opened_;
  EngineOptions engine_options_;
  std::optional<Engine> engine_;
  std::vector<int64_t> contexts_, batches_;
  int64_t batch_context_ = 0;
  uint64_t streams_ = 1'000'000;  // of prompts that nothing has seen
  double most_rows_ = 0;
  BenchedModel described_;
};

}  // namespace

std::optional<double> share_in_page_cache(const Checkpoint& checkpoint) {
  std::set<const MappedFile*> files;
  for (const TensorInfo* tensor : checkpoint.tensors()) files.insert(&checkpoint.file(*tensor));
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  size_t pages = 0, resident = 0;
  for (const MappedFile* file : files) {
    const std::span<const std::byte> bytes = file->bytes();
    std::vector<unsigned char> present((bytes.size() + page - 1) / page);
    if (!tells_residency(*file) ||
        mincore(const_cast<std::byte*>(bytes.data()), bytes.size(), present.data()) != 0)
      return std::nullopt;
    pages += present.size();
    for (const unsigned char p : present) resident += p & 1;
  }
  if (pages == 0) return std::nullopt;
  return static_cast<double>(resident) / static_cast<double>(pages);
}

void expect_room(const MemoryNeeds& needs, int64_t rows, const MemoryState& memory) {
  const auto sum = (Checked(needs.weights) + Checked(needs.cache) + Checked(needs.work)).value();
  if (memory.available == 0 || (sum && *sum <= memory.available)) return;
  fail_resource(
      "bench: found {} of memory available{}, expected {}: weights {}, cache for {} tokens {}, "
      "work {} (use smaller --at, --batch or --generate, or a smaller type of --cache)",
      bytes_text(memory.available), memory_limit_text(memory, 0),
      sum ? bytes_text(*sum) : "more than 64 bits count", bytes_text(needs.weights), rows,
      bytes_text(needs.cache), bytes_text(needs.work));
}

BenchedModel bench_model(const BenchOptions& options, const std::filesystem::path& path,
                         Context& ctx, BenchLog& log) {
  return ModelBench(options, path, ctx, log).run();
}

}  // namespace fathom
