#include "cli/bench.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/affinity.h"
#include "base/error.h"
#include "base/file.h"
#include "cli/bench_parts.h"
#include "cli/machine.h"
#include "cli/models.h"

namespace fathom {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::string_view kParts[] = {"kernels", "load", "prefill", "decode", "batch"};

void check_options(const BenchOptions& o) {
  const auto at_least = [](std::string_view flag, int64_t found, int64_t least) {
    if (found < least) fail("{}: found {}, expected {} or more", flag, found, least);
  };
  at_least("--repeat", o.repeat, 1);
  at_least("--generate", o.generate, 1);
  for (const int64_t n : o.prefill) at_least("--prefill", n, 1);
  for (const int64_t n : o.contexts) at_least("--at", n, 0);
  for (const int64_t n : o.batch) at_least("--batch", n, 1);
  constexpr int64_t kMostSequences = 1024;
  for (const int64_t n : o.batch) {
    if (n > kMostSequences) fail("--batch: found {}, expected at most {}", n, kMostSequences);
  }
  if (o.prefill.empty()) fail("--prefill: found no length, expected one or more");
  for (const std::string& part : o.only) {
    if (std::find(std::begin(kParts), std::end(kParts), part) == std::end(kParts))
      fail("--only: found {}, expected kernels, load, prefill, decode or batch", quoted(part));
  }
  if (!o.page.empty() && !o.page.ends_with(".html") && !o.page.ends_with(".svg"))
    fail("-o: found {}, expected a name that ends with .html or .svg", quoted(o.page));
  if (!o.page.empty()) expect_writable(o.page);  // not after minutes of measuring
}

std::vector<std::string> machine_facts(Context& ctx) {
  return {cpu_name(),
          fmt::format("{} thread{}", ctx.pool().threads(), ctx.pool().threads() == 1 ? "" : "s"),
          fmt::format("kernels {}", isa_name(ctx.isa())), fmt::format("fathom {}", FATHOM_VERSION),
          fmt::format("compiler {}", __VERSION__)};
}

void print_machine(Context& ctx, const Roofs& roofs, bool json) {
  if (json) {
    print_json({{"group", "machine"},
                {"cpu", cpu_name()},
                {"threads", ctx.pool().threads()},
                {"kernels", isa_name(ctx.isa())},
                {"version", FATHOM_VERSION},
                {"compiler", __VERSION__},
                {"f32_flops", roofs.f32_flops},
                {"bf16_flops", roofs.bf16_flops},
                {"int8_ops", roofs.int8_ops},
                {"read_bytes_per_second", roofs.read_bytes}});
    return;
  }
  std::string line;
  for (const std::string& fact : machine_facts(ctx)) line += (line.empty() ? "" : ", ") + fact;
  out("{}\nroofs: f32 {:.0f}, bf16 {:.0f} GFLOP/s, int8 {:.0f} GOP/s, memory {:.1f} GB/s; seen "
      "again before and after each line\n",
      line, roofs.f32_flops / 1e9, roofs.bf16_flops / 1e9, roofs.int8_ops / 1e9,
      roofs.read_bytes / 1e9);
}

// What must be held against what is held.
void print_memory(const BenchedModel& model, const BenchLog& log) {
  const ResidentMemory& peak = log.peak();
  if (peak.anonymous + peak.file == 0) return;  // nothing was measured
  const uint64_t needed = model.file_bytes + model.cache_bytes;
  const double share =
      static_cast<double>(needed) / static_cast<double>(peak.anonymous + peak.file);
  if (log.json()) {
    print_json({{"group", "memory"},
                {"resident_file_bytes", peak.file},
                {"resident_anonymous_bytes", peak.anonymous},
                {"model_file_bytes", model.file_bytes},
                {"cache_bytes", model.cache_bytes},
                {"cache_bytes_per_token", model.cache_bytes_per_token},
                {"share_of_resident", share}});
    return;
  }
  out("\nmemory at most: {} of files, {} of its own; weights and cache alone are {} ({:.0f} %); "
      "cache: {} per token ({})\n",
      bytes_text(peak.file), bytes_text(peak.anonymous), bytes_text(needed), 100 * share,
      bytes_text(model.cache_bytes_per_token), model.cache_dtype);
}

// The roofs that the lines saw: how quiet the machine was.
void print_range(const BenchLog& log) {
  if (log.json() || log.lines().empty()) return;
  std::vector<double> f32, int8, read;
  for (const BenchLine& line : log.lines()) {
    for (const Roofs* roofs : {&line.before, &line.after}) {
      f32.push_back(roofs->f32_flops / 1e9);
      int8.push_back(roofs->int8_ops / 1e9);
      read.push_back(roofs->read_bytes / 1e9);
    }
  }
  const auto text = [](const std::vector<double>& v, int digits) {
    const auto [low, high] = std::minmax_element(v.begin(), v.end());
    return fmt::format("{:.{}f} - {:.{}f}", *low, digits, *high, digits);
  };
  out("roofs seen: f32 {}, int8 {}, memory {}\n", text(f32, 0), text(int8, 0), text(read, 1));
  if (std::any_of(log.lines().begin(), log.lines().end(),
                  [](const BenchLine& line) { return line.share() > 1.05; }))
    out("{}\n", kOverTheRoof);
}

}  // namespace

bool BenchOptions::wants(std::string_view part) const {
  return only.empty() || std::find(only.begin(), only.end(), part) != only.end();
}

int run_bench(const BenchOptions& options) {
  check_options(options);
  const bool needs_model = std::any_of(std::begin(kParts) + 1, std::end(kParts),
                                       [&](std::string_view p) { return options.wants(p); });
  std::filesystem::path path;
  if (needs_model && !options.model.empty()) path = resolve_model(options.model);
  if (needs_model && options.model.empty()) {
    path = bundled_model().value_or("");
    if (path.empty() && !options.only.empty()) path = resolve_model("");
  }
  Context ctx(thread_count(options.threads), parse_isa(options.isa));
  if (options.pin) pin_threads(ctx.pool());
  constexpr int kFirstRounds = 12;
  if (!options.output.quiet) note("measuring the roofs ...");
  InterruptScope scope;
  BenchLog log(ctx, options.json);
  print_machine(ctx, log.probe(kFirstRounds), options.json);
  if (options.wants("kernels")) {
    log.head("linear layers, 2048 x 2048 weights", true);
    bench_kernels(ctx, log);
  }
  std::optional<BenchedModel> model;
  if (!path.empty()) {
    log.forget_peak();
    model = bench_model(options, path, ctx, log);
    print_memory(*model, log);
  }
  print_range(log);
  if (options.page.empty()) return 0;
  const BenchedModel* shown = model ? &*model : nullptr;
  const std::vector<std::string> facts = machine_facts(ctx);
  write_file_atomically(options.page, options.page.ends_with(".svg")
                                          ? bench_picture(facts, shown, log)
                                          : bench_page(facts, shown, log));
  if (!options.output.quiet) note("wrote {}", options.page);
  return 0;
}

}  // namespace fathom
