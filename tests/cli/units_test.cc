// The parts of the commands that can be asked without running the program.
#include <gtest/gtest.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/file.h"
#include "base/memory.h"
#include "cli/bench_lines.h"
#include "cli/bench_parts.h"
#include "cli/chat.h"
#include "cli/eval.h"
#include "cli/generation.h"
#include "cli/ids.h"
#include "cli/interrupt.h"
#include "cli/machine.h"
#include "cli/models.h"
#include "cli/progress.h"
#include "cli/run.h"
#include "tests/base/test_files.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Bench, WeightsAndCacheMustFitTogether) {
  const MemoryNeeds needs{.weights = 600 << 20, .cache = 500 << 20, .work = 10 << 20};
  EXPECT_NO_THROW(expect_room(needs, 4096, {}));
  EXPECT_NO_THROW(expect_room(needs, 4096, {.available = 1110 << 20}));
  EXPECT_EQ(error_of([&] { expect_room(needs, 4096, {.available = (1110 << 20) - 1}); },
                     ExitCode::kNoResources),
            fmt::format("bench: found {} of memory available, expected {}: weights {}, cache for "
                        "4096 tokens {}, work {} (use smaller --at, --batch or --generate, or "
                        "a smaller type of --cache)",
                        bytes_text((1110 << 20) - 1), bytes_text(1110 << 20), bytes_text(600 << 20),
                        bytes_text(500 << 20), bytes_text(10 << 20)));
  EXPECT_NE(error_of([&] { expect_room({.weights = 1, .cache = UINT64_MAX}, 1, {.available = 9}); },
                     ExitCode::kNoResources)
                .find("expected more than 64 bits count: "),
            std::string::npos);
}

TEST(Bench, OfAnotherUsersFileNobodyKnowsHowMuchIsInMemory) {
  const Checkpoint own = Checkpoint::open(FATHOM_SOURCE_DIR "/bundled/countdown-12m.gguf");
  EXPECT_TRUE(share_in_page_cache(own));
  if (::getuid() != 0) GTEST_SKIP() << "only root can become another user";
  const Unprivileged scope;
  EXPECT_FALSE(share_in_page_cache(own));
}

TEST(EvalWindows, ScoreEveryTokenOnceWithinTheWindow) {
  for (const bool bos : {false, true}) {
    for (int64_t tokens = 0; tokens < 40; ++tokens) {
      for (int64_t window = 2; window < 12; ++window) {
        for (int64_t stride = 1; stride <= window; ++stride) {
          int64_t scored = bos ? 0 : 1;
          for (const EvalWindow& w : eval_windows(tokens, window, stride, bos)) {
            EXPECT_EQ(w.score, scored);
            EXPECT_GT(w.end, w.score);
            EXPECT_LE(w.end - w.begin, window);
            // something before the first scored token predicts it
            EXPECT_LE(w.begin, bos ? w.score : w.score - 1);
            scored = w.end;
          }
          EXPECT_EQ(scored, std::max(tokens, int64_t{bos ? 0 : 1}));
        }
      }
    }
  }
}

TEST(EvalWindows, OverlapGivesTheContextPromised) {
  const auto windows = eval_windows(100, 20, 5, true);
  for (size_t i = 1; i < windows.size(); ++i) EXPECT_GE(windows[i].score - windows[i].begin, 15);
  const auto apart = eval_windows(100, 20, 20, true);
  ASSERT_EQ(apart.size(), 5u);
  for (const EvalWindow& w : apart) EXPECT_EQ(w.begin, w.score);
}

TEST(NegativeLogLikelihood, IsExactForKnownDistributions) {
  const std::vector<float> uniform(256, 3.5f);
  EXPECT_NEAR(negative_log_likelihood(uniform, 7), std::log(256.0), 1e-12);
  const std::vector<float> two = {0, std::log(3.0f)};
  EXPECT_NEAR(negative_log_likelihood(two, 1), -std::log(0.75), 1e-7);
  const std::vector<float> large = {1000, 0};
  EXPECT_NEAR(negative_log_likelihood(large, 1), 1000, 1e-9);
  EXPECT_FALSE(std::isfinite(negative_log_likelihood(std::vector<float>{NAN, 0}, 1)));
}

TEST(Eval, DivergenceIsThatOfTwoDistributionsWhateverTheirShift) {
  const auto log_of = [](std::vector<double> p, double shift) {
    std::vector<float> logits;
    for (const double x : p) logits.push_back(static_cast<float>(std::log(x) + shift));
    return logits;
  };
  const std::vector<double> p = {0.5, 0.25, 0.25}, q = {0.25, 0.25, 0.5};
  EXPECT_NEAR(kl_divergence(log_of(p, 0), log_of(q, 0)), 0.25 * std::log(2.0), 1e-7);
  EXPECT_NEAR(kl_divergence(log_of(p, 300), log_of(q, -300)), 0.25 * std::log(2.0), 1e-4);
  // not symmetric
  const std::vector<double> r = {0.9, 0.05, 0.05};
  EXPECT_NEAR(kl_divergence(log_of(r, 0), log_of(p, 0)), 0.9 * std::log(1.8) + 0.1 * std::log(0.2),
              1e-7);
  EXPECT_EQ(kl_divergence(log_of(p, 7), log_of(p, 7)), 0);
}

TEST(Eval, PercentilesAreValuesOfTheList) {
  std::vector<double> values;
  for (int i = 100; i >= 1; --i) values.push_back(i);
  EXPECT_EQ(percentile(values, 0.5), 50);
  EXPECT_EQ(percentile(values, 0.99), 99);
  EXPECT_EQ(percentile(values, 1), 100);
  EXPECT_EQ(percentile(values, 0), 1);
  EXPECT_EQ(percentile({7}, 0.99), 7);
}

TEST(ParseIds, TakesListsAndRefusesTheRest) {
  EXPECT_EQ(parse_ids(" 1, 2\n3\t4,,5 ", "x"), (std::vector<int32_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(parse_ids("[1, 2]", "x"), (std::vector<int32_t>{1, 2}));
  EXPECT_TRUE(parse_ids(" \n", "x").empty());
  for (const char* bad : {"1 a", "+1", "-1", "1.5", "0x10", "99999999999", "[1, \"2\"]", "[1, 2.5]",
                          "[-1]", "[4294967296]", "[1", "[[1]]"}) {
    EXPECT_THROW(parse_ids(bad, "x"), Error) << bad;
  }
  EXPECT_EQ(error_of([] { parse_ids("[18446744073709551615]", "x"); }),
            "x: found 18446744073709551615, expected a list of token ids");
}

TEST(Spread, IsByPositionInTheSortedList) {
  std::vector<double> values;
  for (int i = 100; i >= 0; --i) values.push_back(i);
  const Spread s = spread_of(values);
  EXPECT_EQ(s.low, 10);
  EXPECT_EQ(s.median, 50);
  EXPECT_EQ(s.high, 90);
  EXPECT_EQ(spread_of({7}).median, 7);
}

TEST(ProgressLine, SaysShareRateAndTimeLeft) {
  const std::string line = progress_line("reading", Progress::Unit::kBytes, uint64_t{1} << 30,
                                         uint64_t{2} << 30, 0.5, 200);
  EXPECT_EQ(line, "reading ██████████░░░░░░░░░░  50 %  1.0 GiB of 2.0 GiB  2.1 GB/s  0.5 s left");
  EXPECT_EQ(progress_line("scoring", Progress::Unit::kTokens, 100, 100, 2, 200),
            "scoring ████████████████████ 100 %  100 of 100 tokens  50 tok/s");
  EXPECT_EQ(progress_line("reading", Progress::Unit::kBytes, 1, 2, 1, 20), "reading 50 %");
}

TEST(Texts, OfSizesAndTimes) {
  EXPECT_EQ(bytes_text(0), "0 bytes");
  EXPECT_EQ(bytes_text(1536), "1.5 KiB");
  EXPECT_EQ(bytes_text(20u << 20), "20 MiB");
  EXPECT_EQ(bytes_text(uint64_t{5} << 40), "5.0 TiB");
  EXPECT_EQ(count_text(671e9), "671.0 B");
  EXPECT_EQ(duration_text(4.25), "4.2 s");
  EXPECT_EQ(duration_text(3700), "1 h 1 min");
  EXPECT_EQ(without_controls("a\x1b[31mb\r\n\tc\x07\u009b2J日"), "a[31mb\n\tc2J日");
}

// A made-up machine.
class FakeMachine {
 public:
  FakeMachine()
      : root_(fs::temp_directory_path() / ("fathom_machine_" + std::to_string(getpid()))) {
    write("proc/meminfo",
          "MemTotal:       1000000 kB\nMemFree: 1 kB\nMemAvailable:    600000 kB\nHugePages_Total: "
          "      7\n");
  }
  ~FakeMachine() { fs::remove_all(root_); }
  void write(const std::string& name, const std::string& text) {
    fs::create_directories((root_ / name).parent_path());
    std::ofstream(root_ / name) << text;
  }
  const fs::path& root() const { return root_; }

 private:
  fs::path root_;
};

TEST(Machine, MemoryIsThatOfTheContainer) {
  FakeMachine machine;
  EXPECT_EQ(memory_state(machine.root())->available, 600000u * 1024);
  EXPECT_FALSE(memory_state(machine.root())->limited);
  machine.write("proc/self/cgroup", "0::/a/b\n");
  machine.write("sys/fs/cgroup/a/b/memory.max", "max\n");
  EXPECT_FALSE(memory_state(machine.root())->limited);
  machine.write("sys/fs/cgroup/a/memory.max", "100000000\n");  // a limit above binds too
  machine.write("sys/fs/cgroup/a/memory.current", "70000000\n");
  machine.write("sys/fs/cgroup/a/memory.stat",
                "anon 5\ninactive_file 20000000\nactive_file 10000000\n");
  const MemoryState limited = memory_state(machine.root()).value();
  EXPECT_TRUE(limited.limited);
  EXPECT_EQ(limited.total, 100000000u);
  EXPECT_EQ(limited.available, 60000000u);  // file pages can be dropped
  EXPECT_EQ(huge_pages(machine.root()).reserved, 7u);
}

TEST(Machine, MemoryOfAnOldContainer) {
  FakeMachine machine;
  machine.write("proc/self/cgroup", "5:cpu:/x\n4:memory:/x\n");
  machine.write("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "50000000\n");
  machine.write("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "60000000\n");
  EXPECT_EQ(memory_state(machine.root())->total, 50000000u);
  EXPECT_EQ(memory_state(machine.root())->available, 0u);
}

TEST(TensorKind, KnowsBothVocabularies) {
  const auto kind = [](const char* name) { return tensor_kind(name, 4); };
  EXPECT_EQ(kind("model.layers.0.self_attn.q_a_layernorm.weight"), TensorKind::kNormsAndRouter);
  EXPECT_EQ(kind("model.layers.0.self_attn.kv_b_proj.weight"), TensorKind::kAttention);
  EXPECT_EQ(kind("model.layers.1.mlp.experts.3.up_proj.weight"), TensorKind::kExperts);
  EXPECT_EQ(kind("model.layers.1.mlp.shared_experts.up_proj.weight"), TensorKind::kSharedExperts);
  EXPECT_EQ(kind("model.layers.1.mlp.gate.weight"), TensorKind::kNormsAndRouter);
  EXPECT_EQ(kind("model.layers.1.mlp.gate_proj.weight"), TensorKind::kDenseMlp);
  EXPECT_EQ(kind("model.layers.4.mlp.experts.3.up_proj.weight"), TensorKind::kMtp);
  EXPECT_EQ(kind("model.embed_tokens.weight"), TensorKind::kEmbedding);
  EXPECT_EQ(kind("lm_head.weight"), TensorKind::kEmbedding);
  EXPECT_EQ(kind("blk.0.attn_q_a_norm.weight"), TensorKind::kNormsAndRouter);
  EXPECT_EQ(kind("blk.0.attn_output.weight"), TensorKind::kAttention);
  EXPECT_EQ(kind("blk.2.ffn_up_exps.weight"), TensorKind::kExperts);
  EXPECT_EQ(kind("blk.2.ffn_up_shexp.weight"), TensorKind::kSharedExperts);
  EXPECT_EQ(kind("blk.2.ffn_gate_inp.weight"), TensorKind::kNormsAndRouter);
  EXPECT_EQ(kind("blk.2.ffn_gate.weight"), TensorKind::kDenseMlp);
  EXPECT_EQ(kind("blk.5.attn_q.weight"), TensorKind::kMtp);
  EXPECT_EQ(kind("output.weight"), TensorKind::kEmbedding);
  EXPECT_EQ(kind("something.else"), TensorKind::kOther);
}

TEST(TrueName, ADistilledModelIsNotR1) {
  const Checkpoint checkpoint =
      Checkpoint::open(std::string(FATHOM_SOURCE_DIR) + "/tests/golden/gguf/qwen2-256-Q4_K_M.gguf");
  ModelConfig config = load_config(checkpoint);
  const ModelSizes sizes = measure_model(checkpoint, &config);
  config.name = "DeepSeek R1 Distill Qwen 7B";
  EXPECT_NE(true_name(checkpoint, config, std::nullopt, sizes).find("R1 distilled into Qwen2"),
            std::string::npos);
  config.name = "my-model";
  EXPECT_NE(true_name(checkpoint, config, ChatFormat::kR1DistillQwen, sizes)
                .find("R1 distilled into Qwen2"),
            std::string::npos);
  EXPECT_NE(true_name(checkpoint, config, std::nullopt, sizes)
                .find("my-model: Qwen2 architecture, 411 K parameters"),
            std::string::npos);
}

TEST(RebuiltBytes, AreWhatLoadingAllocates) {
  for (const char* name :
       {"qwen2-256-Q4_K_M.gguf", "v2-lite-256-Q4_K_M.gguf", "v2-lite-256-Q2_K-kv_b.gguf"}) {
    const std::string path = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/gguf/" + name;
    const Checkpoint checkpoint = Checkpoint::open(path);
    EXPECT_EQ(rebuilt_bytes(checkpoint, load_config(checkpoint)),
              Model::load(path).weights().owned_bytes)
        << name;
  }
  for (const char* name : {"v3", "v3-fp8", "v2", "v2-lite", "moonlight"}) {
    const std::string path = std::string(FATHOM_SOURCE_DIR) + "/tests/golden/models/" + name;
    const Checkpoint checkpoint = Checkpoint::open(path);
    EXPECT_EQ(rebuilt_bytes(checkpoint, load_config(checkpoint)),
              Model::load(path).weights().owned_bytes)
        << name;
  }
}

// What PartPrinter writes to a terminal (both streams) or, with `piped`, to stdout alone while
// stderr is a terminal.
std::string printed(const std::vector<OutputPart>& parts, bool hide, bool piped) {
  int out[2] = {-1, -1}, terminal = -1;
  EXPECT_EQ(pipe(out), 0);
  const pid_t pid = forkpty(&terminal, nullptr, nullptr, nullptr);
  if (pid == 0) {
    if (piped) dup2(out[1], STDOUT_FILENO);
    PartPrinter printer({.no_color = true}, hide);
    for (const OutputPart& part : parts) printer.show(part);
    printer.finish();
    _exit(0);
  }
  close(out[1]);
  std::string text;
  char buffer[256];
  for (ssize_t n = 0; (n = read(piped ? out[0] : terminal, buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<size_t>(n));
  close(out[0]);
  waitpid(pid, nullptr, 0);
  close(terminal);
  return text;
}

TEST(PartPrinter, MarksThoughtsOnTerminalsAndKeepsThemOutOfPipes) {
  const std::vector<OutputPart> parts = {
      {true, "let me "}, {true, "see\x1b[31m\n"}, {false, "\n"}, {false, "\nfour\x1b[2J"}};
  EXPECT_EQ(printed(parts, false, false),
            "⟨thinking⟩\r\nlet me see[31m\r\n\r\n⟨end of thought, 0.0 s⟩\r\n\r\nfour[2J\r\n");
  EXPECT_EQ(printed(parts, true, false), "four[2J\r\n");
  // a pipe gets the very bytes of the answer
  EXPECT_EQ(printed(parts, false, true), "four\x1b[2J\n");
  EXPECT_EQ(printed({{true, "cut off"}}, false, true), "");
  // without a thought nothing is trimmed
  EXPECT_EQ(printed({{false, "\n\nkept\n"}}, false, true), "\n\nkept\n");
}

// In a conversation the next question would wait until the abandoned answer is through.
TEST(Generation, AnAnswerThatFailedDoesNotRunOn) {
  const OutputOptions quiet{.quiet = true};
  Context ctx(1);
  const OpenedModel opened = open_model(
      std::string(FATHOM_SOURCE_DIR) + "/tests/golden/gguf/qwen2-256-Q4_K_M.gguf", {}, quiet);
  Engine engine(opened.model, ctx, {.context_tokens = 256, .max_sequences = 1});
  const auto answer = [&](int64_t max_tokens, const std::function<void(const OutputPart&)>& take) {
    GenerationRequest request;
    request.prompt = {70, 71, 72};
    request.max_tokens = max_tokens;
    return generate(engine, opened, std::move(request), quiet, take);
  };
  EXPECT_EQ(error_of([&] { answer(200, [](const OutputPart&) { fail("no room"); }); }), "no room");
  const int64_t before = engine.stats().decode_tokens;
  EXPECT_EQ(answer(3, [](const OutputPart&) {}).tokens, 3);
  EXPECT_LE(engine.stats().decode_tokens - before, 3);
}

TEST(Slash, AllSpellingsAreOneCommand) {
  for (const char* spelled : {"/exit", "/bye", "/quit"})
    EXPECT_EQ(parse_slash(spelled).name, "exit");
  EXPECT_EQ(parse_slash("/?").name, "help");
  EXPECT_EQ(parse_slash("/upload  a b.txt \n").name, "read");
  EXPECT_EQ(parse_slash("/upload  a b.txt \n").argument, "a b.txt");
  EXPECT_EQ(parse_slash("/ctx").name, parse_slash("/context").name);
  for (const char* unknown : {"/", "/nosuch", "/EXIT", "/etc/passwd", "/exit2"})
    EXPECT_EQ(parse_slash(unknown).name, "") << unknown;
}

TEST(Conversation, SurvivesSavingAndRefusesOtherFiles) {
  using Role = ChatMessage::Role;
  const std::vector<ChatMessage> messages = {{Role::kSystem, "be brief", "", {}},
                                             {Role::kUser, "q \"x\"\n", "", {}},
                                             {Role::kAssistant, "a 日本", "thought", {}}};
  const auto back = parse_conversation(conversation_text(messages), "x");
  ASSERT_EQ(back.size(), 3u);
  EXPECT_EQ(back[1].content, "q \"x\"\n");
  EXPECT_EQ(back[2].reasoning, "thought");
  EXPECT_EQ(back[2].role, Role::kAssistant);
  EXPECT_NE(conversation_text(messages).find("\"reasoning_content\": \"thought\""),
            std::string::npos);
  // as files were written once
  EXPECT_EQ(parse_conversation(R"({"messages":[{"role":"user","content":"q"},
                                {"role":"assistant","content":"a","reasoning":"old"}]})",
                               "f")[1]
                .reasoning,
            "old");
  EXPECT_NE(message_of([] {
              parse_conversation(R"({"messages":[{"role":"boss","content":""}]})", "f");
            }).find("'boss'"),
            std::string::npos);
  for (const char* bad : {"", "[]", "{}", R"({"messages":{}})", R"({"messages":[1]})",
                          R"({"messages":[{"role":"user"}]})"}) {
    EXPECT_THROW(parse_conversation(bad, "f"), Error) << bad;
  }
}

TEST(Conversation, TakesTurns) {
  const auto error = [](const std::vector<std::string>& roles) {
    std::string list;
    for (const std::string& role : roles)
      list += (list.empty() ? "" : ",") + ("{\"role\":\"" + role + "\",\"content\":\"x\"}");
    return message_of([&] { parse_conversation("{\"messages\":[" + list + "]}", "f"); });
  };
  const std::string s = "system", u = "user", a = "assistant";
  for (const auto& good : std::vector<std::vector<std::string>>{
           {}, {s}, {u}, {s, u}, {u, a}, {s, u, a, u, a}, {u, a, u}})
    EXPECT_EQ(error(good), "no error");
  EXPECT_TRUE(error({a}).starts_with("f: message 0: role: found assistant, expected user"))
      << error({a});
  EXPECT_TRUE(error({u, u}).starts_with("f: message 1: role: found user, expected assistant"))
      << error({u, u});
  for (const auto& bad :
       std::vector<std::vector<std::string>>{{s, a}, {s, s}, {u, s}, {u, a, a}, {u, a, s}}) {
    EXPECT_NE(error(bad).find("alternate"), std::string::npos) << error(bad);
  }
}

TEST(SamplingAdvice, OfTheVendorIsTakenWholeOrRefusedWithItsPlace) {
  const fs::path folder =
      fs::path(testing::TempDir()) / ("fathom_advice_" + std::to_string(getpid()));
  fs::copy(std::string(FATHOM_SOURCE_DIR) + "/tests/golden/models/v2-lite", folder);
  const fs::path file = folder / "generation_config.json";
  const auto advice = [&](const std::string& text) {
    std::ofstream(file) << text;
    const Checkpoint checkpoint = Checkpoint::open(folder);
    return sampling_advice(checkpoint, load_config(checkpoint), std::nullopt);
  };
  const SamplingAdvice penalty = advice(R"({"repetition_penalty": 1.25})");
  EXPECT_EQ(penalty.params.repetition_penalty, 1.25);
  EXPECT_EQ(penalty.params.temperature, advice("{}").params.temperature);  // the family's
  EXPECT_EQ(penalty.source, "generation_config.json");
  const SamplingAdvice greedy =
      advice(R"({"do_sample": false, "temperature": 0.7, "repetition_penalty": 1.25})");
  EXPECT_EQ(greedy.params.temperature, 0);
  EXPECT_EQ(greedy.params.repetition_penalty, 1.25);
  for (const char* bad :
       {R"({"temperature": -1})", R"({"top_p": 1.5})", R"({"repetition_penalty": 0})"}) {
    EXPECT_TRUE(message_of([&] { advice(bad); }).starts_with(file.string() + ": ")) << bad;
  }
  fs::remove_all(folder);
}

TEST(SignalDeathTest, AFaultPastTheEndOfAShrunkFileExitsWithAMessage) {
  const fs::path path =
      fs::path(testing::TempDir()) / ("fathom_shrunk_" + std::to_string(getpid()));
  std::ofstream(path) << std::string(3 * 65536, 'x');
  const auto shrink_and_touch = [&] {
    install_signal_handlers();
    const MappedFile file(path);
    fs::resize_file(path, 1);
    const volatile std::byte* last = file.bytes().data() + file.bytes().size() - 1;
    [[maybe_unused]] const std::byte value = *last;
  };
  EXPECT_EXIT(shrink_and_touch(), testing::ExitedWithCode(2),
              "error: a model file changed while in use");
  fs::remove(path);
}

TEST(MemoryNeeds, SaturateInsteadOfWrapping) {
  const Checkpoint checkpoint = Checkpoint::open(std::string(FATHOM_SOURCE_DIR) +
                                                 "/tests/golden/gguf/v2-lite-256-Q4_K_M.gguf");
  ModelConfig config = load_config(checkpoint);
  const ModelSizes sizes = measure_model(checkpoint, &config);
  const MemoryNeeds small = memory_needs(checkpoint, config, sizes, 100, DType::kBF16, 512);
  EXPECT_EQ(small.total, small.weights + small.rebuilt + small.cache + small.work);
  EXPECT_EQ(memory_needs(checkpoint, config, sizes, 100, DType::kF32, 512).cache, 2 * small.cache);
  config.num_attention_heads = 65536;  // the largest that a config may say
  config.kv_lora_rank = config.qk_nope_head_dim = config.qk_rope_head_dim = config.v_head_dim =
      1 << 20;
  config.num_hidden_layers = 1024;
  const MemoryNeeds large =
      memory_needs(checkpoint, config, sizes, int64_t{1} << 31, DType::kF32, 512);
  EXPECT_GT(large.rebuilt, uint64_t{1} << 57);
  EXPECT_EQ(memory_needs(checkpoint, config, sizes, int64_t{1} << 50, DType::kF32, 512).total,
            UINT64_MAX);
}

TEST(RateLine, CountsOnlyWhatOfAPromptIsDone) {
  Generation g;
  g.finish = FinishReason::kCancelled;
  g.prompt_tokens = 100;
  g.prompt_done = 60;
  g.reuse.cached_tokens = 10;
  g.prefill_seconds = 2;
  EXPECT_EQ(rate_line(g),
            "prompt 60 of 100 tokens (10 cached), 25.0 tok/s; generated 0 tokens, - tok/s; "
            "interrupted");
  g.finish = FinishReason::kLength;
  g.prompt_done = g.prompt_tokens;
  g.tokens = 5;
  g.decode_seconds = 2;
  EXPECT_EQ(rate_line(g),
            "prompt 100 tokens (10 cached), 45.0 tok/s; generated 5 tokens, 2.0 tok/s; stopped at "
            "the token limit");
  g.room = 5;
  EXPECT_TRUE(rate_line(g).ends_with("; stopped as the context is full"));
}

// 4 x 512 rows where there is room for them, tiles and a sixteenth more, else 512.
TEST(MemoryNeeds, TheChunkIsAsLongAsMemoryAllows) {
  const Checkpoint checkpoint = Checkpoint::open(std::string(FATHOM_SOURCE_DIR) +
                                                 "/tests/golden/gguf/v2-lite-256-Q4_K_M.gguf");
  const ModelConfig config = load_config(checkpoint);
  const ModelSizes sizes = measure_model(checkpoint, &config);
  const auto plan = [&](int64_t context, uint64_t available) {
    return plan_memory(checkpoint, config, sizes, context, DType::kBF16, available, true);
  };
  const MemoryNeeds most = plan(4096, 0).needs, least = plan(4096, 1).needs;
  EXPECT_EQ(most.chunk, 2048);
  EXPECT_EQ(least.chunk, 512);
  EXPECT_GT(most.work, 2 * least.work);
  const uint64_t roomy = most.total + most.total / 16;
  for (const auto& [available, chunk, fits] : {std::tuple{roomy, 2048, true},
                                               {roomy - 1, 512, true},
                                               {least.total, 512, true},
                                               {least.total - 1, 512, false}}) {
    EXPECT_EQ(plan(4096, available).needs.chunk, chunk) << available;
    EXPECT_EQ(plan(4096, available).fits, fits) << available;
  }
  EXPECT_EQ(plan(1000, 0).needs.chunk, 1000);  // the longest prompt
  EXPECT_EQ(plan(100, 0).needs.chunk, 512);
}

TEST(SplitWords, TellsModelAndPromptApart) {
  RunOptions o;
  o.words = {"a.gguf", "hello"};
  EXPECT_EQ(split_words(o).model, "a.gguf");
  EXPECT_EQ(split_words(o).prompt, "hello");
  o.words = {"a.gguf"};
  EXPECT_EQ(split_words(o).model, "a.gguf");
  EXPECT_FALSE(split_words(o).prompt.has_value());
  o.words = {"hello you"};
  EXPECT_EQ(split_words(o).model, "");
  EXPECT_EQ(split_words(o).prompt, "hello you");
  o.model = "b.gguf";
  EXPECT_EQ(split_words(o).model, "b.gguf");
  o.words = {"hello", "you"};
  EXPECT_THROW(split_words(o), Error);
}

}  // namespace
}  // namespace fathom
